"""Several processes drive one cell: the rows of one, planned times kept, deaths told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from harness.emulator.options import make_options
from harness.emulator.process import spawned
from harness.load.cell import CellPlan
from harness.load.client_options import ClientOptions
from harness.load.dialect import Dialect
from harness.load.worker import SharedJournals
from harness.load.worker import _listen as listen
from harness.load.workers import WorkerError, WorkersRun
from harness.results.reader import RunReadError, load_table
from workloads.arrivals import poisson_arrivals
from workloads.request import Load, RequestSpec

TABLES = ("requests", "chunks", "system")


def specs(count: int) -> tuple[RequestSpec, ...]:
    return tuple(RequestSpec(index, None, "one two", 2, 3) for index in range(count))


def run_of(url: str, plan: CellPlan, folder: Path, workers: int) -> WorkersRun:
    journals = {name: folder / f"{name}.jsonl" for name in TABLES}
    return WorkersRun(plan, ClientOptions((url,)), Dialect("emulated"), journals, workers)


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / f"{table}.jsonl").read_bytes().splitlines()]


async def test_planned_arrivals_over_three_processes(tmp_path: Path) -> None:
    arrivals = poisson_arrivals(60, 3, count=30)
    plan = CellPlan("cell", Load("poisson", rate=60), (), specs(30), arrivals)
    with spawned(make_options(ttft_ms=5, itl_ms=2, tokens=3)) as url:
        run = run_of(url, plan, tmp_path, 3)
        outcome = await run.run()
    assert outcome.status == "complete"
    requests = sorted(rows(tmp_path, "requests"), key=lambda row: row["request_index"])
    assert [row["request_index"] for row in requests] == list(range(30))
    assert all(row["ok"] for row in requests)
    start = requests[0]["t_sched"] - arrivals[0]
    assert [row["t_sched"] - start for row in requests] == list(arrivals)
    assert all(row["t_send"] >= row["t_sched"] for row in requests)
    assert len(rows(tmp_path, "chunks")) == 90
    assert {row["label"] for row in rows(tmp_path, "system")} == {"0", "1", "2"}
    assert (run.progress.done, run.progress.tokens, run.progress.failed) == (30, 90, 0)


async def test_an_interrupt_reaches_every_worker(tmp_path: Path) -> None:
    plan = CellPlan("cell", Load("closed", concurrency=4), (), specs(1000))
    with spawned(make_options(ttft_ms=50, itl_ms=20)) as url:
        run = run_of(url, plan, tmp_path, 2)
        task = asyncio.create_task(run.run())
        while run.progress.done < 8:
            await asyncio.sleep(0.05)
        run.interrupt()
        outcome = await task
    assert outcome.status == "interrupted"
    assert any(row["error_class"] == "cancelled" for row in rows(tmp_path, "requests"))


async def test_a_worker_that_dies_is_told_and_its_rows_stay(tmp_path: Path) -> None:
    plan = CellPlan("cell", Load("closed", concurrency=4), (), specs(1000))
    with spawned(make_options(ttft_ms=20, itl_ms=5)) as url:
        run = run_of(url, plan, tmp_path, 2)
        task = asyncio.create_task(run.run())
        while run.progress.done < 8:
            await asyncio.sleep(0.05)
        run._children[1].kill()
        with pytest.raises(WorkerError, match="worker 1 died"):
            await task
    assert all(child.returncode is not None for child in run._children)
    assert len([row for row in rows(tmp_path, "requests") if row["ok"]]) >= 8


def test_a_command_that_comes_after_the_end_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's "stop" can meet a worker whose loop is closed already."""
    loop = asyncio.new_event_loop()
    loop.close()
    reads = [b"stop\n", b""]
    monkeypatch.setattr("harness.load.worker.os.read", lambda *_: reads.pop(0))
    listen(loop, asyncio.Queue())


def test_a_line_that_a_killed_worker_left_cut_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "system.jsonl"
    row = {"cell_id": "c", "t": 1, "source": "client", "name": "loop_lag_ns", "label": "0", "value": 1.0}
    whole = orjson.dumps(row) + b"\n"
    file.write_bytes(whole + whole[: len(whole) // 2])
    journals = SharedJournals({"system": file})
    journals.append("system", [{**row, "t": 2}, {**row, "t": 3}])
    journals.append("system", [{**row, "t": 4}])
    journals.close()
    assert b"\n\n" not in file.read_bytes()
    assert load_table(tmp_path, "system")["t"].to_pylist() == [1, 2, 3, 4]


def test_a_line_that_is_wrong_and_not_cut_is_still_blamed(tmp_path: Path) -> None:
    (tmp_path / "system.jsonl").write_bytes(b'{"cell_id":"c","t":1}\n{"cell_id":"c",t:2}\n{"cell_id":"c","t":3}\n')
    with pytest.raises(RunReadError, match="line 2 is not a row"):
        load_table(tmp_path, "system")
