"""Releasing requests: a closed loop that keeps N in flight, an open loop that follows planned times.

Neither skips, re-anchors or rescales: a request that could not be sent when planned is sent late, and its record says
so.
A request with ``after`` is released by the end of that one (a later turn of a conversation), never before.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from harness.load.alarms import Alarms
from harness.load.exchange import Exchange
from workloads.request import RequestSpec

monotonic_ns = time.monotonic_ns

SendOne = Callable[[int, Exchange], Awaitable[None]]  # position in the schedule; the exchange to fill


class Stop(Protocol):
    """Whether no further request may start."""

    def is_set(self) -> bool: ...


class Turnstile:
    """Lets one task through in each turn of the event loop.

    When many requests may start at the same moment, starting them all in one turn would leave the network unread for
    tens of milliseconds; between turns it is polled, so that what arrives meanwhile is stamped when it arrives.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False

    async def turn(self) -> None:
        """Wait for a turn of the loop in which nobody else was let through."""
        loop = asyncio.get_running_loop()
        if self._taken:
            waiter = loop.create_future()
            self._waiting.append(waiter)
            await waiter
        else:
            self._taken = True
            loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                loop.call_soon(self._next, loop)
                return
        self._taken = False


def followers(requests: Sequence[RequestSpec]) -> dict[int, list[int]]:
    """Positions that each position releases when it ends."""
    positions = {request.index: position for position, request in enumerate(requests)}
    released: dict[int, list[int]] = {}
    for position, request in enumerate(requests):
        if request.after is not None:
            released.setdefault(positions[request.after], []).append(position)
    return released


async def closed_loop(
    requests: Sequence[RequestSpec], concurrency: int, send: SendOne, stop: Stop, *, reads_may_wait: bool = False
) -> bool:
    """Keep ``concurrency`` conversations in flight until the requests are used up or ``stop`` is set.

    A slot holds one conversation at a time, think times included.  ``reads_may_wait`` says that bytes keep their true
    times while others start (the kernel stamps them).  Returns whether every request was sent.
    """
    released = followers(requests)
    turnstile = None if reads_may_wait else Turnstile()
    waiting = deque(position for position, request in enumerate(requests) if request.after is None)

    async def slot() -> None:
        while waiting and not stop.is_set():
            turns = deque([waiting.popleft()])
            while turns and not stop.is_set():
                position = turns.popleft()
                request = requests[position]
                if request.after is not None:
                    await asyncio.sleep(request.think_s)
                exchange = Exchange(request.index, t_ready=monotonic_ns())
                if turnstile is not None:
                    await turnstile.turn()
                await send(position, exchange)
                turns.extend(released.get(position, ()))
            if turns:
                waiting.extendleft(reversed(turns))

    await gather_or_cancel([slot() for _ in range(min(concurrency, max(1, len(waiting))))])
    return not waiting


async def open_loop(
    requests: Sequence[RequestSpec], arrivals_ns: Sequence[int], send: SendOne, stop: Stop, start_ns: int
) -> bool:
    """Send the first turns at ``start_ns + arrivals_ns[i]``, in order, and later turns when theirs end.

    ``arrivals_ns`` has one entry for each request without ``after``.  Returns whether every request was sent.
    """
    released = followers(requests)
    first_turns = [position for position, request in enumerate(requests) if request.after is None]
    sent = 0

    async def converse(position: int, t_sched: int | None) -> None:
        nonlocal sent
        sent += 1
        t_ready = monotonic_ns() if t_sched is None else t_sched
        await send(position, Exchange(requests[position].index, t_ready=t_ready, t_sched=t_sched))
        for later in released.get(position, ()):
            await asyncio.sleep(requests[later].think_s)
            if not stop.is_set():
                await converse(later, None)

    alarms = Alarms()
    try:
        async with asyncio.TaskGroup() as group:
            for position, offset in zip(first_turns, arrivals_ns, strict=True):
                await alarms.sleep_until(start_ns + offset)
                if stop.is_set():
                    break
                group.create_task(converse(position, start_ns + offset))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        alarms.close()
    return sent == len(requests)


async def gather_or_cancel(work: Sequence[Awaitable[None]]) -> None:
    """Run all; when cancelled, cancel all and wait for their ends, so that every record is complete."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
