"""Eighteen defects that were found in the source of other load tools: each has a test here that would fail for it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from harness.emulator.options import make_options
from harness.emulator.server import Emulator
from harness.load.cell import CellPlan, CellRun
from harness.load.client import Client
from harness.load.dialect import Dialect
from harness.load.drivers import open_loop
from harness.load.exchange import Exchange
from workloads.request import Load, RequestSpec

ROOT = Path(__file__).resolve().parents[3]

# Defect -> the tests that fail for it, each a file and the whole name of a test (or of a case of test_hostile.py).
# docs/load-client.md shows the same table; a test below holds the two together.
STIMULUS, HOSTILE, METRICS = (
    "tests/workloads/test_stimulus.py",
    "tests/harness/load/test_hostile.py",
    "tests/harness/results/test_metrics.py",
)
HERE, STAMPS, VALIDITY = (
    "tests/harness/load/test_peer_defects.py",
    "tests/harness/load/test_stamps.py",
    "tests/harness/results/test_validity.py",
)
TESTED: dict[str, list[tuple[str, str]]] = {
    "one seed in every worker": [(STIMULUS, "test_poisson_is_poisson_for_any_number_of_workers")],
    "constant gaps that are exponential": [(STIMULUS, "test_constant_gaps_are_equal_and_never_drift")],
    "a trace that is a label only": [(HERE, "test_planned_times_reach_the_wire")],
    "pacing that drifts": [(STIMULUS, "test_constant_gaps_are_equal_and_never_drift")],
    "arrivals skipped or moved under overload": [(HERE, "test_a_late_client_skips_nothing")],
    "trimmed numerator, whole denominator": [(METRICS, "test_rates_count_in_the_window_what_they_divide_by")],
    "an error envelope as a success": [
        (HOSTILE, "error_envelope_with_status_200"),
        (HOSTILE, "error_in_the_middle_of_the_stream"),
    ],
    "usage beside choices ignored": [(HERE, "test_usage_beside_the_last_choice_is_taken")],
    "gauges read after the drain": [
        ("tests/harness/telemetry/test_telemetry.py", "test_a_gauge_is_read_during_the_load_not_after_it"),
        ("tests/harness/telemetry/test_peak.py", "test_the_peak_is_the_scripts"),
    ],
    "series that differ by a label overwritten": [
        ("tests/harness/engines/test_metrics.py", "test_two_data_parallel_engines_with_a_null_block_each"),
        ("tests/harness/engines/test_metrics.py", "test_fixture"),
    ],
    "a threshold that is never evaluated": [(VALIDITY, "test_every_rule_is_evaluated_at_both_thresholds")],
    "a missing metric as an improvement": [
        (VALIDITY, "test_null_is_not_a_reason"),
        (METRICS, "test_what_no_engine_tells_is_null_and_never_zero"),
    ],
    "tokens counted as chunks": [
        (HERE, "test_several_tokens_a_chunk_are_counted_as_tokens"),
        (METRICS, "test_peak_is_never_below_the_mean_when_chunks_carry_several_tokens"),
    ],
    "stamps taken in another process": [(STAMPS, "test_a_blocked_client_reports_the_times_of_the_wire")],
    "wall clock for intervals": [
        (STAMPS, "test_a_stepped_clock_changes_nothing_and_is_counted"),
        ("tests/harness/load/test_session.py", "test_a_step_of_the_wall_clock_changes_nothing"),
    ],
    "an error as 0.0": [
        ("tests/harness/telemetry/test_telemetry.py", "test_a_failed_scrape_gives_no_row_and_a_reason"),
        (METRICS, "test_silent_telemetry_lowers_validity"),
    ],
    "a stream buffer of quadratic cost": [
        ("tests/harness/load/test_fuzz.py", "test_time_grows_with_the_bytes_and_not_faster")
    ],
    "a connection for each request": [(HERE, "test_connections_are_never_more_than_requests_in_flight")],
}


@pytest.mark.parametrize("defect", TESTED)
def test_every_defect_has_its_test(defect: str) -> None:
    for file, name in TESTED[defect]:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_the_documentation_shows_this_table() -> None:
    page = (ROOT / "docs" / "load-client.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines()]
    shown = {row[1]: row[2] for row in rows if len(row) == 3 and row[0].removeprefix("| ").isdigit()}
    assert list(shown) == list(TESTED)
    for defect, tests in TESTED.items():
        for file, name in tests:
            assert f"`{name}`" in shown[defect]
            assert f"`{Path(file).name}`" in shown[defect]


def specs(count: int, output: int = 2) -> tuple[RequestSpec, ...]:
    return tuple(RequestSpec(index, None, "one two", 2, output) for index in range(count))


class Rows:
    def __init__(self) -> None:
        self.tables: dict[str, list[Any]] = {"requests": [], "chunks": [], "system": []}

    def append(self, table: str, rows: Any) -> None:
        self.tables[table].extend(rows)


async def cell(url: str, plan: CellPlan) -> Rows:
    rows = Rows()
    async with Client(url) as client:
        await CellRun(plan, client, Dialect("emulated"), rows).run()
    return rows


async def test_planned_times_reach_the_wire() -> None:
    offsets = (0, 30_000_000, 31_000_000, 90_000_000)
    plan = CellPlan("cell", Load("trace"), (), specs(4), offsets)
    async with Emulator(make_options(ttft_ms=1, itl_ms=1)) as emulator:
        rows = await cell(emulator.url, plan)
        received = sorted(stamps[0] for stamps in emulator.truth)
    requests = sorted(rows.tables["requests"], key=lambda row: row["request_index"])
    start = requests[0]["t_sched"]
    assert [row["t_sched"] - start for row in requests] == list(offsets)
    assert all(row["t_send"] >= row["t_sched"] for row in requests)
    assert all(t >= start + offset for t, offset in zip(received, offsets, strict=True))


async def test_a_late_client_skips_nothing() -> None:
    sent: list[Exchange] = []

    async def send(position: int, exchange: Exchange) -> None:
        exchange.t_send = time.monotonic_ns()
        sent.append(exchange)
        time.sleep(0.004)  # the loop cannot keep up with an arrival a millisecond

    start = time.monotonic_ns()
    offsets = tuple(index * 1_000_000 for index in range(60))
    assert await open_loop(specs(60), offsets, send, asyncio.Event(), start)
    assert len(sent) == 60
    assert sorted(exchange.t_sched - start for exchange in sent if exchange.t_sched is not None) == list(offsets)
    late = [exchange.t_send - exchange.t_sched for exchange in sent if exchange.t_send and exchange.t_sched]
    assert late[-1] > late[5] > 0  # lateness grows in the record, and nothing is re-anchored


async def test_several_tokens_a_chunk_are_counted_as_tokens() -> None:
    plan = CellPlan("cell", Load("closed", concurrency=2), (), specs(4, output=12))
    async with Emulator(make_options(ttft_ms=1, itl_ms=1, tokens_per_chunk=4)) as emulator:
        rows = await cell(emulator.url, plan)
    assert [row["output_tokens"] for row in rows.tables["requests"]] == [12] * 4
    assert [row["chunks"] for row in rows.tables["requests"]] == [3] * 4
    assert {row["token_source"] for row in rows.tables["requests"]} == {"usage"}


async def test_usage_beside_the_last_choice_is_taken(server: Any, wire: Any) -> None:
    """Three words came in two chunks; only the usage that stands beside the last of them knows."""

    async def serve(connection: Any, asked: Any) -> None:
        connection.head()
        connection.body(wire.text("one two"))
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        connection.body(wire.text(" three", "stop", usage=usage) + wire.done)
        connection.end()

    server.script = serve
    rows = await cell(server.url, CellPlan("cell", Load("closed", concurrency=1), (), specs(1)))
    (row,) = rows.tables["requests"]
    assert (row["ok"], row["output_tokens"], row["chunks"], row["token_source"]) == (True, 3, 2, "usage")


async def test_connections_are_never_more_than_requests_in_flight() -> None:
    plan = CellPlan("cell", Load("closed", concurrency=5), (), specs(60))
    async with Emulator(make_options(ttft_ms=1, itl_ms=1)) as emulator:
        await cell(emulator.url, plan)
        assert emulator.connections <= 5
