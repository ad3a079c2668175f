"""How late this client's event loop is, measured while it drives the load."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

monotonic_ns = time.monotonic_ns

PERIOD_S = 0.02
# Threads that share the interpreter (telemetry) give it back after at most this long, instead of 5 ms.
SWITCH_INTERVAL_S = 0.0005


class LagMonitor:
    """Wakes up every ``PERIOD_S`` and notes how much later than planned: what any stamp may have waited at that moment.

    ``on_sample(t, lag_ns)`` gets each sample.
    """

    def __init__(self, on_sample: Callable[[int, int], None]) -> None:
        self._on_sample = on_sample
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            planned = monotonic_ns() + round(PERIOD_S * 1e9)
            await asyncio.sleep(PERIOD_S)
            now = monotonic_ns()
            self._on_sample(now, max(0, now - planned))


def own_cpu_s() -> float:
    """CPU seconds (user and system) that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def quiet_interpreter() -> Iterator[None]:
    """Keeps the garbage collector and long thread turns out of the measurement."""
    before = sys.getswitchinterval()
    was_enabled = gc.isenabled()
    gc.freeze()  # without a collection first: that would cost a tenth of a second at the start of every cell
    gc.disable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()
        if was_enabled:
            gc.enable()
