"""Releasing requests: as many at once as asked, at the times planned, later turns in order, nothing skipped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest

from harness.load.drivers import closed_loop, monotonic_ns, open_loop
from harness.load.exchange import Exchange
from workloads.arrivals import poisson_arrivals
from workloads.request import RequestSpec


def lone(count: int) -> list[RequestSpec]:
    return [RequestSpec(index, None, "x", 1, 1) for index in range(count)]


def conversations(count: int, turns: int, think_s: float = 0.0) -> list[RequestSpec]:
    return [
        RequestSpec(
            index=c * turns + t,
            messages=None,
            prompt="x",
            prompt_tokens=1,
            output_tokens=1,
            conversation=c,
            turn=t,
            after=c * turns + t - 1 if t else None,
            think_s=think_s if t else 0.0,
        )
        for c in range(count)
        for t in range(turns)
    ]


class Engine:
    """Notes who is in flight; each request takes ``takes_s``."""

    def __init__(self, requests: Sequence[RequestSpec], takes_s: float = 0.002) -> None:
        self.requests = requests
        self.takes_s = takes_s
        self.in_flight = self.peak = 0
        self.started: list[tuple[int, int]] = []  # (request, moment)
        self.ended: dict[int, int] = {}
        self.exchanges: list[Exchange] = []
        self.levels: list[int] = []

    async def send(self, position: int, exchange: Exchange) -> None:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self.levels.append(self.in_flight)
        self.exchanges.append(exchange)
        self.started.append((position, monotonic_ns()))
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.in_flight -= 1
            self.ended[position] = monotonic_ns()


@pytest.mark.parametrize("concurrency", [1, 3, 8])
async def test_closed_loop_fills_every_slot_and_no_more(concurrency: int) -> None:
    engine = Engine(lone(40), takes_s=0.02 * concurrency)  # so long that no pause ends a request before all have begun
    assert await closed_loop(engine.requests, concurrency, engine.send, asyncio.Event())
    assert sorted(position for position, _ in engine.started) == list(range(40))
    assert engine.peak == concurrency
    # Each round fills every slot again: between two fillings no more requests start than there are slots.
    full = [index for index, level in enumerate(engine.levels) if level == concurrency]
    assert full[0] == concurrency - 1
    assert all(later - earlier <= concurrency for earlier, later in pairwise(full))
    assert all(exchange.t_sched is None for exchange in engine.exchanges)


async def test_starts_leave_room_for_the_network() -> None:
    """Sixty requests that may start at once are started in sixty turns of the loop, not in one."""
    turn = 0
    started: list[int] = []

    def count() -> None:
        nonlocal turn
        turn += 1
        asyncio.get_running_loop().call_soon(count)

    async def send(position: int, exchange: Exchange) -> None:
        started.append(turn)

    count()
    assert await closed_loop(lone(60), 60, send, asyncio.Event())
    assert len(set(started)) == 60


async def test_closed_loop_with_fewer_requests_than_slots() -> None:
    engine = Engine(lone(2))
    assert await closed_loop(engine.requests, 16, engine.send, asyncio.Event())
    assert len(engine.started) == 2


async def test_closed_loop_stops_when_told_and_lets_requests_end() -> None:
    engine, stop = Engine(lone(1000)), asyncio.Event()
    asyncio.get_running_loop().call_later(0.03, stop.set)
    assert not await closed_loop(engine.requests, 4, engine.send, stop)
    assert 0 < len(engine.started) < 1000
    assert len(engine.ended) == len(engine.started)


@pytest.mark.parametrize("open_", [False, True])
async def test_turns_of_a_conversation_come_in_order(open_: bool) -> None:
    requests = conversations(5, 3, think_s=0.005)
    engine = Engine(requests)
    if open_:
        arrivals = [index * 1_000_000 for index in range(5)]
        assert await open_loop(requests, arrivals, engine.send, asyncio.Event(), monotonic_ns())
    else:
        assert await closed_loop(requests, 2, engine.send, asyncio.Event())
        assert engine.peak <= 2
    started = dict(engine.started)
    assert len(started) == 15
    for request in requests:
        if request.after is not None:
            assert started[request.index] >= engine.ended[request.after] + 4_000_000


async def test_open_loop_follows_the_plan_and_records_it() -> None:
    requests = lone(60)
    arrivals = poisson_arrivals(400.0, 11, count=60)
    engine = Engine(requests, takes_s=0.05)
    start = monotonic_ns() + 5_000_000
    assert await open_loop(requests, arrivals, engine.send, asyncio.Event(), start)
    assert [position for position, _ in engine.started] == list(range(60))
    planned = [start + offset for offset in arrivals]
    assert [exchange.t_sched for exchange in engine.exchanges] == planned
    assert all(at >= plan for (_, at), plan in zip(engine.started, planned, strict=True))  # never early


async def test_open_loop_neither_skips_nor_moves_arrivals_when_the_client_stalls() -> None:
    requests = lone(50)
    arrivals = [index * 2_000_000 for index in range(50)]
    engine = Engine(requests)
    start = monotonic_ns()

    async def stalling(position: int, exchange: Exchange) -> None:
        if position == 10:
            end = monotonic_ns() + 40_000_000
            while monotonic_ns() < end:
                pass
        await engine.send(position, exchange)

    assert await open_loop(requests, arrivals, stalling, asyncio.Event(), start)
    assert len(engine.started) == 50
    assert [exchange.t_sched for exchange in engine.exchanges] == [start + offset for offset in arrivals]
    late = [at - (start + offset) for (_, at), offset in zip(engine.started, arrivals, strict=True)]
    assert max(late[10:20]) >= 20_000_000  # the lateness is there to be seen


@pytest.mark.parametrize("open_", [False, True])
async def test_cancelling_a_driver_ends_every_request(open_: bool) -> None:
    engine = Engine(lone(100), takes_s=10)
    if open_:
        work = open_loop(engine.requests, [0] * 100, engine.send, asyncio.Event(), monotonic_ns())
    else:
        work = closed_loop(engine.requests, 8, engine.send, asyncio.Event())
    task = asyncio.create_task(work)
    while engine.in_flight < 8:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.in_flight == 0
    assert len(engine.ended) == len(engine.started)


async def test_a_failure_of_the_driver_itself_is_not_swallowed() -> None:
    async def broken(position: int, exchange: Exchange) -> None:
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        await closed_loop(lone(4), 2, broken, asyncio.Event())
    with pytest.raises(RuntimeError, match="bug"):
        await open_loop(lone(4), [0, 1, 2, 3], broken, asyncio.Event(), monotonic_ns())
