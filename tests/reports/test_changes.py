"""Comparisons: what is called better, and all that must never be."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports import compare_tables, judge, load_dataset
from reports.changes import Change, bases, change_of, signed
from reports.dataset import Dataset, ReportError
from reports.metrics import TABLE, THROUGHPUT, TTFT, WASTE

Draft = Callable[..., Any]


def two_runs(draft: Draft, engines: Any, tmp_path: Path, spoil: Callable[[Any], None], repeats: int = 5) -> Dataset:
    """The same engine in two runs; ``spoil`` changes the second before it is written."""
    paths = []
    for name in ("base", "new"):
        run = draft([engines["paged"]], workloads=["chat"], repeats=repeats, requests=6, seed=4, run_id=name)
        for i, cell in enumerate(run.summary.cells):
            cell.output_tokens_per_s, cell.ttft.p50 = 1000.0 + i, 50.0 + 0.1 * i
        if name == "new":
            spoil(run)
        paths.append(run.write(tmp_path / name))
    return load_dataset(paths, apart=True)


def scale(metric: str, factor: float) -> Callable[[Any], None]:
    def spoil(run: Any) -> None:
        for cell in run.summary.cells:
            if metric == "speed":
                cell.output_tokens_per_s *= factor
            else:
                cell.ttft.p50 *= factor

    return spoil


def change(data: Dataset, metric: Any = THROUGHPUT) -> Change:
    ((base, new),) = bases(data)
    found = change_of(data.groups[0], metric, base, new)
    assert found is not None
    return found


def test_runs_are_kept_apart_and_named_after_their_folders(draft: Draft, engines: Any, tmp_path: Path) -> None:
    data = two_runs(draft, engines, tmp_path, lambda run: None)
    assert [engine.label for engine in data.engines] == ["paged (base)", "paged (new)"]
    assert [(a.label, b.label) for a, b in bases(data)] == [("paged (base)", "paged (new)")]


@pytest.mark.parametrize(
    ("metric", "factor", "verdict"),
    [("speed", 1.1, "better"), ("speed", 0.9, "worse"), ("ttft", 1.1, "worse"), ("ttft", 0.9, "better")],
)
def test_a_change_beyond_its_interval_is_told_with_its_direction(
    metric: str, factor: float, verdict: str, draft: Draft, engines: Any, tmp_path: Path
) -> None:
    found = change(two_runs(draft, engines, tmp_path, scale(metric, factor)), THROUGHPUT if metric == "speed" else TTFT)
    assert found.verdict == verdict
    assert found.change == pytest.approx(factor - 1, abs=0.005)
    assert found.low is not None
    assert found.high is not None
    assert found.low < factor - 1 < found.high
    assert found.n == "5+5"


def test_the_same_twice_is_no_change_and_says_what_would_have_shown(draft: Draft, engines: Any, tmp_path: Path) -> None:
    found = change(two_runs(draft, engines, tmp_path, lambda run: None))
    assert found.verdict == "no change shown"
    assert found.change == pytest.approx(0, abs=1e-9)
    assert found.detectable is not None
    assert 0.002 < found.detectable < 0.01  # values are 1000 to 1004


def test_a_tiny_change_is_not_called_better_however_sure(draft: Draft, engines: Any, tmp_path: Path) -> None:
    def spoil(run: Any) -> None:
        for cell in run.summary.cells:
            cell.output_tokens_per_s = 1010.0 if cell.repeat else 1008.0

    data = two_runs(draft, engines, tmp_path, spoil)
    for cell in data.cells:
        if cell.engine.label == "paged (base)" and cell.summary is not None:
            cell.summary.output_tokens_per_s = 1006.0
    found = change(data)
    assert found.low is not None
    assert found.low > 0
    assert found.verdict == "no change shown"


@pytest.mark.parametrize("repeats", [1, 3])
def test_too_few_repeats_are_never_better(repeats: int, draft: Draft, engines: Any, tmp_path: Path) -> None:
    data = two_runs(draft, engines, tmp_path, scale("speed", 2.0), repeats)
    found = change(data)
    assert found.change is not None
    assert (found.low, found.high, found.detectable) == (None, None, None)
    assert found.verdict == "too few repeats"
    assert "Too few repeats" in compare_tables.summary(compare_tables.sections(data))


@pytest.mark.parametrize("value", [None, math.nan, 0.0, -1.0, math.inf])
def test_a_missing_or_senseless_value_is_never_better(
    value: float | None, draft: Draft, engines: Any, tmp_path: Path
) -> None:
    def spoil(run: Any) -> None:
        for cell in run.summary.cells:
            cell.output_tokens_per_s = value

    data = two_runs(draft, engines, tmp_path, spoil)
    found = change(data)
    assert found.verdict in ("not measured", "changed")
    assert found.change is None
    for text in (compare_tables.to_csv(data), compare_tables.to_json(data, judge(data))):
        assert "NaN" not in text
        assert "nan" not in text
        assert "Infinity" not in text


def test_an_invalid_side_is_told_and_not_compared(draft: Draft, engines: Any, tmp_path: Path) -> None:
    def spoil(run: Any) -> None:
        for cell in run.summary.cells:
            cell.validity, cell.reasons, cell.output_tokens_per_s = "INVALID", ["late"], 9e9

    data = two_runs(draft, engines, tmp_path, spoil)
    found = compare_tables.sections(data)
    assert {row.verdict for section in found for row in section.rows} == {"INVALID"}
    assert "better" not in compare_tables.summary(found)


def test_engines_without_a_common_load_are_said_to_have_none(draft: Draft, engines: Any, tmp_path: Path) -> None:
    one = draft([engines["paged"]], workloads=["chat"], requests=4, run_id="a").write(tmp_path / "a")
    two = draft([engines["vllm"]], workloads=["agents"], requests=4, run_id="b").write(tmp_path / "b")
    data = load_dataset([one, two], apart=True)
    assert compare_tables.sections(data) == []
    assert compare_tables.missing(data) == ["vllm and paged ran no workload at the same load, so nothing is compared."]


def test_a_base_that_is_not_there_is_one_sentence(demo_run: Path) -> None:
    data = load_dataset([demo_run])
    assert [new.label for _, new in bases(data, "contiguous")] == ["paged"]
    with pytest.raises(ReportError, match="choose one of paged, contiguous"):
        bases(data, "vllm")


def test_every_view_holds_the_same_rows(draft: Draft, engines: Any, tmp_path: Path) -> None:
    data = two_runs(draft, engines, tmp_path, scale("speed", 0.9))
    rows = list(csv.DictReader(io.StringIO(compare_tables.to_csv(data))))
    document = json.loads(compare_tables.to_json(data, judge(data)))
    assert document["kind"] == "pagedbench.compare"
    assert [row["metric"] for row in rows] == [row["metric"] for row in document["changes"]]
    speed = next(row for row in document["changes"] if row["metric"] == "output_tokens_per_s")
    assert speed["verdict"] == "worse"
    assert speed["delta"] == pytest.approx(-100, abs=1)
    text = compare_tables.to_markdown(data, judge(data))
    assert "**worse**" in text
    assert text.count("\n| ") == 1 + len(rows)


def test_a_metric_with_zeros_has_no_ratio(draft: Draft, engines: Any, tmp_path: Path) -> None:
    def spoil(run: Any) -> None:
        for cell in run.summary.cells:
            cell.kv_waste = 0.0

    found = change(two_runs(draft, engines, tmp_path, spoil), WASTE)
    assert (found.change, found.verdict) == (None, "changed")
    assert found.delta is not None


def test_signs_are_written_as_people_write_them() -> None:
    assert [signed(x) for x in (0.1234, -0.05, 0.0, -1e-9, 12.5, None, math.nan)] == [
        "+12.3 %", "−5.0 %", "0.0 %", "0.0 %", "+1,250 %", "–", "–",
    ]  # fmt: skip


def test_every_metric_of_the_table_can_be_compared(crowd_run: Path) -> None:
    data = load_dataset([crowd_run])
    pairs = bases(data)
    assert len(pairs) == 4
    assert all(dataclasses.asdict(metric)["label"] for metric in TABLE)
    for section in compare_tables.sections(data):
        assert all(row.verdict in ("too few repeats", "not measured", "INVALID") for row in section.rows)
