"""The emulated engine under a clock of our own: times, memory and preemptions are exact."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from harness.emulator.answers import draw
from harness.emulator.engine import EmulatedEngine, Sequence
from harness.emulator.options import make_options

MS = 1_000_000


class Clock:
    """Virtual time: ``run`` calls everything in order."""

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def call_at(self, t_ns: int, callback: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (t_ns, next(self._order), callback))

    def run(self, until: int | None = None) -> None:
        while self._heap and (until is None or self._heap[0][0] <= until):
            t, _, callback = heapq.heappop(self._heap)
            self.now = max(self.now, t)
            callback()
        self.now = max(self.now, until or 0)


class Log:
    """A listener that keeps when it got what."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.times: list[float] = []
        self.counts: list[int] = []
        self.ended = False
        self.fault_kind: str | None = None

    def tokens(self, first: int, count: int, is_last: bool) -> None:
        assert first == sum(self.counts)
        self.times.append(self._clock.now / MS)
        self.counts.append(count)
        self.ended = is_last

    def fault(self, kind: str) -> None:
        self.fault_kind = kind


class Bench:
    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.options = make_options(**options)
        self.engine = EmulatedEngine(self.options, self.clock, lambda: self.clock.now)
        self.numbers = itertools.count()

    def ask(self, prompt: int, output: int, n: int = 1) -> tuple[Sequence, Log]:
        log = Log(self.clock)
        answer = draw(self.options, next(self.numbers))
        sequence = Sequence(prompt, output, answer, log, self.clock.now, n)  # type: ignore[arg-type]
        self.engine.add(sequence)
        return sequence, log


def test_streams_keep_their_own_times() -> None:
    bench = Bench(ttft_ms=50, itl_ms=20)
    _, first = bench.ask(10, 3)
    bench.clock.run(until=7 * MS)
    _, second = bench.ask(10, 2)
    bench.clock.run()
    assert first.times == [50, 70, 90]
    assert second.times == [57, 77]
    assert first.ended
    assert second.ended


def test_slowdown_prefill_and_chunks() -> None:
    bench = Bench(ttft_ms=50, itl_ms=20, slowdown=2, prefill_tokens_per_s=1000, tokens_per_chunk=4)
    _, log = bench.ask(100, 10)
    bench.clock.run()
    assert log.times == [300, 340, 380]
    assert log.counts == [4, 4, 2]


def test_a_script_sets_times_answer_by_answer() -> None:
    bench = Bench(itl_ms=10, script=[{"times_ms": [5, 6, 26]}, {"ttft_ms": 1, "itl_ms": 2}])
    logs = [bench.ask(1, 4)[1] for _ in range(3)]
    bench.clock.run()
    assert [log.times for log in logs] == [[5, 6, 26, 36], [1, 3, 5, 7], [5, 6, 26, 36]]


def test_noise_scales_answers_and_jitter_scales_chunks() -> None:
    noisy = Bench(ttft_ms=100, itl_ms=100, noise=0.2)
    firsts = []
    for _ in range(400):
        _, log = noisy.ask(1, 2)
        start = noisy.clock.now / MS
        noisy.clock.run()
        firsts.append(log.times[0] - start)
        assert log.times[1] - log.times[0] == pytest.approx(firsts[-1], abs=1e-4)  # one factor an answer
    mean = sum(firsts) / len(firsts)
    cv = (sum((x - mean) ** 2 for x in firsts) / len(firsts)) ** 0.5 / mean
    assert 95 < mean < 105
    assert 0.17 < cv < 0.23
    jittery = Bench(ttft_ms=100, itl_ms=100, jitter=0.2)
    _, log = jittery.ask(1, 10)
    jittery.clock.run()
    assert len({b - a for a, b in itertools.pairwise(log.times)}) == 9


def test_requests_beyond_the_cap_wait_in_order() -> None:
    bench = Bench(ttft_ms=10, itl_ms=10, max_num_seqs=2)
    logs = [bench.ask(1, 2)[1] for _ in range(5)]
    assert len(bench.engine.waiting) == 3
    bench.clock.run()
    assert [log.times for log in logs] == [[10, 20], [10, 20], [30, 40], [30, 40], [50, 60]]
    assert bench.engine.counts.peak_running == 2


def test_a_full_pool_preempts_the_youngest_and_it_pays_again() -> None:
    # Blocks of 4 tokens, 4 of them: two sequences of 4 + 8 tokens cannot both finish.
    bench = Bench(ttft_ms=50, itl_ms=10, kv_tokens=16, block_size=4)
    old, first = bench.ask(4, 8)
    young, second = bench.ask(4, 8)
    bench.clock.run()
    assert bench.engine.counts.preemptions == young.preemptions == 1
    assert old.preemptions == 0
    assert first.times == [50 + 10 * k for k in range(8)]
    # Both held 2 blocks up to token 4; the fifth needs a third for each.  The young one has 4 tokens then, and is
    # admitted again when the old one ends at 120 ms.
    assert second.times == [50, 60, 70, 80, 170, 180, 190, 200]
    assert sum(second.counts) == 8
    assert bench.engine.counts.peak_blocks == 4
    assert bench.engine.held == bench.engine.live == 0


def test_the_peak_of_the_pool_is_what_the_script_says() -> None:
    bench = Bench(ttft_ms=10, itl_ms=10, kv_tokens=1600)
    for _ in range(5):
        bench.ask(20, 30)
    bench.clock.run()
    # The first to get its last token leaves before the others get theirs.
    assert bench.engine.counts.peak_live == 50 + 4 * 49
    assert bench.engine.counts.peak_blocks == 5 * 4
    assert bench.engine.counts.preemptions == 0


def test_choices_share_the_prompts_full_blocks() -> None:
    bench = Bench(ttft_ms=10, itl_ms=10, kv_tokens=160, block_size=16)
    sequence, _ = bench.ask(33, 4, n=3)
    bench.clock.run(until=40 * MS - 1)
    assert sequence.blocks == 2 + 3  # two full blocks once, a tail for each
    assert (sequence.live, sequence.logical) == (33 + 9, 3 * 36)


def test_steps_give_all_their_tokens_together() -> None:
    bench = Bench(pacing="steps", ttft_ms=30, itl_ms=10, itl_per_seq_ms=1)
    _, first = bench.ask(1, 3)
    bench.clock.run(until=5 * MS)
    _, second = bench.ask(1, 2)
    bench.clock.run()
    # A step with one prompt: 30 + 10 + 1; then one that takes in the second: 30 + 10 + 2; then 10 + 2.
    assert first.times == [41, 83, 95]
    assert second.times == [83, 95]
    assert not bench.engine.running


def test_an_abort_gives_everything_back_and_is_idempotent() -> None:
    bench = Bench(ttft_ms=10, itl_ms=10, kv_tokens=32, block_size=16)
    sequence, log = bench.ask(16, 10)
    waiting, _ = bench.ask(32 - 4, 4)
    bench.clock.run(until=25 * MS)
    bench.engine.abort(waiting)
    bench.engine.abort(sequence)
    bench.engine.abort(sequence)
    assert bench.engine.held == bench.engine.live == 0
    bench.clock.run()
    assert log.times == [10, 20]
    assert bench.engine.counts.finished["abort"] == 2


def test_faults_strike_after_their_tokens() -> None:
    bench = Bench(ttft_ms=10, itl_ms=10, script=[{"fault": "reset", "fault_after_tokens": 2}, {"fault": "stall"}])
    _, reset = bench.ask(1, 10)
    stalled, stall = bench.ask(1, 10)
    bench.clock.run()
    assert (reset.times, reset.fault_kind) == ([10, 20], "reset")
    assert (len(stall.times), stall.fault_kind) == (5, "stall")
    assert stalled in bench.engine.running
