"""The verdict says what the data supports and not a word more."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.dataset import Dataset, load_dataset
from reports.verdict import Verdict, judge, plain

Draft = Callable[..., Any]


@pytest.fixture
def verdict_of(tmp_path: Path) -> Callable[[Any], Verdict]:
    """Write a draft and judge it."""

    def judged(draft: Any) -> Verdict:
        return judge(load_dataset([draft.write(tmp_path / "run")]))

    return judged


def points(verdict: Verdict) -> str:
    return " ".join(plain(point) for point in verdict.points)


def set_cells(draft: Any, engine: str, **values: Any) -> None:
    for cell in draft.summary.cells:
        if cell.engine == engine:
            for name, value in values.items():
                setattr(cell, name, value)


def test_the_headline_names_who_holds_more_in_the_same_memory(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat", "concurrency"])
    set_cells(run, "paged", running_mean=24.0, output_tokens_per_s=300.0, running_max=30)
    set_cells(run, "contiguous", running_mean=6.0, output_tokens_per_s=100.0, running_max=8)
    verdict = verdict_of(run)
    assert plain(verdict.headline) == (
        "In the same KV memory (4,096 token slots), paged keeps 24.0 requests running at once where contiguous keeps"
        " 6.0: 4.0× as many, at 300 against 100 output tokens/s (3.0×)."
    )
    assert verdict.group is not None
    assert verdict.group.workload == "concurrency"
    assert "Over both combinations of workload and load: 4.0× as many requests at once" in points(verdict)
    assert "Outputs agree" in points(verdict)
    assert "One run each" in points(verdict)


def test_the_factor_is_a_lower_bound_where_every_request_fitted(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["concurrency"], concurrency=[32])
    set_cells(run, "paged", running_mean=24.0, running_max=32)
    set_cells(run, "contiguous", running_mean=6.0, running_max=8)
    assert "at least 4.0× as many" in plain(verdict_of(run).headline)


def test_equal_memory_is_never_claimed_of_unequal_pools(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"])
    set_cells(run, "contiguous", kv_reserved=8192.0)
    verdict = verdict_of(run)
    assert "same KV memory" not in plain(verdict.headline)
    assert "The KV pools differ in size: 4,096 slots (paged) and 8,192 slots (contiguous)" in points(verdict)


def test_an_engine_that_hides_its_pool_is_left_out_of_the_memory_comparison(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"], engines["llama.cpp"]], workloads=["chat"])
    verdict = verdict_of(run)
    assert "llama.cpp" not in plain(verdict.headline)
    assert "Left out of that comparison (no KV pool reported, or no request seen running): llama.cpp." in points(
        verdict
    )


def test_without_any_pool_the_headline_is_throughput(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["vllm"], engines["llama.cpp"]], workloads=["chat"])
    set_cells(run, "vllm", output_tokens_per_s=200.0)
    set_cells(run, "llama.cpp", output_tokens_per_s=100.0)
    verdict = verdict_of(run)
    assert plain(verdict.headline) == (
        "Under chat (32 requests in flight), vllm gives the most output tokens/s: 200 against llama.cpp 100 (2.0×)."
    )
    assert "vllm and llama.cpp do not report the size of the KV pool" in points(verdict)


@pytest.mark.parametrize(("slower", "is_told"), [(98.0, False), (80.0, True)])
def test_one_run_each_tells_only_large_differences(
    slower: float, is_told: bool, draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["vllm"], engines["llama.cpp"]], workloads=["chat"])
    set_cells(run, "vllm", output_tokens_per_s=100.0)
    set_cells(run, "llama.cpp", output_tokens_per_s=slower)
    headline = plain(verdict_of(run).headline)
    assert ("gives the most" in headline) == is_told
    assert ("about the same" in headline) != is_told


@pytest.mark.parametrize(
    ("fast", "slow", "is_told"),
    [
        ((104.0, 105.0, 106.0), (100.0, 101.0, 103.9), True),
        ((100.0, 105.0, 106.0), (99.0, 101.0, 104.0), False),  # the ranges overlap
        ((101.0, 101.1, 101.2), (100.0, 100.1, 100.2), False),  # apart, but nobody acts on 1 %
    ],
)
def test_repeats_tell_a_difference_only_when_the_ranges_are_apart(
    fast: tuple[float, ...],
    slow: tuple[float, ...],
    is_told: bool,
    draft: Draft,
    engines: dict[str, Any],
    verdict_of: Callable[[Any], Verdict],
) -> None:
    run = draft([engines["vllm"], engines["llama.cpp"]], workloads=["chat"], repeats=3, requests=8)
    for cell in run.summary.cells:
        cell.output_tokens_per_s = (fast if cell.engine == "vllm" else slow)[cell.repeat]
    verdict = verdict_of(run)
    assert ("gives the most" in plain(verdict.headline)) == is_told
    assert "3 repeats each" in points(verdict)
    assert "One run each" not in points(verdict)


def test_an_invalid_cell_neither_leads_nor_is_compared(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["concurrency"])
    void = run.cell("paged")
    void.validity, void.reasons, void.running_mean = "INVALID", ["client loop lag"], 9999.0
    verdict = verdict_of(run)
    assert plain(verdict.headline).startswith("contiguous gives ")
    assert "9,999" not in plain(verdict.headline) + points(verdict)
    assert verdict.badge == "INVALID"
    assert [reason.text for reason in verdict.reasons] == ["client loop lag"]
    assert "No other engine has a valid result under this load, so nothing is compared." in points(verdict)


def test_all_invalid_gives_no_comparison(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"])
    for engine in ("paged", "contiguous"):
        set_cells(run, engine, validity="INVALID", reasons=["nothing fits"])
    verdict = verdict_of(run)
    assert plain(verdict.headline).startswith("No valid cell produced output tokens")
    assert verdict.group is None


def test_outputs_that_differ_are_told_with_the_worst_pair(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat", "concurrency"])
    run.cell("paged", "chat").tokens_identical_to = {run.cell("contiguous", "chat").cell_id: 0.9375}
    told = points(verdict_of(run))
    assert "Outputs differ: paged and contiguous agree on 93.8 % of requests under chat." in told
    assert "Outputs agree" not in told


def test_outputs_not_compared_are_not_called_equal(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"])
    for cell in run.summary.cells:
        cell.tokens_identical_to = {}
    assert "Whether the outputs agree was not measured." in points(verdict_of(run))


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_missing_numbers_never_win(
    nothing: float | None, draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"])
    set_cells(run, "contiguous", output_tokens_per_s=nothing, running_mean=nothing, kv_waste=nothing)
    verdict = verdict_of(run)
    assert plain(verdict.headline).startswith("paged gives ")
    assert "nan" not in (plain(verdict.headline) + points(verdict)).lower()


def test_unlike_runs_are_flagged(draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"])
    first, second = run.manifest.engines
    first.model, second.model = "HuggingFaceTB/SmolLM2-135M-Instruct", "/models/Qwen2.5-0.5B"
    first.dtype, second.dtype = "torch.float32", "bf16"
    run.manifest.cells[0].workload.digest = "other"
    for row in run.tables.requests:
        row["prompt_tokens"] *= 2 if row["cell_id"] == run.cell("paged").cell_id else 1
    told = " ".join(verdict_of(run).differences)
    assert "name different models: SmolLM2-135M-Instruct (paged)" in told
    assert "differ in dtype: float32 (paged) and bfloat16 (contiguous)" in told
    assert "The requests differ between the cells of chat, 32 at once." in told
    assert "The same requests came to 100.0 % more prompt tokens on paged than on contiguous" in told
    assert "output tokens" not in told


def test_the_same_model_under_other_spellings_is_not_flagged(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"], engines["vllm"]], workloads=["chat"])
    names = ["HuggingFaceTB/SmolLM2-135M-Instruct", "/cache/smollm2-135m-instruct-f32.gguf", None]
    for info, model, dtype in zip(run.manifest.engines, names, ["fp32", "all F32", None], strict=True):
        info.model, info.dtype = model, dtype
    assert verdict_of(run).differences == []


@pytest.mark.parametrize(("model", "differs"), [("meta-llama/Llama-3.1-8B", True), ("Llama-3.1-8B-Instruct", False)])
def test_a_base_model_is_not_its_tuned_sibling(
    model: str, differs: bool, draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"])
    run.manifest.engines[0].model, run.manifest.engines[1].model = model, "/models/llama-3.1-8b-instruct.gguf"
    assert any("different models" in sentence for sentence in verdict_of(run).differences) == differs


def test_a_killed_run_is_judged_from_what_it_left(demo_draft: Any, tmp_path: Path) -> None:
    data: Dataset = load_dataset([demo_draft.write_killed(tmp_path / "run")])
    verdict = judge(data)
    assert "did not finish (status: killed)" in points(verdict)
    assert plain(verdict.headline).startswith("In the same KV memory")


def test_empty_runs_conclude_nothing(draft: Draft, engines: dict[str, Any], tmp_path: Path) -> None:
    run = draft([engines["paged"]], workloads=["chat"], requests=0)
    verdict = judge(load_dataset([run.write(tmp_path / "none", with_summary=False)]))
    assert verdict.group is None
    assert verdict.badge == "INVALID"
    run.manifest.cells, run.summary.cells = [], []
    verdict = judge(load_dataset([run.write(tmp_path / "empty")]))
    assert plain(verdict.headline) == "This run holds no cells: nothing was measured."
    assert verdict.badge == "NOT JUDGED"


def test_memory_that_was_never_full_decides_nothing(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"], concurrency=[4])
    set_cells(run, "paged", output_tokens_per_s=200.0)
    set_cells(run, "contiguous", output_tokens_per_s=100.0)
    verdict = verdict_of(run)
    assert plain(verdict.headline).startswith("Under chat (4 requests in flight), paged gives the most output tokens/s")
    told = "KV memory was not the limit: all 4 requests in flight ran at once on paged and contiguous."
    assert told in points(verdict)


def test_doubts_about_the_headline_come_before_others(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat", "concurrency"])
    elsewhere, leading = run.cell("contiguous", "chat"), run.cell("paged", "concurrency")
    elsewhere.validity, elsewhere.reasons = "INVALID", ["errors", "late"]
    leading.validity, leading.reasons = "SUSPECT", ["a busy client"]
    doubts = verdict_of(run).doubts
    assert [[reason.text for reason in doubt] for doubt in doubts] == [["a busy client"], ["errors", "late"]]


@pytest.mark.parametrize("idle", [["contiguous"], ["paged"], ["paged", "contiguous"]])
def test_a_gauge_that_never_left_zero_is_not_compared(
    idle: list[str], draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    """A run shorter than the sampling period sees no request running; that is no "0 requests at once"."""
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"])
    for label in idle:
        set_cells(run, label, running_mean=0.0, running_max=0)
    verdict = verdict_of(run)
    assert "same KV memory" not in plain(verdict.headline)
    assert "gives" in plain(verdict.headline) or "give" in plain(verdict.headline)
    assert f"no running request was ever seen on {' and '.join(idle)}" in points(verdict)


def test_pools_of_no_slots_are_not_compared(
    draft: Draft, engines: dict[str, Any], verdict_of: Callable[[Any], Verdict]
) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"])
    for label in ("paged", "contiguous"):
        set_cells(run, label, kv_reserved=0.0)
    verdict = verdict_of(run)
    assert "same KV memory" not in plain(verdict.headline)
    assert "paged and contiguous do not report the size of the KV pool" in points(verdict)
