"""The emulator as a process of its own: running it, and starting one from Python."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from harness.emulator.options import EmulatorError, EmulatorOptions
from harness.emulator.server import serve

READY = "listening on "


def run_emulator(options: EmulatorOptions) -> None:
    """Serve until SIGINT or SIGTERM; prints ``listening on URL`` when ready.  Raises :class:`EmulatorError`."""

    async def main() -> None:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, over.set)
        gc.collect()
        gc.freeze()
        gc.disable()  # a pause of the collector would look like a late engine; nothing here makes cycles for long
        await serve(options, lambda url: print(f"{READY}{url}", flush=True), over)

    with asyncio.Runner(loop_factory=new_event_loop()) as runner:
        runner.run(main())


def new_event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


@contextmanager
def spawned(options: EmulatorOptions | None = None, *, prefix: Sequence[str] = ()) -> Iterator[str]:
    """An emulator in a process of its own; gives its URL.  ``prefix`` goes before the command (``taskset -c 0``)."""
    options = options or EmulatorOptions()
    command = [*prefix, sys.executable, "-m", "harness.emulator", options.model_dump_json()]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        line = child.stdout.readline()
        if not line.startswith(READY):
            raise EmulatorError(child.stderr.read().strip() or "the emulator did not start")
        yield line.removeprefix(READY).strip()
    finally:
        child.terminate()
        child.wait(10)
        child.stdout.close()
        child.stderr.close()
