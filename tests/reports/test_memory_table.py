"""What the memory brought and cost, the searches, the client's calibration: shown where recorded, named where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.results.schema import Calibration, CalibrationLevel, ProbeInfo, SearchInfo
from reports import build_report, load_dataset
from reports.memory_table import memory_table

SENTENCE = "up to 8 requests/s at least 95% of the requests meet ttft <= 500 ms (95% confidence); 9 does not"


def test_what_telemetry_recorded_is_shown_and_what_it_did_not_is_named(
    draft: Any, engines: Any, tmp_path: Path
) -> None:
    run = draft([engines["paged"], engines["vllm"]], workloads=["chat"])
    cell = run.cell("paged")
    cell.tokens_held_per_gib, cell.output_tokens_per_s_per_gib, cell.kv_sharing = 10600.1, 1016.6, 1.536
    cell.preemptions, cell.recomputed_tokens, cell.stalls, cell.stall_s = 3, 412, 2, 0.75
    cell.energy_j_per_output_token = 0.125
    path = run.write(tmp_path / "run")
    found = memory_table(load_dataset([path]))
    shown = {metric.path: found.rows[0].values[i].text for i, metric in enumerate(found.metrics)}
    assert shown["tokens_held_per_gib"] == "10,600.1"
    assert shown["output_tokens_per_s_per_gib"] == "1,017"
    assert shown["kv_sharing"] == "1.54"
    assert (shown["preemptions"], shown["recomputed_tokens"], shown["stall_s"]) == ("3", "412", "0.75")
    assert shown["energy_j_per_output_token"] == "0.125"
    assert "energy of the devices" in found.missing  # only the share per token was recorded
    assert "preemptions" not in found.missing.split(": ")[1].split(", ")
    assert found.rows[1].values[[m.path for m in found.metrics].index("kv_sharing")].is_null
    page = build_report(path).read_text()
    assert "10,600.1" in page
    assert "Not measured in any cell:" in page


def test_an_invalid_cell_shows_no_memory_numbers(draft: Any, engines: Any, tmp_path: Path) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"])
    cell = run.cell("paged")
    cell.tokens_held_per_gib, cell.validity, cell.reasons = 123456.0, "INVALID", ["no request succeeded"]
    run.cell("contiguous").tokens_held_per_gib = 77777.0
    page = build_report(run.write(tmp_path / "run")).read_text()
    assert "77,777" in page
    assert "123,456" not in page


def search(**changes: Any) -> SearchInfo:
    probes = [
        ProbeInfo(level=8, good=200, total=200, low=0.981, high=1.0, verdict="pass"),
        ProbeInfo(level=9, good=100, total=200, low=0.43, high=0.57, verdict="fail"),
    ]
    told: dict[str, Any] = {"engine": "paged", "workload": "chat", "over": "rate", "attainment": 0.95}
    told |= {"confidence": 0.95, "best": 8, "refuted": 9, "sentence": SENTENCE, "probes": probes}
    return SearchInfo(**(told | changes))


def test_a_search_is_answered_on_the_first_screen_and_drawn(draft: Any, engines: Any, tmp_path: Path) -> None:
    run = draft([engines["paged"]], workloads=["chat"])
    run.manifest.searches = [search(), search(engine="gone", workload="<b>", best=None, probes=[])]
    page = build_report(run.write(tmp_path / "run")).read_text()
    assert "chat: up to 8 requests/s" in page[: page.index("<nav")]
    assert 'id="search-0"' in page
    assert "<td>200 of 200<td>100.0 %<td>98.1 %<td>100.0 %<td>pass" in page
    assert "No level was probed to its end." in page
    assert "&lt;b&gt;" in page


def test_a_run_without_a_search_has_no_such_section(demo_page: str) -> None:
    assert 'id="search"' not in demo_page


def calibration(ceiling: int | None) -> Calibration:
    level = CalibrationLevel(
        streams=200, chunks_per_s=10000, failed=0, ttft_p50_error_ms=0.21, ttft_p99_error_ms=1.5, itl_p99_error=0.012,
        delivered=0.999, cpu_us_per_chunk=13.2, client_cpu_percent=40, engine_itl_p99_ms=20.1,
        passed=ceiling is not None, reason=None if ceiling else "TTFT p99 off by more than 5 ms",
    )  # fmt: skip
    return Calibration(
        created_utc="2026-11-01T00:00:00Z", hostname="bench-01", cores=2, stamp="kernel", levels=[level],
        ceiling_streams=ceiling, ceiling_chunks_per_s=None if ceiling is None else 10000,
    )  # fmt: skip


def test_the_calibration_is_printed_and_held_against_the_load(draft: Any, engines: Any, tmp_path: Path) -> None:
    run = draft([engines["paged"]], workloads=["chat"])
    run.manifest.machine.calibration = calibration(200)
    page = build_report(run.write(tmp_path / "run")).read_text()
    assert "kernel stamps, keeps up with 200 streams" in page
    assert "at most 32 requests in flight, within that" in page
    assert "<td>+0.21</td><td>+1.50</td><td>+1.2%</td><td>0.999</td>" in page
    run.cell("paged").in_flight_max = 201
    page = build_report(run.write(tmp_path / "more")).read_text()
    assert "up to 201 requests in flight, more than was calibrated" in page


def test_a_client_that_never_kept_up_says_why(draft: Any, engines: Any, tmp_path: Path) -> None:
    run = draft([engines["paged"]], workloads=["chat"])
    run.manifest.machine.calibration = calibration(None)
    page = build_report(run.write(tmp_path / "run")).read_text()
    assert "did not keep up even at the first level" in page
    assert "TTFT p99 off by more than 5 ms" in page
    assert "within that" not in page


def test_without_a_calibration_the_page_says_how_to_make_one(demo_page: str) -> None:
    assert "There is no calibration of bench-01" in demo_page
    assert "pagedbench calibrate" in demo_page
