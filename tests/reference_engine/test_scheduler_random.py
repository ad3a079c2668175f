"""Random operations on the whole scheduler: add, fork, branch beams, step, finish, abort (also in flight), preempt
and swap (small pools), slide windows, forget the cache.

The default suite runs 200,000 of them with fresh seeds, all policies and block sizes 1 to 256; after each one the
audit, the ledger's identity and the shadow of the cache are checked (see ``kv_shadow``).  A failure names its seed:
``random_driver(seed, policy)`` repeats it.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reference_engine import waiting
from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.request import FinishReason

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kv_shadow

SHARDS = 8
OPERATIONS = 200_000
DRIVERS = 300


def run_random(policy: str | None, operations: int, wanted: tuple[str, ...] = ()) -> Counter[str]:
    """Fresh random drivers until so many operations are done; what happened in them.

    A driver's operations have a long tail (1,000 in the mean, one with a budget of one token 47,000), so a count of
    operations alone may be one driver's.  Goes on while an event of ``wanted`` has not happened, up to ``DRIVERS``.
    """
    seen: Counter[str] = Counter()
    drivers = 0
    while seen["operations"] < operations or (drivers < DRIVERS and any(not seen[event] for event in wanted)):
        seed = random.SystemRandom().getrandbits(32)
        driver = kv_shadow.random_driver(seed, policy)
        try:
            driver.run(250)
        except BaseException as error:
            error.add_note(f"repeat with random_driver({seed}, {policy!r}).run(250)")
            raise
        seen += driver.seen
        drivers += 1
    return seen


EVENTS = ("requests", "forked", "chunks", "decodes", "copies", "finished", "aborted", "rejected 429")
PAGED_EVENTS = (*EVENTS, "preempted", "prefix hits", "swapped", "swapped in", "branched", "dropped", "forgotten")


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_invariant_holds_after_each_random_operation(shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if shard % 2:  # promotions become common
        monkeypatch.setattr(waiting, "OVERTAKE_LIMIT", 3)
        monkeypatch.setattr(waiting, "PREEMPTION_LIMIT", 1)
    policies = ("paged",) if shard else kv_shadow.RESERVING
    wanted = (*PAGED_EVENTS, *["promoted"] * (shard % 2)) if shard else EVENTS
    for policy in policies:
        operations = OPERATIONS // SHARDS // len(policies)
        seen = run_random(policy, operations, wanted)
        assert seen["operations"] >= operations
        assert not [name for name in wanted if not seen[name]], dict(seen)


@pytest.mark.slow
def test_every_invariant_holds_after_each_of_two_million_random_operations() -> None:
    assert run_random(None, 10 * OPERATIONS)["operations"] >= 10 * OPERATIONS


class SchedulerMachine(RuleBasedStateMachine):
    """The same driver under hypothesis, which shrinks a failing history to a short one."""

    @initialize(
        size=st.sampled_from((1, 2, 3, 8)),
        blocks=st.integers(1, 12),
        budget=st.integers(1, 12),
        seats=st.integers(1, 5),
        policy=st.sampled_from(("paged", "paged", "paged", *kv_shadow.RESERVING)),
        order=st.sampled_from(("fcfs", "priority")),
        caching=st.booleans(),
        index=st.sampled_from(("hash", "radix")),
        preemption=st.sampled_from(("recompute", "swap")),
        host=st.integers(0, 12),
        window=st.sampled_from((None, None, 1, 5)),
    )
    def start(
        self,
        size: int,
        blocks: int,
        budget: int,
        seats: int,
        policy: Any,
        order: Any,
        caching: bool,
        index: Any,
        preemption: Any,
        host: int,
        window: int | None,
    ) -> None:
        length = min(24, size * blocks) if policy == "paged" else max(1, size * blocks // 3)
        config = SchedulerConfig(
            max_model_len=length,
            max_num_seqs=seats,
            max_num_batched_tokens=budget,
            policy=policy,
            order=order,
            max_waiting=6,
            watermark=0.0,
            preemption=preemption,
        )
        window = window if policy == "paged" else None
        cache = CacheConfig(blocks, size, caching, host, index, window)
        self.driver = kv_shadow.Driver(0, config, cache)

    @rule(
        prompt=st.lists(st.integers(0, 1), max_size=12),
        max_tokens=st.integers(0, 12),
        n=st.integers(1, 4),
        priority=st.integers(0, 2),
        scored=st.booleans(),
        beam=st.sampled_from((0, 0, 1, 3)),
    )
    def add(self, prompt: list[int], max_tokens: int, n: int, priority: int, scored: bool, beam: int) -> None:
        self.driver.add(tuple(prompt), max_tokens, n, 0 if scored else None, priority, beam_width=beam)

    @rule()
    def reset_cache(self) -> None:
        self.driver.reset_cache()

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.driver.step()

    @precondition(lambda self: self.driver.unfinished)
    @rule(data=st.data(), in_flight=st.booleans())
    def abort(self, data: st.DataObject, in_flight: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.driver.unfinished)))
        if in_flight:
            self.driver.step(abort_in_flight=name)
        else:
            self.driver.abort(name)

    @precondition(lambda self: self.driver.scheduler.has_work)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        sequences = self.driver.scheduler.sequences
        ordinary = [seq_id for seq_id, s in sequences.items() if not s.request.params.beam_width]
        if ordinary:
            self.driver.finish(sequences[data.draw(st.sampled_from(sorted(ordinary)))], FinishReason.STOP)

    @invariant()
    def everything_adds_up(self) -> None:
        self.driver.check()

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.drain()


SchedulerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSchedulerMachine = SchedulerMachine.TestCase
