"""Capacity from outside, against simulated engines whose capacity is known."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.capacity.estimate import Round, best_block_size, closest_bounds, estimate, look_at
from harness.capacity.streams import Stream, had_to_wait, stalls, usual_gap


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


SimulatedEngine = load("simulated").SimulatedEngine


def rounds_of(engine: Any, context: int = 1024) -> list[Round]:
    """Few long, more middling, many short sequences: each half again as much as the pool holds."""
    rounds = []
    for share in (0.75, 0.4, 0.15):
        prompt, output = round(context * share), round(context * (1 - share))
        rounds.append(engine.serve(max(4, round(1.5 * engine.capacity / prompt)), prompt, output))
    return rounds


MISTAKEN = (105 * 128, 128)  # tokens, block


@pytest.mark.xfail(strict=True, reason="its rounds agree best in blocks of 256: 15,360 are told; the only such of 203")
def test_one_pool_is_taken_for_one_of_larger_blocks() -> None:
    capacity, block = MISTAKEN
    assert estimate(rounds_of(SimulatedEngine(capacity, block))).tokens == pytest.approx(capacity, rel=0.05)


@pytest.mark.parametrize("block", [1, 16, 32, 64, 128])
def test_a_paged_pool_is_measured_within_five_percent(block: int) -> None:
    rng = random.Random(random.randrange(10**6))
    for _ in range(6):
        capacity = rng.randrange(4_000, 30_000) // block * block
        if (capacity, block) == MISTAKEN:
            continue
        found = estimate(rounds_of(SimulatedEngine(capacity, block, rng=rng)))
        assert found.limit == "preemption"
        assert found.tokens == pytest.approx(capacity, rel=0.05)


def test_without_whole_blocks_large_tails_would_be_missed() -> None:
    # 128 slots a block and many short sequences: the tokens alone fall short of the pool by the tails.
    seen = [look_at(one) for one in rounds_of(SimulatedEngine(8192, 128))]
    assert min(one.held[1] for one in seen) < 0.97 * 8192
    assert estimate(rounds_of(SimulatedEngine(8192, 128))).tokens == pytest.approx(8192, rel=0.03)
    assert best_block_size(seen) > 1


def test_a_reserving_pool_is_closed_in_from_both_sides() -> None:
    rng = random.Random(random.randrange(10**6))
    for _ in range(10):
        engine = SimulatedEngine(rng.randrange(8_000, 30_000), 16, reserve=True, rng=rng)
        rounds = [
            engine.serve(round(2 * engine.capacity / total), total // 2, total - total // 2)
            for total in (900, 500, 230, 130)
        ]
        found = estimate(rounds)
        assert found.limit == "reservation"
        assert found.tokens == pytest.approx(engine.capacity, rel=0.05)
        assert found.high is not None
        assert found.low <= engine.capacity * 1.03
        assert found.high >= engine.capacity * 0.97


def test_bounds_that_agree_without_blocks_leave_room_for_their_tails() -> None:
    """1,594 blocks of 16: 27 requests of 57 blocks fit, 49 of 32.  Counted in tokens alone these agree on at most 25,000."""
    found = closest_bounds([27, 49], [900, 500])
    assert (found.block_size, found.low, found.tokens) == (1, 24_500, 24_750)
    assert found.high is not None
    assert found.high >= 1594 * 16


def test_slots_are_not_taken_for_memory() -> None:
    engine = SimulatedEngine(10**6, 16, slots=8)
    rounds = [engine.serve(24, total // 2, total - total // 2) for total in (600, 150)]
    found = estimate(rounds)
    assert (found.limit, found.tokens) == ("slots", None)
    assert 8 * 300 < found.low < 8 * 700


def test_a_pool_that_was_not_filled_gives_a_floor_only() -> None:
    found = estimate([SimulatedEngine(10**6).serve(4, 100, 50)])
    assert (found.limit, found.tokens, found.high) == ("none", None, None)
    assert 4 * 149 <= found.low <= 4 * (150 + 100)


def stream(*tokens: int, end: int | None = None, finished: bool = False) -> Stream:
    return Stream(10, 0, list(tokens), end, finished)


def test_all_standing_still_is_not_a_preemption() -> None:
    a = stream(*range(10, 100, 10), *range(1000, 1100, 10), end=1100)
    b = stream(*range(12, 100, 10), *range(1002, 1100, 10), end=1101)
    assert stalls(a, [a, b], usual_gap([a, b]), 1200) == []
    c = stream(*range(11, 1100, 10), end=1100)
    (found,) = stalls(a, [a, c], 10.0, 1200)
    assert (found.start, found.end) == (90, 1000)


def test_a_burst_after_a_pause_of_the_machine_is_not_progress() -> None:
    """Two streams, a token every 10; nobody is read from 200 to 500, then first one stream's bytes, then the other's."""
    usual = list(range(0, 201, 10))
    first = stream(*usual, *[500] * 30, *range(510, 600, 10))
    second = stream(*usual, *[502] * 30, *range(512, 600, 10))
    # Or the engine itself catches up, a token every millisecond of ours.
    third = stream(*usual, *range(470, 500), *range(510, 600, 10))
    streams = [first, second, third]
    gap = usual_gap(streams)
    assert gap == 10
    assert [stalls(one, streams, gap, 600) for one in streams] == [[], [], []]


def test_chunks_of_several_tokens_have_a_gap_between_chunks() -> None:
    chunked = stream(*[t for t in range(0, 400, 20) for _ in range(4)])
    assert usual_gap([chunked]) == 20


def test_a_stall_that_has_not_ended_counts_and_a_finished_stream_does_not() -> None:
    a, c = stream(10, 20, 30), stream(*range(11, 500, 10))
    (found,) = stalls(a, [a, c], 10.0, 500)
    assert (found.start, found.end) == (30, None)
    a.t_end, a.finished = 35, True
    assert stalls(a, [a, c], 10.0, 500) == []


def test_waiting_means_that_another_had_to_leave() -> None:
    a = stream(10, 20, end=25, finished=True)
    assert had_to_wait(stream(30), [a], 100)
    assert not had_to_wait(stream(15), [a], 100)
    assert had_to_wait(stream(), [a], 100)  # still waiting
    assert not had_to_wait(stream(30), [stream(10, 20)], 100)
