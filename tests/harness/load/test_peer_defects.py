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

# Defect -> where it is tested: a file and the beginning of a test's name.
TESTED: dict[str, tuple[str, str]] = {
    "1 one seed in every worker": ("tests/workloads/test_stimulus.py", "test_poisson_is_poisson_for_any_number"),
    "2 constant gaps that are exponential": ("tests/workloads/test_stimulus.py", "test_constant_gaps_are_equal"),
    "3 a trace that is a label only": ("tests/harness/load/test_peer_defects.py", "test_planned_times_reach_the_wire"),
    "4 pacing that drifts": ("tests/workloads/test_stimulus.py", "test_constant_gaps_are_equal_and_never_drift"),
    "5 arrivals skipped under overload": (
        "tests/harness/load/test_peer_defects.py",
        "test_a_late_client_skips_nothing",
    ),
    "6 trimmed numerator, whole denominator": ("tests/harness/results/test_metrics.py", "test_"),
    "7 an error envelope as a success": ("tests/harness/load/test_hostile.py", "error_in_the_middle_of_the_stream"),
    "8 usage beside choices ignored": ("tests/harness/load/test_hostile.py", "usage_beside_the_last_choice"),
    "9 gauges read after the drain": ("tests/harness/emulator/test_emulator.py", "test_metrics_use_the_vocabulary"),
    "10 series that differ by a label overwritten": ("tests/harness/engines/test_metrics.py", "test_"),
    "11 a threshold that is never evaluated": (
        "tests/harness/results/test_validity.py",
        "test_every_rule_is_evaluated",
    ),
    "12 a missing metric as an improvement": ("tests/harness/results/test_validity.py", "test_null_is_not_a_reason"),
    "13 tokens counted as chunks": (
        "tests/harness/load/test_peer_defects.py",
        "test_several_tokens_a_chunk_are_counted",
    ),
    "14 stamps taken in another process": ("tests/harness/load/test_stamps.py", "test_a_blocked_client_reports"),
    "15 wall clock for intervals": ("tests/harness/load/test_stamps.py", "test_a_stepped_clock_changes_nothing"),
    "16 an error as 0.0": ("tests/harness/telemetry/test_telemetry.py", "test_"),
    "17 a stream buffer of quadratic cost": ("tests/harness/load/test_fuzz.py", "test_time_grows_with_the_bytes"),
    "18 a connection for each request": ("tests/harness/load/test_peer_defects.py", "test_connections_are_never_more"),
}


@pytest.mark.parametrize("defect", TESTED)
def test_every_defect_has_its_test(defect: str) -> None:
    file, name = TESTED[defect]
    assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8")


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


async def test_connections_are_never_more_than_requests_in_flight() -> None:
    plan = CellPlan("cell", Load("closed", concurrency=5), (), specs(60))
    async with Emulator(make_options(ttft_ms=1, itl_ms=1)) as emulator:
        await cell(emulator.url, plan)
        assert emulator.connections <= 5
