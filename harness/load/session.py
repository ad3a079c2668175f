"""A whole run: engines one after another, every cell of the plan on each, one run directory."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from harness.emulator.calibration_store import load_calibration
from harness.engines.errors import EngineError, LaunchError
from harness.engines.probe import Probe
from harness.load.book import ScheduleBook
from harness.load.cell import CellPlan, CellRun
from harness.load.client import Client
from harness.load.client_options import ClientOptions
from harness.load.engine_room import ReadyEngine, check_recipes, context_limit, ready_engine, scrapers_of, token_counter
from harness.load.kept import kept_indices
from harness.load.levels import MeasureLevel, Showing, climb, find_max, search_info
from harness.load.plan import EngineAsked, FindMax, RunPlan
from harness.load.portable import PortableClient
from harness.load.progress import Progress
from harness.load.ray_team import RayRun
from harness.load.schedule import Chapter, Schedule, chapters
from harness.load.search import requests_to_pass
from harness.load.workers import WorkersRun
from harness.results.cells import CellData
from harness.results.metrics import numbers_and_measures, summarise, summarise_cell
from harness.results.reader import load_run, load_table
from harness.results.schema import CellInfo, RunManifest, RunStatus, Summary
from harness.results.slo import attainment
from harness.results.validity import disbelief
from harness.results.writer import RunWriter, write_summary
from harness.telemetry.machine import describe_machine
from harness.telemetry.nvml import NvmlSampler
from harness.telemetry.scrape import Scraper
from harness.telemetry.watch import Watch
from workloads.request import Load
from workloads.tokens import TokenCounter

SECRET_KEYS = {"headers"}  # of a plan; never stored
PROBE_MARGIN = 2  # a probe of a search has so many times the fewest requests that could clear the target


class Display(Protocol):
    """Whoever tells the user what goes on.  Called on the load loop, between cells only."""

    def note(self, sentence: str) -> None: ...

    def cell_started(self, cell: CellInfo, progress: Progress, scrapers: Sequence[Scraper]) -> None: ...

    def cell_ended(self, cell: CellInfo, progress: Progress) -> None: ...


class Verifier(Protocol):
    """Judges answers that were kept of the loaded cells of one engine, which is still up and idle."""

    async def judge(self, found: Probe, cells: Sequence[CellInfo], rows: Sequence[Mapping[str, Any]]) -> None: ...


@dataclass(frozen=True, slots=True)
class Cells:
    """Where the cells of one engine are measured."""

    engine: str
    ready: ReadyEngine
    client: Client | PortableClient
    options: ClientOptions  # what it was made of


class Session:
    """Runs a plan into the directory ``out``.  ``await run()`` once; ``interrupt()`` from a signal handler."""

    def __init__(
        self,
        plan: RunPlan,
        out: Path,
        display: Display,
        *,
        command: Sequence[str] = (),
        api_key: str | None = None,
        resume: bool = False,
        verifier: Verifier | None = None,
    ) -> None:
        """``resume`` goes on with the run in ``out``.  Raises RunWriteError."""
        self._verifier = verifier
        self._plan = plan
        self._display = display
        self._api_key = api_key
        self._devices = NvmlSampler()
        if self._devices.reason is not None:
            display.note(f"no device telemetry: {self._devices.reason}")
        if resume:
            self._writer = RunWriter.resume(out)
            kept = len(self._writer.manifest.cells)
            display.note(f"going on with {out}: {kept} cell{'' if kept == 1 else 's'} complete")
        else:
            self._writer = RunWriter(out, self._new_manifest(command))
        self._manifest = self._writer.manifest
        self._book: ScheduleBook | None = None
        self._cell: CellRun | WorkersRun | RayRun | None = None
        self._task: asyncio.Task[object] | None = None
        self._interrupted = False

    def _new_manifest(self, command: Sequence[str]) -> RunManifest:
        return RunManifest(
            run_id=f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
            created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            tool_version=_own_version(),
            command=list(command),
            seed=self._plan.seed,
            slo=self._plan.slo,
            machine=describe_machine(self._devices.devices).model_copy(update={"calibration": load_calibration()}),
            engines=[],
            cells=[],
            plan=self._plan_for_record(),
        )

    def _plan_for_record(self) -> dict[str, Any]:
        return self._plan.model_dump(mode="json", exclude_defaults=True, exclude=SECRET_KEYS)

    def interrupt(self) -> None:
        """End early: keep what was measured, start nothing more."""
        self._interrupted = True
        if self._cell is not None:
            self._cell.interrupt()
        elif self._task is not None:
            self._task.cancel()

    async def run(self) -> Summary:
        """Every cell, then the tables and the summary.

        An engine that fails costs its own cells; the next one goes on.  Whatever ends the run early, what was measured
        is kept and the manifest says how it ended.  Raises EngineError (the first), WorkloadError, CountError and
        RunWriteError after that.
        """
        self._task = asyncio.current_task()
        failures: list[EngineError] = []
        try:
            await asyncio.to_thread(check_recipes, self._plan)
            for asked in self._plan.engines:
                try:
                    await self._measure_engine(asked)
                except EngineError as error:
                    failures.append(error)
                    self._display.note(str(error))
                    self._fail_open_cells()
                if self._interrupted:
                    break
            self._end("interrupted" if self._interrupted else "failed" if failures else "complete", failures)
        except asyncio.CancelledError:
            self._end("interrupted")
            if not self._interrupted:
                raise
        except BaseException as error:
            self._fail_open_cells()
            self._end("failed", [error])
            raise
        finally:
            summary = self._finish()
        if failures:
            raise failures[0]
        return summary

    @property
    def was_interrupted(self) -> bool:
        return self._interrupted

    def _end(self, status: RunStatus, errors: Sequence[BaseException] = ()) -> None:
        self._manifest.status = status
        if status == "interrupted":
            self._manifest.ended = "the user interrupted the run"
        elif errors:
            self._manifest.ended = str(errors[0]) or type(errors[0]).__name__

    def _fail_open_cells(self) -> None:
        for cell in self._manifest.cells:
            if cell.status == "running":
                cell.status = "failed"

    def _finish(self) -> Summary:
        """Tables, manifest and summary from whatever was written."""
        self._devices.close()
        self._writer.close()
        summary = summarise(load_run(self._writer.path))
        write_summary(self._writer.path, summary)
        return summary

    async def _measure_engine(self, asked: EngineAsked) -> None:
        """Every cell of the plan on one engine.  Raises EngineError when it is gone."""
        if self._plan.find_max is None and self._is_done(asked):
            self._display.note(f"{asked.name}: every cell is complete already")
            return
        with contextlib.ExitStack() as stack:
            logs = self._writer.path / "logs"
            async with ready_engine(asked, logs, self._display.note, api_key=self._api_key) as engine:
                info = engine.found.info
                self._manifest.engines = [known for known in self._manifest.engines if known.name != info.name] + [info]
                self._writer.save_manifest()
                await self._open_book(engine.found, stack)
                options = ClientOptions(
                    urls=(info.url, *asked.replicas),
                    api_key=self._api_key,
                    headers=self._plan.headers,
                    timeouts=self._plan.timeouts.timeouts(),
                    verify_tls=self._plan.verify_tls,
                    transport=self._plan.transport,
                )
                async with options.make() as client:
                    for chapter in chapters(self._plan):
                        await self._measure_chapter(chapter, Cells(asked.name, engine, client, options))
                await self._judge_answers(engine.found)

    async def _judge_answers(self, found: Probe) -> None:
        if self._verifier is None or self._interrupted:
            return
        cells = [cell for cell in self._manifest.cells if cell.engine == found.info.name]
        mine = {cell.cell_id for cell in cells}
        rows = load_table(self._writer.path, "answers", self._manifest.generation).to_pylist()
        await self._verifier.judge(found, cells, [row for row in rows if row["cell_id"] in mine])

    async def _open_book(self, found: Probe, stack: contextlib.ExitStack) -> None:
        """Have someone count tokens while this engine is measured, and make the schedules that are known ahead."""
        is_first = self._book is None
        if is_first:
            self._learn_pool(found)
        counter: TokenCounter | None = None
        if self._book is None or self._plan.find_max is not None or any(c.climbs for c in chapters(self._plan)):
            counter = await token_counter(self._plan, found, stack, self._display.note, api_key=self._api_key)
        if self._book is None:
            assert counter is not None
            self._book = ScheduleBook(self._plan, context_limit(self._plan, found), counter)
        elif counter is not None:
            self._book.counter = counter
        if is_first:
            self._display.note(f"building prompts, tokens counted by {self._book.counter.name}")
            await asyncio.to_thread(self._book.write_ahead)
            if self._book.inexact:
                self._display.note(
                    f"{self._book.inexact} prompts could not be made exactly as long as drawn; their real length is used"
                )

    def _learn_pool(self, found: Probe) -> None:
        """Tell workloads that are made for a pool of known size how large it is, where the engine says so."""
        pool = found.info.settings.get("kv_slots_reserved")
        for asked in self._plan.workloads:
            if asked.name == "kv-pressure" and pool and not int(asked.parameters.get("kv_tokens") or 0):
                asked.parameters["kv_tokens"] = int(pool)
                self._display.note(f"kv-pressure is made for the {int(pool)} KV slots that {found.info.name} tells")
        self._manifest.plan = self._plan_for_record()

    async def _measure_chapter(self, chapter: Chapter, cells: Cells) -> None:
        """One workload: its levels as they are, up the staircase, or searched."""
        if self._plan.find_max is not None:
            await self._search(self._plan.find_max, chapter, cells)
        elif chapter.climbs:
            await self._climb(chapter, cells)
        else:
            for load in chapter.loads:
                for repeat in range(self._plan.repeats):
                    await self._measure(chapter, load, repeat, cells)

    async def _climb(self, chapter: Chapter, cells: Cells) -> None:
        """Rising levels until throughput stops rising."""
        knee = await climb(chapter.loads, self._plan.repeats, self._levels(chapter, cells), self._speed_of)
        if knee is not None:
            self._display.note(f"{cells.engine}: {chapter.workload.name} gains nothing beyond {knee} at once")

    async def _search(self, goal: FindMax, chapter: Chapter, cells: Cells) -> None:
        """The highest level at which enough requests meet every SLO."""
        number = chapter.asked.num_requests or self._plan.num_requests
        if number is None and self._plan.duration is None:
            number = PROBE_MARGIN * requests_to_pass(goal.attainment, goal.confidence)
        search = goal.search()
        if not await find_max(search, number, self._levels(chapter, cells), self._showing_of, self._display.note):
            return
        found = search_info(search, cells.engine, chapter.workload.name, self._plan.slo)
        others = [s for s in self._manifest.searches if (s.engine, s.workload) != (found.engine, found.workload)]
        self._manifest.searches = [*others, found]
        self._writer.save_manifest()
        self._display.note(f"{found.engine}, {found.workload}: {found.sentence}")

    def _levels(self, chapter: Chapter, cells: Cells) -> MeasureLevel:
        """Runs one cell of a level and gives its id; None once the user has interrupted."""

        async def measure(load: Load, repeat: int, number: int | None) -> str | None:
            cell_id = await self._measure(chapter, load, repeat, cells, number)
            return None if self._interrupted else cell_id

        return measure

    async def _measure(self, chapter: Chapter, load: Load, repeat: int, cells: Cells, number: int | None = None) -> str:
        """Run one cell, unless it is complete from before or the user has interrupted; its id.

        Raises LaunchError when the engine is gone.
        """
        assert self._book is not None
        schedule = await asyncio.to_thread(self._book.schedule, chapter, load, repeat, number)
        cell_id = f"{cells.engine}.{schedule.key}"
        if self._interrupted or any(cell.cell_id == cell_id for cell in self._manifest.cells):
            return cell_id
        await self._measure_cell(cells, schedule)
        crash = cells.ready.crash()
        if crash is not None:
            raise LaunchError(crash)
        return cell_id

    def _is_done(self, asked: EngineAsked) -> bool:
        """Whether a resumed run holds every cell of an engine already; a staircase may have more to climb."""
        done = {cell.cell_id for cell in self._manifest.cells if cell.status == "complete"}
        keys = [
            f"{asked.name}.{chapter.key(load)}.{repeat}"
            for chapter in chapters(self._plan)
            for load in chapter.loads
            for repeat in range(self._plan.repeats)
        ]
        return bool(keys) and set(keys) <= done

    def _data_of(self, cell_id: str) -> CellData:
        run = load_run(self._writer.path)
        return CellData.of(run, next(cell for cell in run.manifest.cells if cell.cell_id == cell_id))

    def _speed_of(self, cell_id: str) -> float | None:
        return summarise_cell(self._data_of(cell_id), self._manifest).output_tokens_per_s

    def _showing_of(self, cell_id: str) -> Showing:
        data = self._data_of(cell_id)
        _, judged_by = numbers_and_measures(data, self._manifest)
        return Showing(*attainment(data, self._plan.slo), disbelief(judged_by))

    def _cell_run(self, plan: CellPlan, cells: Cells) -> CellRun | WorkersRun | RayRun:
        """The cell, driven by this process or by workers."""
        if self._plan.workers == 1:
            return CellRun(plan, cells.client, cells.ready.dialect, self._writer)
        if isinstance(self._plan.workers, str):
            return RayRun(plan, cells.options, cells.ready.dialect, self._writer, self._plan.workers)
        return WorkersRun(plan, cells.options, cells.ready.dialect, self._writer.journals, self._plan.workers)

    def _kept(self, schedule: Schedule) -> frozenset[int]:
        verify = self._plan.verify
        return frozenset() if verify is None else kept_indices(schedule, verify.answers, self._plan.seed)

    async def _measure_cell(self, cells: Cells, schedule: Schedule) -> None:
        name, engine = cells.engine, cells.ready
        cell = CellInfo(
            cell_id=f"{name}.{schedule.key}",
            engine=name,
            workload=schedule.workload.model_copy(deep=True),
            load=schedule.load_info,
            repeat=schedule.repeat,
        )
        self._manifest.cells.append(cell)
        self._writer.save_manifest()
        plan = CellPlan(
            cell_id=cell.cell_id,
            load=schedule.load,
            warmup=schedule.warmup,
            requests=schedule.requests,
            arrivals_ns=schedule.arrivals_ns,
            duration_s=schedule.duration_s,
            is_pool=schedule.is_pool,
            keep=self._kept(schedule),
        )
        run = self._cell_run(plan, cells)
        # Gauges of several servers cannot be read as those of one engine.
        sampled = self._plan.telemetry
        scrapers = [] if len(cells.options.urls) > 1 or not sampled else scrapers_of(engine.found, self._api_key)
        self._display.cell_started(cell, run.progress, scrapers)
        self._cell = run
        try:
            devices = self._devices
            if engine.pids is not None:
                devices.pids = engine.pids
            async with Watch(
                cell.cell_id,
                self._writer.append,
                scrapers=scrapers,
                pids=engine.pids if sampled else None,
                devices=devices if sampled else None,
            ) as watch:
                outcome = await run.run()
        finally:
            self._cell = None
        cell.t_start, cell.t_end, cell.status = outcome.t_start, outcome.t_end, outcome.status
        if outcome.ran_dry:
            cell.workload.parameters["schedule"]["ran_dry"] = True
        self._manifest.machine.gpus = [dict(device) for device in self._devices.devices]
        self._writer.save_manifest()
        self._display.cell_ended(cell, run.progress)
        if watch.error is not None:
            raise watch.error


def _own_version() -> str:
    try:
        return version("pagedbench")
    except PackageNotFoundError:
        return "0+unknown"
