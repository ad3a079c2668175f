"""The ledger: every slot carries one word, and the words mean what the documentation says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.ledger import LedgerSnapshot, LedgerTotals
from reference_engine.request import FinishReason, Request, SamplingParams
from reference_engine.scheduler import Scheduler

SNAPSHOT = LedgerSnapshot(
    total=100, token_states=30, reserved=10, internal=20, external=5, cached=15, free=20, logical=45
)


def test_the_words_of_the_design() -> None:
    assert SNAPSHOT.allocated == 60
    assert SNAPSHOT.live == 30
    assert SNAPSHOT.evictable == 15
    assert SNAPSHOT.utilisation == 0.3
    assert SNAPSHOT.internal_fragmentation == 0.5
    assert SNAPSHOT.sharing_factor == 1.5
    assert SNAPSHOT.gauges() == {"reserved": 100, "allocated": 60, "live": 30, "evictable": 15, "logical": 45}


def test_an_empty_pool_has_no_fragmentation_and_shares_nothing() -> None:
    empty = LedgerSnapshot(total=64, token_states=0, reserved=0, internal=0, external=0, cached=0, free=64, logical=0)
    empty.check()
    assert empty.internal_fragmentation == 0.0
    assert empty.sharing_factor == 1.0
    assert empty.utilisation == 0.0


@pytest.mark.parametrize(
    "word", ["token_states", "reserved", "internal", "external", "cached", "free", "total"], ids="word {}".format
)
def test_one_slot_more_or_less_in_any_word_is_an_error(word: str) -> None:
    SNAPSHOT.check()
    for change in (1, -1):
        with pytest.raises(AuditError, match="does not add up"):
            replace(SNAPSHOT, **{word: getattr(SNAPSHOT, word) + change}).check()


def test_a_negative_word_is_an_error_even_if_the_sum_is_right() -> None:
    with pytest.raises(AuditError, match="does not add up"):
        replace(SNAPSHOT, free=-1, internal=41).check()


def test_fewer_logical_than_live_slots_is_an_error() -> None:
    with pytest.raises(AuditError, match="30 live slots but only 29 logical"):
        replace(SNAPSHOT, logical=29).check()


def test_totals_give_means_over_steps_and_nothing_before_the_first() -> None:
    totals = LedgerTotals()
    assert totals.mean("token_states") is None
    totals.tick(SNAPSHOT)
    totals.tick(replace(SNAPSHOT, token_states=50, free=0))
    assert totals.steps == 2
    assert totals.mean("token_states") == 40
    assert totals.mean("total") == 100


def scheduler(policy: str = "paged", **cache: int) -> Scheduler:
    limits = SchedulerConfig(max_model_len=32, max_num_batched_tokens=64, policy=policy, watermark=0.0)  # type: ignore[arg-type]
    return Scheduler(limits, CacheConfig(**{"num_blocks": 16, "block_size": 4, **cache}))


def advance(engine: Scheduler, token: int = 1) -> None:
    plan = engine.schedule()
    engine.commit(plan, {p.seq_id: [token] * p.num_samples for p in plan.seqs})


def words(ledger: LedgerSnapshot) -> tuple[int, ...]:
    return (
        ledger.token_states,
        ledger.reserved,
        ledger.internal,
        ledger.external,
        ledger.cached,
        ledger.free,
        ledger.logical,
    )


def test_the_paged_words_along_a_life() -> None:
    engine = scheduler()
    first = engine.add(Request("a", tuple(range(10)), SamplingParams(max_tokens=8)))
    assert words(engine.ledger()) == (0, 0, 0, 0, 0, 64, 0)
    plan = engine.schedule()
    assert words(engine.ledger()) == (0, 0, 12, 0, 0, 52, 0)  # allocated for the step in flight, not live yet
    engine.commit(plan, {first.seq_id: [7]})
    assert words(engine.ledger()) == (10, 0, 2, 0, 0, 52, 10)
    engine.add(Request("b", (*range(8), 90), SamplingParams(max_tokens=8)))
    advance(engine)  # b shares two blocks: 8 slots are live once and logical twice
    assert words(engine.ledger()) == (12, 0, 4, 0, 0, 48, 20)
    engine.finish(first, FinishReason.STOP)
    assert words(engine.ledger()) == (9, 0, 3, 0, 0, 52, 9)
    engine.abort("b")
    assert words(engine.ledger()) == (0, 0, 0, 0, 8, 56, 0)


def test_a_partial_block_shared_by_a_fork_counts_once() -> None:
    engine = scheduler()
    engine.add(Request("a", tuple(range(6)), SamplingParams(max_tokens=8, n=3)))
    advance(engine)
    assert words(engine.ledger()) == (6, 0, 2, 0, 0, 56, 18)
    advance(engine)  # each continuation has its own copy of the two tokens in the partial block
    assert words(engine.ledger()) == (4 + 3 * 3, 0, 3, 0, 0, 64 - 16, 21)


def test_the_contiguous_words_along_a_life() -> None:
    engine = scheduler("contiguous", num_blocks=19)  # two runs of 8 blocks and 3 blocks that no reservation fits in
    assert words(engine.ledger()) == (0, 0, 0, 12, 0, 64, 0)
    first = engine.add(Request("a", tuple(range(10)), SamplingParams(max_tokens=8)))
    advance(engine)
    assert words(engine.ledger()) == (10, 8, 14, 12, 0, 32, 10)
    advance(engine)
    assert words(engine.ledger()) == (11, 7, 14, 12, 0, 32, 11)
    engine.finish(first, FinishReason.STOP)
    assert words(engine.ledger()) == (0, 0, 0, 12, 0, 64, 0)


def test_rounding_a_reservation_to_blocks_is_internal() -> None:
    limits = SchedulerConfig(max_model_len=30, policy="contiguous")
    engine = Scheduler(limits, CacheConfig(num_blocks=16, block_size=8))  # runs of 32 slots
    engine.add(Request("a", tuple(range(20)), SamplingParams(max_tokens=10)))
    advance(engine)
    assert words(engine.ledger()) == (20, 10, 2, 0, 0, 96, 20)


def test_reservations_kept_for_continuations_are_in_the_ledger() -> None:
    engine = scheduler("contiguous", num_blocks=24)
    engine.add(Request("a", tuple(range(10)), SamplingParams(max_tokens=8, n=2)))
    plan = engine.schedule()
    assert words(engine.ledger()) == (0, 36, 28, 0, 0, 32, 0)
    engine.commit(plan, {plan.seqs[0].seq_id: [1, 2]})
    assert words(engine.ledger()) == (20, 16, 28, 0, 0, 32, 20)  # no sharing: both hold the prompt


def test_the_scheduler_ticks_the_ledger_once_a_step() -> None:
    engine = scheduler()
    engine.add(Request("a", tuple(range(10)), SamplingParams(max_tokens=8)))
    for _ in range(3):
        advance(engine)
    assert engine.ledger_totals.steps == 3
    assert engine.ledger_totals.mean("token_states") == (10 + 11 + 12) / 3
