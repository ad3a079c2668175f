"""Time limits of one request, and the watch that ends requests which overrun them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from harness.load.exchange import Exchange

monotonic_ns = time.monotonic_ns

MAX_PERIOD_S = 1.0
PERIODS_A_LIMIT = 20  # a limit is overrun by at most this share of it


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one request in seconds.  ``first`` and ``total`` count from the moment it is sent off, ``idle`` from
    the last byte."""

    connect: float = 10.0
    first: float = 300.0
    idle: float = 120.0
    total: float = 1800.0


class Overseer:
    """Looks over everything in flight now and then and ends what is overdue: one timer, however many requests."""

    def __init__(self, limits: Timeouts) -> None:
        self._limits = limits
        shortest = min(limits.first, limits.idle, limits.total)
        self._period_s = min(MAX_PERIOD_S, shortest / PERIODS_A_LIMIT)
        self._in_flight: dict[Exchange, tuple[int, Callable[[], None]]] = {}
        self._handle: asyncio.TimerHandle | None = None

    def watch(self, exchange: Exchange, end: Callable[[], None]) -> None:
        """From now on the limits count for ``exchange``; ``end()`` is called when it overruns one (it has been marked)."""
        self._in_flight[exchange] = (monotonic_ns(), end)
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._period_s, self._look)

    def forget(self, exchange: Exchange) -> None:
        self._in_flight.pop(exchange, None)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _look(self) -> None:
        self._handle = None
        now = monotonic_ns()
        overdue = []
        for exchange, (start, end) in self._in_flight.items():
            sentence = self._overrun(exchange, start, now)
            if sentence is not None:
                exchange.fail("timeout_idle" if exchange.has_content else "timeout_first", sentence)
                overdue.append(end)
        for end in overdue:
            end()
        if self._in_flight:
            self._handle = asyncio.get_running_loop().call_later(self._period_s, self._look)

    def _overrun(self, exchange: Exchange, start: int, now: int) -> str | None:
        """Which limit ``exchange`` has overrun, as a sentence."""
        limits = self._limits
        if now - start >= limits.total * 1e9:
            return f"the answer was not complete within {limits.total:g} s"
        if exchange.has_content:
            return f"no byte came for {limits.idle:g} s" if now - exchange.stamps[-1] >= limits.idle * 1e9 else None
        late = now - start >= limits.first * 1e9
        return f"no byte of the answer came within {limits.first:g} s" if late else None
