"""The contiguous policy does what systems before PagedAttention did, and what that costs is visible."""

from __future__ import annotations

import random

import pytest

from reference_engine.config import CacheConfig, ConfigError, SchedulerConfig
from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.manager import PagedKVManager
from reference_engine.plan import BlockCopy
from reference_engine.policies import ContiguousKVManager, make_manager
from reference_engine.request import FinishReason, Request, RequestRejected, SamplingParams
from reference_engine.scheduler import Scheduler


def scheduler(policy: str = "contiguous", num_blocks: int = 40, **limits: int) -> Scheduler:
    config = SchedulerConfig(**{"max_model_len": 32, "max_num_seqs": 64, "policy": policy, **limits})  # type: ignore[arg-type]
    return Scheduler(config, CacheConfig(num_blocks, block_size=4))


def request(name: str, prompt_len: int = 6, max_tokens: int = 4, n: int = 1) -> Request:
    return Request(name, tuple(range(prompt_len)), SamplingParams(max_tokens=max_tokens, n=n))


def step(engine: Scheduler) -> None:
    plan = engine.schedule()
    for new in engine.commit(plan, {p.seq_id: [9] * p.num_samples for p in plan.seqs}):
        if new.sequence.num_generated == new.sequence.request.params.max_tokens:
            engine.finish(new.sequence, FinishReason.LENGTH)


def test_the_policy_is_chosen_by_the_configuration() -> None:
    cache = CacheConfig(num_blocks=8, block_size=4)
    assert isinstance(make_manager(SchedulerConfig(max_model_len=8, policy="paged"), cache), PagedKVManager)
    assert isinstance(make_manager(SchedulerConfig(max_model_len=8, policy="contiguous"), cache), ContiguousKVManager)


def test_a_pool_below_one_reservation_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"reserves 32 tokens \(8 blocks of 4\).*has 7 blocks; raise --kv-memory"):
        scheduler(num_blocks=7)
    scheduler(num_blocks=8)


def test_tables_are_contiguous_and_grow_inside_their_run() -> None:
    engine = scheduler(num_blocks=17)
    sequences = [engine.add(request(name, max_tokens=20)) for name in "ab"]
    for _ in range(12):
        step(engine)
        for index, sequence in enumerate(sequences):
            table = engine.block_table(sequence.seq_id)
            assert table == tuple(range(8 * index, 8 * index + len(table)))
            assert len(table) == -(-sequence.computed // 4)
    assert engine.stats().preemptions == 0


def test_only_as_many_run_as_reservations_fit_however_short_they_are() -> None:
    engine = scheduler(num_blocks=40)
    for index in range(9):
        engine.add(request(f"r{index}", prompt_len=2, max_tokens=2))
    engine.commit(plan := engine.schedule(), {p.seq_id: [1] for p in plan.seqs})
    assert (engine.num_running, engine.num_waiting) == (5, 4)


def test_a_freed_run_is_used_again() -> None:
    engine = scheduler(num_blocks=8)
    for index in range(5):
        engine.add(request(f"r{index}"))
    steps = 0
    while engine.has_work:
        step(engine)
        engine.audit()
        assert engine.num_running <= 1
        steps += 1
    assert steps == 5 * 4
    assert engine.ledger().allocated == 0


def test_equal_prompts_share_nothing() -> None:
    engine = scheduler()
    first, second = engine.add(request("a", 20)), engine.add(request("b", 20))
    step(engine)
    third = engine.add(request("c", 20))
    step(engine)
    assert third.cached == 0
    tables = [set(engine.block_table(s.seq_id)) for s in (first, second, third)]
    assert not tables[0] & tables[1] | tables[1] & tables[2] | tables[0] & tables[2]
    assert engine.ledger().sharing_factor == 1.0
    assert engine.stats().prefix_hits == 0


def test_n_continuations_need_n_reservations_at_once() -> None:
    engine = scheduler(num_blocks=24)
    with pytest.raises(RequestRejected, match="n=4 needs 4 reservations, but the KV pool holds 3") as refusal:
        engine.add(request("big", n=4))
    assert (refusal.value.status, refusal.value.param) == (400, "n")
    engine.add(request("one"))
    engine.add(request("three", n=3))
    step(engine)
    assert engine.num_running == 1  # two free runs are not enough for three continuations
    while engine.num_waiting:
        assert engine.num_running <= 1
        step(engine)
    assert engine.num_running == 3


def test_a_fork_copies_the_prompt_into_the_childs_own_run() -> None:
    engine = scheduler()
    engine.add(request("a", prompt_len=6, n=3, max_tokens=5))
    plan = engine.schedule()
    assert plan.copies == ()
    engine.commit(plan, {0: [1, 2, 3]})
    engine.audit()
    plan = engine.schedule()
    assert [p.tokens for p in plan.seqs] == [(1,), (2,), (3,)]
    assert sorted(plan.copies, key=lambda c: c.target) == [
        BlockCopy(0, 8), BlockCopy(1, 9), BlockCopy(0, 16), BlockCopy(1, 17)
    ]  # fmt: skip
    engine.commit(plan, {p.seq_id: [1] for p in plan.seqs})
    assert engine.schedule().copies == ()


def test_copies_into_a_run_that_was_given_up_are_dropped() -> None:
    engine = scheduler()
    engine.add(request("a", n=2, max_tokens=5))
    plan = engine.schedule()
    engine.commit(plan, {0: [1, 2]})
    engine.finish(engine.sequences[1], FinishReason.STOP)
    assert engine.schedule().copies == ()


def test_aborting_before_the_fork_returns_the_spare_runs() -> None:
    engine = scheduler(num_blocks=24, max_num_batched_tokens=4)
    engine.add(request("a", n=3))
    plan = engine.schedule()
    engine.abort("a")
    assert engine.commit(plan, {}) == ()
    engine.audit()
    assert engine.ledger().free == 96


@pytest.mark.parametrize("damage", ["two owners", "lost", "outside", "frozen", "short"])
def test_the_audit_names_the_damage(damage: str) -> None:
    engine = scheduler(num_blocks=24)
    sequence = engine.add(request("a", prompt_len=10, max_tokens=10))
    step(engine)
    engine.audit()
    kv = engine.kv
    assert isinstance(kv, ContiguousKVManager)
    reservation = kv._reservations[sequence.seq_id]
    if damage == "two owners":
        kv._free_runs.append(reservation.run)
    elif damage == "lost":
        kv._free_runs.pop()
    elif damage == "outside":
        reservation.table.blocks[1] = 20
    elif damage == "frozen":
        reservation.table.frozen = (3, 4)
    else:
        sequence.computed = 17
        sequence.tokens += [0] * 10
    with pytest.raises(AuditError):
        engine.audit()


def test_paged_holds_several_times_the_requests_of_contiguous_in_the_same_pool() -> None:
    """ShareGPT-like lengths at a context of 2048: the reason for paging, in numbers of the ledger."""
    r = random.Random(5)
    lengths = [
        (min(1024, int(r.lognormvariate(4.6, 1.0)) + 4), min(1000, int(r.lognormvariate(5.4, 0.8)) + 1))
        for _ in range(200)
    ]
    running, used = {}, {}
    for policy in ("paged", "contiguous"):
        config = SchedulerConfig(max_model_len=2048, max_num_seqs=256, policy=policy)  # type: ignore[arg-type]
        engine = Scheduler(config, CacheConfig(num_blocks=1024, block_size=16))  # eight reservations
        for index, (prompt, output) in enumerate(lengths):
            tokens = tuple(r.randrange(50_000) for _ in range(prompt))
            engine.add(Request(f"r{index}", tokens, SamplingParams(max_tokens=output)))
        counts = []
        while engine.num_waiting:
            step(engine)
            counts.append(engine.num_running)
        running[policy] = sum(counts) / len(counts)
        means = {word: engine.ledger_totals.mean(word) or 0.0 for word in ("token_states", "reserved", "internal")}
        used[policy] = means["token_states"] / sum(means.values())
    assert running["contiguous"] <= 8
    assert running["paged"] >= 3 * running["contiguous"], running
    assert used["paged"] >= 0.94, used  # block rounding alone
    assert used["contiguous"] <= 0.3, used
