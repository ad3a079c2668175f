"""``pagedbench demo``: its plan is sound and its sentences say what the numbers say."""

from __future__ import annotations

from harness.cli.demo import BLOCK_SIZE, KV_MEMORY, MAX_MODEL_LEN, comparison, demo_plan, waste_sum
from harness.load.schedule import build_schedules
from harness.results.schema import CellSummary, Distribution, LoadInfo
from workloads.tokens import WordCounter

SMOLLM2_KV_BYTES = 2 * 30 * 3 * 64 * 4  # K and V, layers, KV heads, head size, fp32


def cell(engine: str, **fields: object) -> CellSummary:
    none = Distribution(n=0)
    values: dict[str, object] = {
        "cell_id": f"{engine}.chat", "engine": engine, "workload": "chat", "repeat": 0, "validity": "VALID",
        "load": LoadInfo(mode="closed", concurrency=24), "requests_sent": 1, "requests_ok": 1, "requests_failed": 0,
        "ttft": none, "ttft_queue": none, "ttft_schedule": none, "itl": none, "tpot": none, "e2e": none,
    }  # fmt: skip
    return CellSummary.model_validate(values | fields)


def test_both_policies_get_the_same_memory_and_the_same_requests() -> None:
    plan = demo_plan(KV_MEMORY, 0)
    paged, contiguous = plan.engines
    assert {**paged.settings, "policy": None} == {**contiguous.settings, "policy": None}
    assert (paged.settings["policy"], contiguous.settings["policy"]) == ("paged", "contiguous")
    assert [workload.name for workload in plan.workloads] == ["chat", "long-output", "concurrency"]


def test_contiguous_reservation_holds_a_few_requests_and_the_load_asks_for_thrice_as_many() -> None:
    slots = 192 * 2**20 // SMOLLM2_KV_BYTES
    held = slots // MAX_MODEL_LEN
    assert 2 <= held <= 4
    schedules = list(build_schedules(demo_plan(KV_MEMORY, 0), WordCounter(), MAX_MODEL_LEN))
    top = {schedule.workload.name: schedule.load.concurrency or 0 for schedule in schedules}
    assert all(concurrency >= 3 * held for concurrency in top.values())
    # What paged memory holds at once on average: prompt, half the answer, half a block, all within the pool.
    for schedule in schedules:
        tokens = [r.prompt_tokens + r.output_tokens / 2 + BLOCK_SIZE / 2 for r in schedule.requests]
        assert (schedule.load.concurrency or 0) * sum(tokens) / len(tokens) <= slots
    assert sum(r.output_tokens for schedule in schedules for r in schedule.requests) < 20_000  # minutes, not hours


def test_the_sentences_carry_the_sum() -> None:
    shares = {"token_states": 0.5, "reserved": 0.0, "internal": 0.02, "external": 0.0, "cached": 0.08, "free": 0.4}
    paged = cell(
        "paged", running_max=24.0, running_mean=10.0, output_tokens_per_s=200.0, kv_utilisation=0.5, kv_reserved=4000.0,
        kv_waste=0.02 / 0.52, kv_waste_sum=shares, tokens_identical_to={"contiguous.chat": 1.0},
    )  # fmt: skip
    contiguous = cell(
        "contiguous", running_max=4.0, output_tokens_per_s=100.0, kv_utilisation=0.1, kv_waste=0.9,
        kv_waste_sum={"token_states": 0.1, "reserved": 0.2, "internal": 0.6, "external": 0.1, "cached": 0, "free": 0},
    )  # fmt: skip
    text = "\n".join(comparison([paged, contiguous]))
    assert "paged held 24 requests at once, contiguous 4 (6.0x)" in text
    assert "200 against 100 (2.0x)" in text
    assert "same texts 100.0%" in text
    assert "3.8% of the slots in use = reserved for later 0.0% + internal 3.8% + external 0.0%" in text
    assert "8.0 slots a request" in text
    assert "90.0% of the slots in use = reserved for later 20.0% + internal 60.0% + external 10.0%" in text


def test_what_is_not_known_is_not_shown_as_zero() -> None:
    assert waste_sum(cell("paged")) == "not known"
    (first, _, _) = comparison([cell("paged"), cell("contiguous")])
    assert "paged held - requests" in first
