"""One cell, from the first byte to the rows: complete, timed, interrupted, with a dead engine, with a full disk."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from harness.load.cell import MAX_FAILURES_IN_A_ROW, CellPlan, CellRun
from harness.load.client import Client
from harness.load.dialect import Dialect
from workloads.request import Load, RequestSpec


class Rows:
    """A sink that keeps rows."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Mapping[str, Any]]] = {"requests": [], "chunks": [], "system": []}

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.tables[table] += rows


def requests(count: int, output: int = 3, start: int = 0) -> tuple[RequestSpec, ...]:
    return tuple(RequestSpec(start + index, None, "one two", 2, output) for index in range(count))


def plan(count: int = 12, concurrency: int = 3, **fields: Any) -> CellPlan:
    return CellPlan("cell", Load("closed", concurrency=concurrency), (), requests(count), **fields)


async def run_cell(server: Any, cell: CellPlan, sink: Any) -> Any:
    async with Client(server.url) as client:
        return await CellRun(cell, client, Dialect("words"), sink).run()


async def test_every_request_and_chunk_becomes_a_row(server: Any) -> None:
    server.ttft_s = 0.05
    rows = Rows()
    outcome = await run_cell(server, plan(), rows)
    assert outcome.status == "complete"
    assert sorted(row["request_index"] for row in rows.tables["requests"]) == list(range(12))
    assert all(row["ok"] and row["cell_id"] == "cell" for row in rows.tables["requests"])
    assert len(rows.tables["chunks"]) == 36
    assert rows.tables["system"]
    # A pause of the host while three chunks arrive is noted besides; whether one happens is not this test's to say.
    names = {row["name"] for row in rows.tables["system"]} - {"blurred_chunks"}
    assert names == {"loop_lag_ns", "stale_connections", "clock_steps"}
    for row in rows.tables["requests"]:
        assert outcome.t_start <= row["t_send"] <= row["t_done"] <= outcome.t_end
    assert server.connections <= 3
    assert gc.isenabled()


async def test_warmup_flows_into_the_measurement(server: Any) -> None:
    server.itl_s = 0.01
    rows = Rows()
    slow_last = replace(requests(1, output=30)[0], index=-1)
    cell = replace(plan(6, 2), warmup=(*requests(3, start=-4), slow_last))
    await run_cell(server, cell, rows)
    by_index = {row["request_index"]: row for row in rows.tables["requests"]}
    assert [index for index, row in sorted(by_index.items()) if row["warmup"]] == [-4, -3, -2, -1]
    # No pause in between: the first measured request starts while warm-up is still in flight.
    assert by_index[0]["t_send"] < by_index[-1]["t_done"]


async def test_planned_arrivals_keep_their_times(server: Any) -> None:
    rows = Rows()
    arrivals = tuple(index * 5_000_000 for index in range(12))
    cell = CellPlan("cell", Load("poisson", rate=200.0), (), requests(12), arrivals_ns=arrivals)
    await run_cell(server, cell, rows)
    planned = sorted(row["t_sched"] for row in rows.tables["requests"])
    assert [t - planned[0] for t in planned] == list(arrivals)
    assert all(row["t_send"] >= row["t_sched"] for row in rows.tables["requests"])


async def test_a_duration_ends_a_closed_loop_and_lets_answers_end(server: Any) -> None:
    server.itl_s = 0.01
    rows = Rows()
    outcome = await run_cell(server, plan(10_000, 4, duration_s=0.3, is_pool=True), rows)
    assert outcome.status == "complete"
    assert not outcome.ran_dry
    assert 4 <= len(rows.tables["requests"]) < 2000
    assert all(row["ok"] for row in rows.tables["requests"])


async def test_a_pool_that_runs_dry_is_told(server: Any) -> None:
    assert (await run_cell(server, plan(5, 2, duration_s=30.0, is_pool=True), Rows())).ran_dry
    assert not (await run_cell(server, plan(5, 2, duration_s=30.0), Rows())).ran_dry


async def test_interrupting_keeps_what_was_measured(server: Any) -> None:
    server.itl_s = 0.05
    rows = Rows()
    async with Client(server.url) as client:
        run = CellRun(plan(50, 5), client, Dialect("words"), rows)
        task = asyncio.create_task(run.run())
        while not rows.tables["requests"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.06)
        run.interrupt()
        outcome = await task
    assert outcome.status == "interrupted"
    classes = [row["error_class"] for row in rows.tables["requests"]]
    assert classes.count(None) >= 1
    assert classes.count("cancelled") >= 1
    assert len(classes) < 50
    assert not run.progress.in_flight


async def test_a_dead_engine_ends_the_cell(server: Any) -> None:
    async def refuse(connection: Any, asked: Any) -> None:
        await connection.close()

    server.script = refuse
    rows = Rows()
    outcome = await run_cell(server, plan(2000, 4), rows)
    assert outcome.status == "failed"
    assert MAX_FAILURES_IN_A_ROW <= len(rows.tables["requests"]) < 2000
    assert {row["error_class"] for row in rows.tables["requests"]} == {"truncated"}


async def test_a_full_disk_ends_the_cell_with_the_reason(server: Any) -> None:
    class Full(Rows):
        def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
            if table == "requests" and len(self.tables["requests"]) >= 3:
                raise OSError("no space left on device")
            super().append(table, rows)

    sink = Full()
    with pytest.raises(OSError, match="no space left"):
        await run_cell(server, plan(500, 2), sink)
    assert len(sink.tables["requests"]) == 3
    assert gc.isenabled()
