"""Whole runs: engines that fail, searches, staircases, and runs that are resumed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.emulator.options import make_options
from harness.emulator.server import Emulator
from harness.engines.errors import EngineError, RecipeError
from harness.load.plan import RunPlan, make_plan
from harness.load.progress import Progress
from harness.load.session import Session
from harness.results.reader import load_run
from harness.results.schema import CellInfo, Summary
from harness.results.writer import RunWriteError


class Quiet:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.started: list[str] = []
        self.session: Session | None = None
        self.interrupt_at: int | None = None
        self.interrupting: asyncio.Task[None] | None = None

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def cell_started(self, cell: CellInfo, progress: Progress, scrapers: Sequence[Any]) -> None:
        self.started.append(cell.cell_id)
        if self.interrupt_at == len(self.started):
            self.interrupting = asyncio.create_task(self._interrupt(progress))

    async def _interrupt(self, progress: Progress) -> None:
        """Once two requests are there."""
        while progress.done < 2:
            await asyncio.sleep(0.01)
        assert self.session is not None
        self.session.interrupt()

    def cell_ended(self, cell: CellInfo, progress: Progress) -> None: ...


def plan(url: str, **values: Any) -> RunPlan:
    given = {"workloads": "concurrency:input=5,output=4,levels=1+2+3", "num_requests": 8, **values}
    return make_plan({"engines": [f"a={url}"], **given}, "test")


async def run(asked: RunPlan, out: Path, *, resume: bool = False, interrupt_at: int | None = None) -> Any:
    quiet = Quiet()
    session = Session(asked, out, quiet, resume=resume)
    quiet.session, quiet.interrupt_at = session, interrupt_at
    summary: Summary = await session.run()
    return quiet, summary


async def test_an_interrupted_run_is_resumed_at_the_next_cell(server: Any, tmp_path: Path) -> None:
    server.ttft_s = 0.1
    out = tmp_path / "run"
    asked = plan(server.url)
    quiet, _ = await run(asked, out, interrupt_at=2)
    first = load_run(out)
    assert first.manifest.status == "interrupted"
    assert first.manifest.ended == "the user interrupted the run"
    assert [cell.status for cell in first.manifest.cells] == ["complete", "interrupted"]
    kept = first.requests.filter([cell.endswith("c1.0") for cell in first.requests["cell_id"].to_pylist()])
    quiet, summary = await run(asked, out, resume=True)
    assert quiet.started == ["a.concurrency.c2.0", "a.concurrency.c3.0"]
    second = load_run(out)
    assert second.manifest.status == "complete"
    assert second.manifest.run_id == first.manifest.run_id
    assert [cell.status for cell in second.manifest.cells] == ["complete"] * 3
    assert second.requests.num_rows == 24
    assert second.requests.slice(0, 8).to_pylist() == kept.to_pylist()
    assert {cell.requests_ok for cell in summary.cells} == {8}
    assert {file.name for file in (out / "unfinished").iterdir()} >= {"requests-0.parquet"}
    # A run that is complete has nothing left to do, and may be asked again.
    quiet, summary = await run(asked, out, resume=True)
    assert quiet.started == []
    assert "a: every cell is complete already" in quiet.notes
    assert load_run(out).requests.to_pylist() == second.requests.to_pylist()
    assert len(summary.cells) == 3


async def test_a_run_that_is_being_written_is_not_resumed(server: Any, tmp_path: Path) -> None:
    asked = plan(server.url)
    holder = Session(asked, tmp_path / "run", Quiet())
    with pytest.raises(RunWriteError, match="being written by another process"):
        Session(asked, tmp_path / "run", Quiet(), resume=True)
    holder.interrupt()


async def test_the_next_engine_goes_on_when_one_is_not_there(server: Any, tmp_path: Path) -> None:
    asked = plan(server.url)
    asked.engines.insert(0, make_plan({"engines": ["gone=http://127.0.0.1:9"]}, "t").engines[0])
    with pytest.raises(EngineError, match="no HTTP server answers"):
        await run(asked, tmp_path / "run")
    done = load_run(tmp_path / "run")
    assert done.manifest.status == "failed"
    assert "no HTTP server answers" in (done.manifest.ended or "")
    assert [cell.status for cell in done.manifest.cells] == ["complete"] * 3
    assert done.summary is not None


async def test_a_wrong_recipe_stops_the_run_before_anything_is_measured(server: Any, tmp_path: Path) -> None:
    asked = plan(server.url)
    asked.engines.append(make_plan({"engines": ["b=recipe:reference,kv_memroy=1GiB"]}, "t").engines[0])
    with pytest.raises(RecipeError, match="did you mean 'kv_memory'"):
        await run(asked, tmp_path / "run")
    assert load_run(tmp_path / "run").manifest.cells == []


async def test_a_search_finds_the_concurrency_that_the_engine_serves_at_once(server: Any, tmp_path: Path) -> None:
    gate = asyncio.Semaphore(3)  # three at once are served at once, the others wait

    async def serve(connection: Any, asked: Any) -> None:
        async with gate:
            server.ttft_s = 0.1
            await server.stream(connection, asked)

    server.script = serve
    # Served at once it takes 0.1 s, after one wait 0.2 s: a busy machine has 70 ms before it changes the answer.
    goal = {"over": "concurrency", "attainment": 0.8, "limit": 16}
    asked = plan(server.url, workloads="chat:scale=0.02", num_requests=30, slo={"e2e": 170.0}, find_max=goal)
    quiet, summary = await run(asked, tmp_path / "run")
    (found,) = load_run(tmp_path / "run").manifest.searches
    assert summary.searches == [found]
    assert (found.best, found.refuted) == (3, 4), quiet.notes
    assert found.sentence in quiet.notes[-1]
    assert {probe.level for probe in found.probes} >= {1, 2, 3, 4}


async def test_a_search_finds_the_knee_of_the_emulator(tmp_path: Path) -> None:
    """Four sequences run at once; with five one of them waits a whole answer, and a fifth misses the SLO."""
    options = make_options(ttft_ms=30, itl_ms=1, tokens=20, max_num_seqs=4)
    goal = {"over": "concurrency", "attainment": 0.9, "start": 2, "limit": 16}
    async with Emulator(options) as emulator:
        asked = plan(
            emulator.url, workloads="concurrency:input=5,output=20", num_requests=70, slo={"ttft": 65.0}, find_max=goal
        )
        quiet, summary = await run(asked, tmp_path / "run")
    (found,) = summary.searches
    assert (found.best, found.refuted, found.inconclusive) == (4, 5, False), quiet.notes
    assert all(probe.verdict == ("pass" if probe.level <= 4 else "fail") for probe in found.probes)


async def test_an_engine_that_fails_requests_is_refuted_and_not_inconclusive(server: Any, tmp_path: Path) -> None:
    running = 0

    async def serve(connection: Any, asked: Any) -> None:
        nonlocal running
        if running >= 2:
            connection.answer({"error": {"message": "busy"}}, 429)
            return
        running += 1
        try:
            await server.stream(connection, asked)
        finally:
            running -= 1

    # Long against any pause of the machine: a slot that falls free meanwhile lets more of the third stream through.
    server.script, server.ttft_s = serve, 0.1
    goal = {"over": "concurrency", "attainment": 0.8, "limit": 8}
    asked = plan(server.url, workloads="concurrency:input=5,output=4", num_requests=40, slo={"e2e": 5e3}, find_max=goal)
    for attempt in range(3):  # a machine that pauses in both cells of a level leaves that search, rightly, undecided
        quiet, summary = await run(asked, tmp_path / f"run{attempt}")
        (found,) = summary.searches
        if not found.inconclusive:
            break
    assert (found.best, found.refuted, found.inconclusive) == (2, 3, False), quiet.notes
    assert any(cell.validity == "INVALID" for cell in summary.cells)


async def test_the_staircase_is_left_when_throughput_stops_rising(server: Any, tmp_path: Path) -> None:
    gate = asyncio.Semaphore(2)

    async def serve(connection: Any, asked: Any) -> None:
        async with gate:
            server.ttft_s = 0.04
            await server.stream(connection, asked)

    server.script = serve
    asked = plan(server.url, workloads="concurrency:input=5,output=4,max_level=64", num_requests=16)
    quiet, _ = await run(asked, tmp_path / "run")
    # Two at once are all that it serves; noise may make one more level look like a gain, never all of them.
    assert quiet.started[:4] == [f"a.concurrency.c{level}.0" for level in (1, 2, 4, 8)]
    assert len(quiet.started) < 7
    assert any("gains nothing beyond" in note for note in quiet.notes)


async def test_a_step_of_the_wall_clock_changes_nothing(server: Any, tmp_path: Path, monkeypatch: Any) -> None:
    real, start = time.time, time.time()
    monkeypatch.setattr(time, "time", lambda: real() + (3600.0 if real() > start + 0.1 else 0.0))
    server.ttft_s = 0.02
    _, summary = await run(plan(server.url), tmp_path / "run")
    for cell in summary.cells:
        assert cell.requests_ok == 8
        assert cell.e2e.max is not None
        assert cell.e2e.max < 60_000
