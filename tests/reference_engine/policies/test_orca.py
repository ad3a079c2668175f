"""Orca's reservations and static batches: who is admitted, and what the ledger says about it."""

from __future__ import annotations

import pytest

from reference_engine.config import CacheConfig, ConfigError, SchedulerConfig
from reference_engine.kv.block_pool import AuditError
from reference_engine.policies import OrcaKVManager, StaticKVManager
from reference_engine.request import FinishReason, Request, RequestRejected, SamplingParams
from reference_engine.scheduler import Scheduler

SIZE = 4


def scheduler(policy: str, num_blocks: int = 40, **limits: int) -> Scheduler:
    config = SchedulerConfig(**{"max_model_len": 64, "policy": policy, **limits})  # type: ignore[arg-type]
    return Scheduler(config, CacheConfig(num_blocks, block_size=SIZE))


def request(name: str, prompt: int, output: int, n: int = 1) -> Request:
    return Request(name, tuple(range(prompt)), SamplingParams(max_tokens=output, n=n))


def step(engine: Scheduler) -> None:
    plan = engine.schedule()
    for new in engine.commit(plan, {p.seq_id: [9] * p.num_samples for p in plan.seqs}):
        if new.sequence.num_generated == new.sequence.request.params.max_tokens:
            engine.finish(new.sequence, FinishReason.LENGTH)
    engine.audit()


@pytest.mark.parametrize(
    ("policy", "slots"),
    [
        ("orca-max", 64),  # max_model_len
        ("orca-pow2", 32),  # 6 + 16 = 22 slots, 6 blocks, a piece of 8
        ("orca-oracle", 16),  # 6 + 9 = 15 slots, 4 blocks
    ],
)
def test_what_one_request_reserves(policy: str, slots: int) -> None:
    engine = scheduler(policy)
    engine.add(request("a", prompt=6, output=9))
    step(engine)
    ledger = engine.ledger()
    assert ledger.allocated == slots
    assert (ledger.token_states, ledger.reserved, ledger.internal) == (6, 9, slots - 15)


def test_more_run_at_once_the_better_the_guess() -> None:
    running = {}
    for policy in ("orca-max", "orca-pow2", "orca-oracle", "paged"):
        engine = scheduler(policy)
        for index in range(40):
            engine.add(request(f"r{index}", prompt=6, output=9))
        step(engine)
        running[policy] = engine.num_running
    assert running == {"orca-max": 2, "orca-pow2": 5, "orca-oracle": 10, "paged": 19}


def test_free_memory_is_external_while_it_is_of_no_use_to_the_next_in_line() -> None:
    engine = scheduler("orca-oracle", num_blocks=24)  # pieces of 16 and 8 blocks
    engine.add(request("long", prompt=30, output=30))
    step(engine)
    assert (engine.ledger().external, engine.ledger().free) == (0, 8 * SIZE)
    engine.add(request("next", prompt=30, output=30))
    engine.add(request("short", prompt=2, output=2))  # would fit, but nobody overtakes
    step(engine)
    assert (engine.ledger().external, engine.ledger().free) == (8 * SIZE, 0)
    engine.abort("next")
    step(engine)
    assert engine.ledger().external == 0


def test_pieces_below_a_reservation_are_external_for_orca_max() -> None:
    assert scheduler("orca-max", num_blocks=39).ledger().external == 7 * SIZE


def test_a_pool_without_a_piece_for_one_reservation_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"orca-max reserves 64 tokens.*but the KV pool has 15 blocks"):
        scheduler("orca-max", num_blocks=15)


def test_requests_that_can_never_fit_are_refused() -> None:
    engine = scheduler("orca-oracle", num_blocks=12)
    with pytest.raises(RequestRejected, match=r"needs 64 KV slots in one piece.*largest piece of the pool has 32"):
        engine.add(request("long", prompt=20, output=20))
    with pytest.raises(RequestRejected, match=r"n=2 needs 2 reservations of 32 slots, but the KV pool holds 1"):
        engine.add(request("wide", prompt=10, output=20, n=2))
    assert not engine.has_work


def test_the_audit_names_a_lost_piece() -> None:
    engine = scheduler("orca-pow2")
    engine.add(request("a", 6, 9))
    step(engine)
    assert isinstance(engine.kv, OrcaKVManager)
    engine.kv.buddy.take(0)
    with pytest.raises(AuditError):
        engine.audit()


def test_a_static_batch_ends_with_its_last_sequence() -> None:
    engine = scheduler("static", num_blocks=50)  # three runs of 16 blocks and a rest of two
    engine.add(request("short", prompt=3, output=2))
    engine.add(request("long", prompt=3, output=6))
    step(engine)
    step(engine)
    engine.add(request("late", prompt=3, output=2))
    for _ in range(4):
        assert (engine.num_waiting, engine.ledger().external) == (1, 2 * SIZE)
        step(engine)
    assert engine.num_running == 0
    step(engine)
    assert (engine.num_running, engine.num_waiting) == (1, 0)


def test_a_static_batch_fills_while_prompts_are_computed() -> None:
    engine = scheduler("static", num_blocks=64, max_num_batched_tokens=8)
    for index in range(6):
        engine.add(request(f"r{index}", prompt=8, output=30))
    for _ in range(6):
        step(engine)
    assert engine.num_running == 4


def test_what_ended_in_a_static_batch_keeps_its_memory() -> None:
    engine = scheduler("static", num_blocks=32)
    engine.add(request("short", prompt=3, output=1))
    engine.add(request("long", prompt=3, output=3))
    step(engine)
    assert engine.num_running == 1
    ledger = engine.ledger()
    assert (ledger.token_states, ledger.reserved, ledger.internal, ledger.free) == (3, 3, 128 - 6, 0)
    step(engine)
    step(engine)
    assert (engine.num_running, engine.ledger().allocated, engine.ledger().free) == (0, 0, 128)


def test_an_abort_of_all_opens_the_next_static_batch() -> None:
    engine = scheduler("static", num_blocks=32)
    engine.add(request("a", 3, 9))
    step(engine)
    step(engine)
    engine.add(request("b", 3, 9))
    step(engine)
    assert engine.num_waiting == 1
    engine.abort("a")
    step(engine)
    assert engine.num_running == 1
    assert isinstance(engine.kv, StaticKVManager)
