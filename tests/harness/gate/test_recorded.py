"""Runs that exist: samples, what voids them, pairs of equal questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from harness.gate.judge import judge
from harness.gate.recorded import pair_up, recorded_gate
from harness.gate.samples import SampleError, read_samples
from harness.gate.thresholds import Thresholds, VoidAsked
from harness.results.gate import GateResult
from harness.results.reader import RunReadError
from tests.harness.gate.conftest import CELL, write_run, write_sets

Tables = dict[str, list[dict[str, Any]]]


def judged(base: Path, cand: Path) -> GateResult:
    record = recorded_gate([str(base)], [str(cand)], Thresholds(), tool_version="0", created_utc="2026")
    return judge(record.spec, record.pairs, warnings=record.warnings)


def test_a_slow_candidate_fails_and_an_equal_one_does_not(tmp_path: Path) -> None:
    slow = judged(*write_sets(tmp_path / "slow", 10, slowdown=0.2))
    assert slow.verdict == "FAIL"
    assert slow.warnings == []
    assert judged(*write_sets(tmp_path / "same", 10)).rules[0].verdict != "FAIL"


def test_values_are_those_of_the_run(tmp_path: Path) -> None:
    samples, info = read_samples(write_run(tmp_path / "r", itl_ms=10, peak=640), "baseline")
    (one,) = samples
    assert one.void == []
    assert one.values[f"{CELL}/itl_p50"] == pytest.approx(10, rel=0.03)
    assert one.values[f"{CELL}/kv_peak_tokens"] == 640
    assert one.samples[f"{CELL}/itl_p50"] == 24 * 11
    assert len(one.answers) == 24
    assert info.facts["model"] == "m"


def test_failed_requests_void_the_run_and_blame_the_engine(tmp_path: Path) -> None:
    (one,), _ = read_samples(write_run(tmp_path / "r", failed=1), "candidate")
    assert any("failed" in reason for reason in one.void)
    assert one.broken == one.void


def test_one_failure_in_four_hundred_is_more_than_a_gate_allows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", failed=1, requests=400, tokens=3)
    assert read_samples(run, "candidate")[0][0].broken
    assert read_samples(run, "candidate", limits=VoidAsked.model_validate({"error_share": "1%"}))[0][0].broken == []


def test_short_answers_void_the_run(tmp_path: Path) -> None:
    def shorten(tables: Tables) -> None:
        for row in tables["requests"]:
            row["planned_output_tokens"] = 99

    (one,), _ = read_samples(write_run(tmp_path / "r", edit=shorten), "candidate")
    assert one.broken
    assert "planned length" in one.broken[0]


def test_clock_steps_void_the_run_and_blame_nobody(tmp_path: Path) -> None:
    def step(tables: Tables) -> None:
        tables["requests"][5]["t_first"] = tables["requests"][5]["t_send"] - 10**9

    (one,), _ = read_samples(write_run(tmp_path / "r", edit=step), "candidate")
    assert any("backwards" in reason for reason in one.void)
    assert one.broken == []


def test_a_late_client_voids_the_run(tmp_path: Path) -> None:
    def lag(tables: Tables) -> None:
        cell = tables["requests"][0]["cell_id"]
        tables["system"] += [
            {"cell_id": cell, "t": t, "source": "client", "name": "loop_lag_ns", "label": "", "value": 4e7}
            for t in range(10**9, 3 * 10**9, 10**8)
        ]

    (one,), _ = read_samples(write_run(tmp_path / "r", edit=lag), "candidate")
    assert any("event loop" in reason for reason in one.void)


@pytest.mark.parametrize(("limit", "is_void"), [("20%", True), ("50%", False), (None, False)])
def test_other_processes_void_the_run_beyond_the_limit_asked_for(
    tmp_path: Path, limit: str | None, is_void: bool
) -> None:
    def crowd(tables: Tables) -> None:
        cell = tables["requests"][0]["cell_id"]
        tables["system"] += [
            {"cell_id": cell, "t": t, "source": "machine", "name": "foreign_cpu_percent", "label": "", "value": 40.0}
            for t in range(10**9, 3 * 10**9, 10**9)
        ]

    limits = VoidAsked.model_validate({"foreign_cpu": limit})
    (one,), _ = read_samples(write_run(tmp_path / "r", edit=crowd), "candidate", limits=limits)
    assert one.void == (["other processes used 40% of the CPUs that the engine ran on"] if is_void else [])
    assert one.broken == []


def test_empty_run_is_void(tmp_path: Path) -> None:
    (one,), _ = read_samples(write_run(tmp_path / "r", requests=0), "candidate")
    assert one.void


def test_one_request_supports_no_percentile_of_requests(tmp_path: Path) -> None:
    base, cand = tmp_path / "a", tmp_path / "b"
    for i in range(8):
        write_run(base / str(i), requests=1, created=f"2026-11-26T12:{2 * i:02}:00+00:00")
        write_run(cand / str(i), requests=1, created=f"2026-11-26T12:{2 * i + 1:02}:00+00:00")
    result = judged(base, cand)
    found = {rule.rule.metric: rule for rule in result.rules}
    assert found["ttft_p50"].verdict == "INCONCLUSIVE"
    assert "1 samples" in found["ttft_p50"].reason
    assert result.verdict == "INCONCLUSIVE"


def test_a_candidate_without_its_memory_metric_fails(tmp_path: Path) -> None:
    def silent(tables: Tables) -> None:
        tables["metrics"].clear()

    result = judged(*write_sets(tmp_path, 8, edit=silent))
    assert result.verdict == "FAIL"
    assert "missing in 8 of 8 candidate runs" in result.rules[-1].reason


def test_other_answers_fail_a_faster_candidate(tmp_path: Path) -> None:
    result = judged(*write_sets(tmp_path, 8, slowdown=-0.3, answer="wrong "))
    assert result.verdict == "FAIL"
    assert "not correct" in result.headline


def test_runs_that_were_asked_something_else_are_no_pair(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", digest="e" * 64)
    with pytest.raises(SampleError, match="same requests"):
        pair_up(read_samples(a, "baseline")[0], read_samples(b, "candidate")[0])


def test_one_after_the_other_is_warned_about(tmp_path: Path) -> None:
    for i in range(4):
        write_run(tmp_path / "a" / str(i), created=f"2026-11-25T12:0{i}:00+00:00")
        write_run(tmp_path / "b" / str(i), created=f"2026-11-26T12:0{i}:00+00:00")
    assert "not interleaved" in judged(tmp_path / "a", tmp_path / "b").warnings[0]


def test_another_schema_is_one_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    text = (run / "run.json").read_text().replace('"schema_version":1', '"schema_version":99')
    (run / "run.json").write_text(text)
    with pytest.raises(RunReadError, match="99"):
        read_samples(run, "baseline")


def test_a_table_of_another_schema_is_one_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    table = pq.read_table(run / "requests.parquet").drop_columns(["t_first"])
    pq.write_table(table, run / "requests.parquet")
    with pytest.raises(RunReadError, match="t_first"):
        read_samples(run, "baseline")


def test_an_engine_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", engine="mine")
    with pytest.raises(SampleError, match="no engine 'other'"):
        read_samples(run, "baseline", "other")
    assert len(read_samples(run, "baseline", "mine")[0]) == 1


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="neither a run directory"):
        recorded_gate([str(tmp_path)], [str(tmp_path)], Thresholds(), tool_version="0", created_utc="2026")
