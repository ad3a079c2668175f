"""The scheduler's rules, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from reference_engine import waiting
from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.kv.block_pool import AuditError
from reference_engine.plan import BlockCopy, StepPlan
from reference_engine.request import FinishReason, Request, RequestRejected, SamplingParams, Sequence
from reference_engine.scheduler import CommittedToken, Scheduler

Draw = Callable[[int], int]


class Engine(Scheduler):
    """A scheduler with a model that draws whatever ``draw(seq_id)`` says, and ends sequences at max_tokens."""

    def __init__(self, num_blocks: int = 32, block_size: int = 4, caching: bool = True, **limits: object) -> None:
        defaults: dict[str, object] = {"max_model_len": 128, "watermark": 0.0}
        config = SchedulerConfig(**{**defaults, **limits})  # type: ignore[arg-type]
        super().__init__(config, CacheConfig(num_blocks, block_size, caching))
        self.log: list[int] = []  # seq_ids in order of their end

    def ask(
        self,
        name: str,
        prompt: int | Iterable[int],
        max_tokens: int = 4,
        priority: int = 0,
        salt: str = "",
        **params: int,
    ) -> Sequence:
        """Add a request; an int prompt means so many tokens that no other prompt starts with."""
        tokens = tuple(hash((name, i)) % 10**9 for i in range(prompt)) if isinstance(prompt, int) else tuple(prompt)
        sampling = SamplingParams(max_tokens=max_tokens, **params)  # type: ignore[arg-type]
        return self.add(Request(name, tokens, sampling, priority=priority, cache_salt=salt))

    def settle(self, plan: StepPlan, draw: Draw = lambda seq_id: 1_000 + seq_id) -> tuple[CommittedToken, ...]:
        self.audit()
        committed = self.commit(plan, {p.seq_id: [draw(p.seq_id)] * p.num_samples for p in plan.seqs})
        for sequence, _, _ in committed:
            if sequence.num_generated == sequence.request.params.max_tokens:
                self.finish(sequence, FinishReason.LENGTH)
                self.log.append(sequence.seq_id)
        self.audit()
        return committed

    def step(self) -> StepPlan:
        plan = self.schedule()
        self.settle(plan)
        return plan

    def steps(self, count: int) -> list[StepPlan]:
        return [self.step() for _ in range(count)]

    def drain(self, limit: int = 10_000) -> int:
        """Steps until everything has ended."""
        for count in range(limit):
            if not self.has_work:
                return count
            self.step()
        raise AssertionError(f"{self.num_unfinished} sequences unfinished after {limit} steps")


def shares(plan: StepPlan) -> dict[int, int]:
    return {p.seq_id: p.query_len for p in plan.seqs}


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("prompt", "params", "param", "message"),
    [
        ((), {}, "prompt", "the prompt is empty"),
        ((1,), {"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, not 0"),
        ((1,), {"n": 0}, "n", "n must be at least 1"),
        ((1,), {"n": 5}, "n", "n=5 exceeds the 4 sequences"),
        ((1,) * 30, {"max_tokens": 11}, "max_tokens", "is 41, more than the context length of 40"),
        ((1,) * 40, {"max_tokens": 1}, "prompt", "more than the context length of 40"),
        ((1,) * 20, {"max_tokens": 20}, "max_tokens", "needs 39 KV slots, but the whole pool has 32"),
    ],
)
def test_what_can_never_run_is_a_400_that_names_the_field(
    prompt: tuple[int, ...], params: dict[str, int], param: str, message: str
) -> None:
    engine = Engine(num_blocks=8, max_model_len=40, max_num_seqs=4)
    with pytest.raises(RequestRejected, match=message) as refusal:
        engine.ask("a", prompt, **params)
    assert (refusal.value.status, refusal.value.param) == (400, param)
    assert not engine.has_work


def test_a_request_that_fills_the_pool_to_the_last_slot_runs() -> None:
    engine = Engine(num_blocks=8, max_model_len=40)
    engine.ask("a", 20, max_tokens=13)  # 32 slots: the last token is returned, never computed
    engine.drain()
    assert engine.stats().generation_tokens == 13
    assert engine.stats().preemptions == 0


def test_a_full_queue_is_a_429_and_running_sequences_do_not_count() -> None:
    engine = Engine(max_waiting=2, max_num_seqs=1)
    engine.ask("a", 4)
    engine.step()
    engine.ask("b", 4)
    engine.ask("c", 4)
    with pytest.raises(RequestRejected, match="the queue is full \\(2 sequences wait\\)") as refusal:
        engine.ask("d", 4)
    assert refusal.value.status == 429
    engine.abort("b")
    engine.ask("d", 4)


def test_a_request_id_in_use_is_refused_and_free_again_afterwards() -> None:
    engine = Engine()
    engine.ask("a", 4)
    with pytest.raises(RequestRejected, match="'a' is in use"):
        engine.ask("a", 4)
    engine.drain()
    engine.ask("a", 4)


# -------------------------------------------------------------------- the budget


def test_a_long_prompt_is_computed_in_chunks_and_only_the_last_one_samples() -> None:
    engine = Engine(max_num_batched_tokens=4)
    sequence = engine.ask("a", 10)
    plans = engine.steps(4)
    assert [(p.seqs[0].start, p.seqs[0].query_len, p.seqs[0].num_samples) for p in plans] == [
        (0, 4, 0),
        (4, 4, 0),
        (8, 2, 1),
        (10, 1, 1),
    ]
    assert [p.seqs[0].tokens for p in plans[:3]] == [
        tuple(sequence.tokens[:4]),
        tuple(sequence.tokens[4:8]),
        tuple(sequence.tokens[8:10]),
    ]


def test_decodes_come_first_and_a_chunk_takes_what_is_left() -> None:
    engine = Engine(max_num_batched_tokens=8)
    short = [engine.ask(name, 3, max_tokens=20) for name in "ab"]
    engine.step()
    long = engine.ask("long", 40)
    for _ in range(4):
        plan = engine.step()
        assert list(shares(plan).items()) == [(short[0].seq_id, 1), (short[1].seq_id, 1), (long.seq_id, 6)]


def test_one_step_mixes_prompts_until_the_budget_is_spent() -> None:
    engine = Engine(max_num_batched_tokens=10)
    a, b, c = (engine.ask(name, 4, max_tokens=9) for name in "abc")
    assert shares(engine.step()) == {a.seq_id: 4, b.seq_id: 4, c.seq_id: 2}
    assert shares(engine.step()) == {a.seq_id: 1, b.seq_id: 1, c.seq_id: 2}


def test_a_budget_below_the_number_of_decodes_serves_the_oldest_first_and_everyone_in_the_end() -> None:
    engine = Engine(max_num_batched_tokens=2)
    for name in "abcde":
        engine.ask(name, 2, max_tokens=5)
    engine.drain(limit=40)
    assert engine.log == [0, 1, 2, 3, 4]


def test_no_more_than_max_num_seqs_run() -> None:
    engine = Engine(max_num_seqs=3)
    for index in range(7):
        engine.ask(f"r{index}", 2)
    engine.step()
    assert (engine.num_running, engine.num_waiting, engine.num_unfinished) == (3, 4, 7)


# -------------------------------------------------------------------- admission


def test_the_queue_is_first_come_first_served_even_if_a_later_one_would_fit() -> None:
    engine = Engine(num_blocks=8, max_num_batched_tokens=64)
    engine.ask("running", 14, max_tokens=8)
    engine.step()
    large, small = engine.ask("large", 20), engine.ask("small", 2)
    plan = engine.step()
    assert engine.num_waiting == 2
    assert plan.num_tokens == 1
    engine.drain()
    assert engine.log.index(large.seq_id) < engine.log.index(small.seq_id)


def test_all_known_tokens_must_fit_before_the_first_chunk_is_computed() -> None:
    engine = Engine(num_blocks=8, max_num_batched_tokens=4)
    engine.ask("a", 16, max_tokens=8)
    engine.step()
    engine.ask("b", 17)  # its first chunk would fit, but not beside what `a` still needs for its own prompt
    engine.steps(3)
    assert engine.num_running == 1
    assert engine.ledger().free == 32 - 16
    assert engine.stats().preemptions == 0


@pytest.mark.parametrize(("watermark", "running"), [(0.0, 2), (0.25, 1)])
def test_the_watermark_keeps_blocks_free_when_another_one_is_admitted(watermark: float, running: int) -> None:
    engine = Engine(num_blocks=8, watermark=watermark)
    engine.ask("a", 16, max_tokens=2)
    engine.ask("b", 12, max_tokens=2)
    engine.step()
    assert engine.num_running == running


def test_the_watermark_does_not_keep_a_lone_request_out() -> None:
    engine = Engine(num_blocks=8, watermark=0.9)
    engine.ask("a", 30, max_tokens=2)
    engine.step()
    assert engine.num_running == 1


# -------------------------------------------------------------------- preemption


def test_the_latest_arrival_loses_its_blocks_and_comes_back_first_with_all_its_tokens() -> None:
    engine = Engine(num_blocks=8, caching=False)
    a, b = engine.ask("a", 15, max_tokens=12), engine.ask("b", 15, max_tokens=12)
    later = engine.ask("later", 2, max_tokens=2)
    engine.step()
    engine.step()
    assert later.num_generated == 0
    plan = engine.step()  # both sit at 17 tokens and need a fifth block; there are eight
    assert plan.preempted == (b.seq_id,)
    assert shares(plan) == {a.seq_id: 1}
    assert (b.computed, b.scheduled, b.num_generated, b.preemptions) == (0, 0, 2, 1)
    tokens = list(b.tokens)
    assert engine.block_table(b.seq_id) == ()
    engine.drain()
    assert engine.log == [a.seq_id, b.seq_id, later.seq_id] or engine.log == [a.seq_id, later.seq_id, b.seq_id]
    assert b.tokens[: len(tokens)] == tokens
    assert b.num_generated == 12
    assert engine.stats().preemptions == 1
    assert engine.stats().recomputed_tokens == 16


def test_a_preempted_sequence_finds_its_own_cached_blocks_again() -> None:
    engine = Engine(num_blocks=9)
    a, b = engine.ask("a", 16, max_tokens=12), engine.ask("b", 16, max_tokens=12)
    while not b.preemptions:
        engine.step()
    a_end = engine.steps(1)
    assert a_end[0].preempted == ()
    engine.abort("a")
    plan = engine.step()
    assert plan.seqs[0].seq_id == b.seq_id
    assert plan.seqs[0].start > 0
    assert b.cached == 0  # what it found when first admitted; reported as usage, so never more than the prompt
    assert engine.stats().prefix_hits == 0
    assert engine.stats().recomputed_tokens < 16
    assert a.finish_reason is FinishReason.ABORT


def test_a_victim_that_was_already_in_the_plan_leaves_it_and_returns_its_share_of_the_budget() -> None:
    engine = Engine(num_blocks=8, max_num_batched_tokens=6, caching=False, order="priority")
    lowly = engine.ask("lowly", 2, max_tokens=20, priority=1)
    engine.step()
    urgent = engine.ask("urgent", 26, max_tokens=2, priority=0)
    plans = engine.steps(5)
    assert shares(plans[3]) == {lowly.seq_id: 1, urgent.seq_id: 5}
    assert plans[4].preempted == (lowly.seq_id,)  # it had its decode already when the prompt's chunk found no block
    assert shares(plans[4]) == {urgent.seq_id: 5}
    assert lowly.computed == 0


def test_the_least_urgent_sequence_pauses_and_keeps_its_blocks_instead_of_evicting_itself() -> None:
    engine = Engine(num_blocks=8, caching=False)
    engine.ask("a", 14, max_tokens=3)
    b = engine.ask("b", 15, max_tokens=12)
    plans = engine.steps(3)
    assert [b.seq_id in shares(p) for p in plans] == [True, True, False]  # all 8 blocks are held, b's are full
    assert b.computed == 16
    assert b.preemptions == 0
    engine.drain()
    assert engine.stats().preemptions == 0


def test_a_chunk_shrinks_to_the_room_there_is() -> None:
    engine = Engine(num_blocks=8, caching=False, max_num_batched_tokens=8)
    a = engine.ask("a", 8, max_tokens=16)
    engine.step()
    b = engine.ask("b", 20, max_tokens=2)
    seen = []
    while not b.num_generated:
        plan = engine.step()
        seen.append(shares(plan).get(b.seq_id, 0))
    assert sum(seen) >= 20
    assert a.preemptions == 0


def test_nothing_is_admitted_while_someone_is_short_of_blocks() -> None:
    engine = Engine(num_blocks=8, caching=False)
    engine.ask("a", 15, max_tokens=12)
    b = engine.ask("b", 15, max_tokens=12)
    engine.steps(2)
    engine.ask("tiny", 1, max_tokens=1)
    plan = engine.step()
    assert plan.preempted == (b.seq_id,)
    assert engine.num_running == 1
    assert engine.num_waiting == 2


def test_a_sequence_beyond_its_max_tokens_is_reported_instead_of_spinning() -> None:
    engine = Engine(num_blocks=2, max_model_len=8)
    sequence = engine.ask("a", 6, max_tokens=2)
    for _ in range(3):  # the third token is one too many, and the pool's last slot
        engine.commit(engine.schedule(), {sequence.seq_id: [1]})
    with pytest.raises(RuntimeError, match="reached prompt \\+ max_tokens and was not finished"):
        engine.schedule()


# -------------------------------------------------------------------- priorities


def test_urgent_requests_are_admitted_first_and_equals_in_order_of_arrival() -> None:
    engine = Engine(order="priority", max_num_seqs=1)
    for name, priority in (("a", 2), ("b", 1), ("c", 2), ("d", 1), ("e", -3)):
        engine.ask(name, 2, max_tokens=1, priority=priority)
    engine.drain()
    assert engine.log == [4, 1, 3, 0, 2]


def test_fcfs_ignores_priorities() -> None:
    engine = Engine(max_num_seqs=1)
    for name, priority in (("a", 2), ("b", 0), ("c", 1)):
        engine.ask(name, 2, max_tokens=1, priority=priority)
    engine.drain()
    assert engine.log == [0, 1, 2]


def test_the_victim_is_the_least_urgent_not_the_latest() -> None:
    engine = Engine(num_blocks=8, order="priority", caching=False)
    lowly = engine.ask("lowly", 15, max_tokens=12, priority=5)
    urgent = engine.ask("urgent", 15, max_tokens=12, priority=0)
    engine.steps(2)
    assert engine.step().preempted == (lowly.seq_id,)
    assert urgent.preemptions == 0


def test_an_urgent_arrival_takes_the_place_of_less_urgent_ones_for_seats_and_for_memory() -> None:
    engine = Engine(order="priority", max_num_seqs=2)
    a, b = engine.ask("a", 4, max_tokens=20, priority=1), engine.ask("b", 4, max_tokens=20, priority=2)
    engine.step()
    urgent = engine.ask("urgent", 4, max_tokens=3, priority=0)
    plan = engine.step()
    assert plan.preempted == (b.seq_id,)
    assert set(shares(plan)) == {a.seq_id, urgent.seq_id}

    engine = Engine(num_blocks=8, order="priority")
    a, b, c = (engine.ask(name, 8, max_tokens=4, priority=p) for name, p in (("a", 1), ("b", 2), ("c", 3)))
    engine.step()
    urgent = engine.ask("urgent", 12, max_tokens=3, priority=0)
    plan = engine.step()
    assert c.seq_id in plan.preempted
    assert urgent.seq_id in shares(plan)
    assert a.preemptions == 0


def test_an_urgent_arrival_does_not_wait_for_the_chunks_of_a_less_urgent_prompt() -> None:
    engine = Engine(order="priority", max_num_batched_tokens=4)
    lowly = engine.ask("lowly", 40, priority=1)
    engine.step()
    urgent, equal = engine.ask("urgent", 6, priority=0), engine.ask("equal", 6, priority=1)
    assert shares(engine.step()) == {urgent.seq_id: 4}
    assert shares(engine.step()) == {urgent.seq_id: 2, lowly.seq_id: 2}
    assert shares(engine.step()) == {urgent.seq_id: 1, lowly.seq_id: 3}
    assert equal.computed == 0
    assert engine.stats().preemptions == 0


def test_an_equal_priority_displaces_nobody() -> None:
    engine = Engine(order="priority", max_num_seqs=1)
    engine.ask("a", 4, max_tokens=8, priority=1)
    engine.step()
    engine.ask("b", 4, priority=1)
    engine.steps(3)
    assert engine.stats().preemptions == 0


def test_nobody_is_displaced_when_it_would_not_help() -> None:
    engine = Engine(num_blocks=8, order="priority")
    engine.ask("a", 20, max_tokens=8, priority=0)
    engine.ask("b", 4, max_tokens=8, priority=3)
    engine.step()
    engine.ask("urgent", 24, max_tokens=3, priority=1)  # b's one block is not enough, and a is more urgent
    engine.steps(3)
    assert engine.stats().preemptions == 0


def endless_urgency(engine: Engine, lowly: Sequence, limit: int) -> int:
    """Steps until ``lowly`` ends while two urgent requests arrive every step."""
    for count in range(limit):
        if lowly.is_finished:
            return count
        for half in range(2):
            if engine.num_waiting < 20:
                engine.ask(f"u{count}-{half}", 6, max_tokens=3, priority=0)
        engine.step()
    return limit


def test_an_endless_stream_of_urgent_requests_starves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most OVERTAKE_LIMIT admissions pass the oldest; with two seats and three steps a request, about 100 steps."""
    bound = 3 * waiting.OVERTAKE_LIMIT
    engine = Engine(order="priority", max_num_seqs=2)
    lowly = engine.ask("lowly", 6, max_tokens=10, priority=9)
    assert endless_urgency(engine, lowly, 10 * bound) < bound

    monkeypatch.setattr(waiting, "OVERTAKE_LIMIT", 10**9)  # without the rule it would starve
    monkeypatch.setattr(waiting, "PREEMPTION_LIMIT", 10**9)
    engine = Engine(order="priority", max_num_seqs=2)
    lowly = engine.ask("lowly", 6, max_tokens=10, priority=9)
    assert endless_urgency(engine, lowly, 10 * bound) == 10 * bound


def test_one_admission_in_overtake_limit_goes_to_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "OVERTAKE_LIMIT", 4)
    engine = Engine(order="priority", max_num_seqs=1)
    for index in range(3):
        engine.ask(f"low{index}", 2, max_tokens=1, priority=5)
    for index in range(12):
        engine.ask(f"high{index}", 2, max_tokens=1, priority=0)
    engine.drain()
    assert engine.log == [3, 4, 5, 6, 0, 7, 8, 9, 10, 1, 11, 12, 13, 14, 2]


def test_a_sequence_loses_its_blocks_to_later_arrivals_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PREEMPTION_LIMIT", 3)
    engine = Engine(order="priority", max_num_seqs=1)
    lowly = engine.ask("lowly", 4, max_tokens=30, priority=5)
    for index in range(10):
        while not engine.block_table(lowly.seq_id):
            engine.step()
        engine.ask(f"u{index}", 2, max_tokens=1, priority=0)
        engine.step()
    assert lowly.preemptions == 3
    engine.drain()
    assert lowly.num_generated == 30


@pytest.mark.parametrize("order", ["fcfs", "priority"])
def test_losing_blocks_to_older_sequences_promotes_nobody(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise memory pressure alone would turn the order round, as the second half shows."""

    def preemptions() -> list[int]:
        engine = Engine(num_blocks=6, caching=False, order=order)
        sequences = [
            engine.ask("abc"[i], prompt, tokens) for i, (prompt, tokens) in enumerate([(4, 13), (1, 7), (1, 11)])
        ]
        engine.drain()
        return [sequence.preemptions for sequence in sequences]

    monkeypatch.setattr(waiting, "PREEMPTION_LIMIT", 1)
    assert preemptions() == [0, 0, 1]
    original = waiting.WaitingQueue.push

    def push(queue: waiting.WaitingQueue, entry: waiting.Entry) -> None:
        entry.losses = entry.sequence.preemptions
        original(queue, entry)

    monkeypatch.setattr(waiting.WaitingQueue, "push", push)
    assert preemptions()[0] == 1


# -------------------------------------------------------------------- n continuations


def test_n_continuations_fork_off_one_prompt() -> None:
    engine = Engine()
    first = engine.ask("a", 6, max_tokens=3, n=3)
    plan = engine.schedule()
    assert plan.seqs[0].num_samples == 3
    assert engine.num_running == 1
    committed = engine.commit(plan, {first.seq_id: [10, 20, 30]})
    assert [(c.sequence.index, c.token, c.draw_index) for c in committed] == [(0, 10, 0), (1, 20, 1), (2, 30, 2)]
    assert committed[0].sequence is first
    assert [c.sequence.tokens[-1] for c in committed] == [10, 20, 30]
    assert engine.num_running == 3
    assert len({engine.block_table(c.sequence.seq_id) for c in committed}) == 1
    plan = engine.schedule()
    assert [p.tokens for p in plan.seqs] == [(10,), (20,), (30,)]
    assert [p.num_samples for p in plan.seqs] == [1, 1, 1]
    assert plan.copies == (BlockCopy(1, 2), BlockCopy(1, 3))
    engine.settle(plan)
    engine.drain()
    assert engine.stats().prompt_tokens == 6
    assert engine.stats().generation_tokens == 9


def test_continuations_take_their_seats_at_admission() -> None:
    engine = Engine(max_num_seqs=4, max_num_batched_tokens=2)
    engine.ask("a", 6, n=3, max_tokens=6)
    engine.step()
    engine.ask("b", 2, n=2)
    engine.ask("c", 2)
    engine.step()
    assert engine.num_running == 1  # one seat is free, b needs two, c waits behind b
    engine.drain()


def test_continuations_that_do_not_fit_together_run_one_after_the_other() -> None:
    engine = Engine(num_blocks=9, max_model_len=40)
    engine.ask("a", 30, max_tokens=6, n=4)  # alone, the prompt and one continuation fill the pool
    engine.drain(limit=100)
    assert engine.stats().generation_tokens == 24
    assert engine.stats().preemptions > 0


def test_a_parent_preempted_before_its_fork_still_forks() -> None:
    engine = Engine(order="priority", max_num_seqs=3, max_num_batched_tokens=4)
    parent = engine.ask("a", 10, max_tokens=2, n=3, priority=1)
    engine.step()
    engine.ask("urgent", 4, max_tokens=2, priority=0)
    engine.step()
    assert parent.preemptions == 1
    engine.drain()
    assert engine.stats().generation_tokens == 3 * 2 + 2


def test_children_end_independently_of_their_parent() -> None:
    engine = Engine()
    parent = engine.ask("a", 6, max_tokens=5, n=2)
    engine.step()
    child = engine.sequences[1]
    engine.finish(parent, FinishReason.STOP)
    engine.audit()
    engine.drain()
    assert child.num_generated == 5
    assert child.finish_reason is FinishReason.LENGTH


# -------------------------------------------------------------------- ends


def test_abort_ends_every_sequence_of_the_request_once() -> None:
    engine = Engine()
    engine.ask("a", 6, n=3)
    engine.ask("b", 6)
    engine.step()
    ended = engine.abort("a")
    assert [(s.index, s.finish_reason) for s in ended] == [(i, FinishReason.ABORT) for i in range(3)]
    assert engine.abort("a") == ()
    assert engine.abort("never seen") == ()
    assert engine.num_unfinished == 1
    engine.audit()


def test_abort_before_the_first_step_and_in_the_middle_of_a_prompt() -> None:
    engine = Engine(max_num_batched_tokens=4)
    engine.ask("a", 12)
    assert len(engine.abort("a")) == 1
    engine.ask("b", 12)
    engine.steps(2)
    assert len(engine.abort("b")) == 1
    assert engine.ledger().allocated == 0
    assert not engine.has_work
    assert engine.schedule().is_empty


def test_what_ends_while_a_step_is_in_flight_is_skipped_by_its_commit() -> None:
    engine = Engine()
    a, b = engine.ask("a", 9), engine.ask("b", 9)
    plan = engine.schedule()
    engine.abort("a")
    committed = engine.settle(plan)
    assert [c.sequence for c in committed] == [b]
    assert a.num_generated == 0
    fresh = engine.ask("again", a.tokens)
    engine.step()
    assert fresh.cached == 0  # the aborted step's blocks were never shown to anyone


def test_a_failed_step_is_given_up_by_aborting_and_committing_nothing() -> None:
    engine = Engine()
    engine.ask("a", 9, n=2)
    engine.ask("b", 9)
    plan = engine.schedule()
    for name in "ab":
        engine.abort(name)
    assert engine.commit(plan, {}) == ()
    assert engine.schedule().is_empty
    engine.audit()


def test_finishing_twice_keeps_the_first_reason() -> None:
    engine = Engine()
    sequence = engine.ask("a", 5)
    engine.step()
    engine.finish(sequence, FinishReason.STOP)
    engine.finish(sequence, FinishReason.LENGTH)
    assert sequence.finish_reason is FinishReason.STOP
    assert engine.abort("a") == ()
    engine.audit()


def test_schedule_and_commit_alternate() -> None:
    engine = Engine()
    sequence = engine.ask("a", 5)
    assert engine.commit(StepPlan(0, ()), {}) == ()
    plan = engine.schedule()
    with pytest.raises(RuntimeError, match="step 0 was not committed"):
        engine.schedule()
    for samples in ({}, {sequence.seq_id: []}, {sequence.seq_id: [1, 2]}):
        with pytest.raises(ValueError, match="sequence 0 needs 1 sampled tokens"):
            engine.commit(plan, samples)
    engine.commit(plan, {sequence.seq_id: [1]})
    with pytest.raises(ValueError, match="step 0 is not in flight"):
        engine.commit(plan, {sequence.seq_id: [1]})


def test_lookups() -> None:
    engine = Engine(max_num_seqs=1)
    a, b = engine.ask("a", 5), engine.ask("b", 5)
    engine.step()
    assert engine.sequences == {a.seq_id: a, b.seq_id: b}
    with pytest.raises(TypeError):
        engine.sequences[5] = a  # type: ignore[index]
    assert len(engine.block_table(a.seq_id)) == 2
    assert engine.block_table(b.seq_id) == ()
    engine.abort("a")
    with pytest.raises(KeyError):
        engine.block_table(a.seq_id)


# -------------------------------------------------------------------- the prefix cache


@pytest.mark.parametrize("block_size", [1, 4, 7])
@pytest.mark.parametrize("length", range(1, 16))
def test_a_repeated_prompt_hits_all_its_full_blocks_but_always_computes_a_token(block_size: int, length: int) -> None:
    engine = Engine(block_size=block_size, num_blocks=64)
    prompt = list(range(length))
    engine.ask("cold", prompt)
    engine.drain()
    for name in ("warm", "warm again"):
        warm = engine.ask(name, prompt)
        plan = engine.step()
        assert warm.cached == plan.seqs[0].start == (length - 1) // block_size * block_size
        assert plan.seqs[0].query_len == length - warm.cached >= 1
        assert plan.seqs[0].num_samples == 1
        engine.drain()


def test_generated_tokens_are_cached_like_prompts() -> None:
    engine = Engine()
    first = engine.ask("turn 1", 6, max_tokens=7)
    engine.drain()
    second = engine.ask("turn 2", [*first.tokens, 5, 6])
    engine.step()
    assert second.cached == 12  # 12 of its 13 tokens were computed


def test_equal_prompts_in_one_step_do_not_read_each_others_unwritten_blocks() -> None:
    engine = Engine()
    a, b = engine.ask("a", range(9)), engine.ask("b", range(9))
    plan = engine.schedule()
    assert shares(plan) == {a.seq_id: 9, b.seq_id: 9}
    assert not set(plan.seqs[0].block_table) & set(plan.seqs[1].block_table)
    engine.settle(plan)
    assert engine.block_table(a.seq_id)[:2] == engine.block_table(b.seq_id)[:2]


def test_salts_and_a_switched_off_cache_share_nothing() -> None:
    engine = Engine()
    engine.ask("a", range(9), salt="x")
    engine.drain()
    assert engine.ask("b", range(9), salt="y").cached == 0
    engine.drain()
    same = engine.ask("c", range(9), salt="x")
    engine.drain()
    assert same.cached == 8
    off = Engine(caching=False)
    for name in "ab":
        cold = off.ask(name, range(9))
        off.drain()
        assert cold.cached == 0
    assert off.stats().prefix_queries == 0
    assert off.ledger().cached == 0


def test_prompt_logprobs_compute_every_row_of_a_warm_prompt() -> None:
    engine = Engine(max_num_batched_tokens=4)
    engine.ask("cold", range(10))
    engine.drain()
    scored = engine.ask("scored", range(10), max_tokens=3, prompt_logprobs=0)
    plans = [engine.step() for _ in range(5)]
    assert scored.cached == 0
    assert [(p.seqs[0].start, p.seqs[0].query_len, p.seqs[0].prompt_logprobs) for p in plans] == [
        (0, 4, True),
        (4, 4, True),
        (8, 2, True),
        (10, 1, False),
        (11, 1, False),
    ]


def test_a_scored_prompt_that_was_preempted_repeats_only_what_nobody_has_seen() -> None:
    engine = Engine(max_num_batched_tokens=4, max_num_seqs=1, order="priority")
    engine.ask("cold", range(16))
    engine.drain()
    scored = engine.ask("scored", range(16), max_tokens=2, prompt_logprobs=0, priority=1)
    rows: list[int] = []
    plans = engine.steps(2)
    engine.ask("urgent", [7], max_tokens=1)
    while engine.has_work:
        plans.append(engine.step())
    for plan in plans:
        for part in plan.seqs:
            if part.prompt_logprobs:
                rows += range(part.start, part.seq_len)
    assert scored.preemptions == 1
    assert sorted(set(rows)) == list(range(16))
    assert len(rows) == 16


def test_a_prompt_that_cannot_share_memory_waits_no_longer_because_its_prefix_is_cached() -> None:
    """Blocks that only the cache holds are room, not obstacles."""
    engine = Engine(num_blocks=4)
    engine.ask("a", range(12), max_tokens=1)
    engine.drain()
    assert engine.ledger().cached == 12
    other = engine.ask("b", 14, max_tokens=2)
    engine.drain()
    assert other.num_generated == 2


# -------------------------------------------------------------------- counters


def test_counters() -> None:
    engine = Engine()
    engine.ask("a", range(9), max_tokens=3)
    engine.drain()
    engine.ask("b", range(9), max_tokens=2, n=2)
    engine.drain()
    engine.ask("c", range(9), max_tokens=2, prompt_logprobs=1)
    engine.drain()
    stats = engine.stats()
    assert stats.steps == 3 + 2 + 2
    assert (stats.prefix_queries, stats.prefix_hits) == (18, 8)
    assert stats.prompt_tokens == 27
    assert stats.generation_tokens == 3 + 4 + 2
    assert (stats.preemptions, stats.recomputed_tokens) == (0, 0)


@pytest.mark.parametrize("damage", ["seats", "holders", "lost", "waits computed", "beyond known"])
def test_the_audit_names_damage_to_the_queues(damage: str) -> None:
    engine = Engine(max_num_seqs=1)
    running, queued = engine.ask("a", 5), engine.ask("b", 5)
    engine.step()
    engine.audit()
    if damage == "seats":
        engine._seats += 1
    elif damage == "holders":
        engine.kv.free(running.seq_id)
    elif damage == "lost":
        engine._waiting.remove(engine._entries[queued.seq_id])
    elif damage == "waits computed":
        queued.computed = 4
    else:
        running.computed = running.known + 1
    with pytest.raises(AuditError):
        engine.audit()
