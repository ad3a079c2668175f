"""A whole run: engines one after another, every cell of the plan on each, one run directory."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from harness.engines.catalogue import find
from harness.engines.dialects import dialect_of
from harness.engines.errors import EngineError, LaunchError, UnreachableError
from harness.engines.launch import RunningEngine, launched
from harness.engines.metrics import parse_slots
from harness.engines.probe import Probe, probe, probe_launched
from harness.engines.token_counter import ServerCounter
from harness.load.cell import CellPlan, CellRun
from harness.load.client import Client
from harness.load.dialect import Dialect
from harness.load.plan import EngineAsked, RunPlan
from harness.load.progress import Progress
from harness.load.schedule import Schedule, build_schedules
from harness.load.tokenizer_file import FileCounter
from harness.results.metrics import summarise
from harness.results.reader import load_run
from harness.results.schema import CellInfo, RunManifest, Summary
from harness.results.writer import RunWriter, write_summary
from harness.telemetry.machine import describe_machine
from harness.telemetry.nvml import NvmlSampler
from harness.telemetry.scrape import Scraper
from harness.telemetry.watch import Watch
from workloads.tokens import TokenCounter, WordCounter


class Display(Protocol):
    """Whoever tells the user what goes on.  Called on the load loop, between cells only."""

    def note(self, sentence: str) -> None: ...

    def cell_started(self, cell: CellInfo, progress: Progress, scrapers: Sequence[Scraper]) -> None: ...

    def cell_ended(self, cell: CellInfo, progress: Progress) -> None: ...


@dataclass(frozen=True, slots=True)
class ReadyEngine:
    """An engine that answers, and how to speak to it."""

    found: Probe
    dialect: Dialect
    pids: Callable[[], Sequence[int]] | None
    crash: Callable[[], str | None]


class Session:
    """Runs a plan into the directory ``out``.  ``await run()`` once; ``interrupt()`` from a signal handler."""

    def __init__(
        self, plan: RunPlan, out: Path, display: Display, *, command: Sequence[str] = (), api_key: str | None = None
    ) -> None:
        self._plan = plan
        self._display = display
        self._api_key = api_key
        self._devices = NvmlSampler()
        if self._devices.reason is not None:
            display.note(f"no device telemetry: {self._devices.reason}")
        self._manifest = RunManifest(
            run_id=f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
            created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            tool_version=_own_version(),
            command=list(command),
            seed=plan.seed,
            slo=plan.slo,
            machine=describe_machine(self._devices.devices),
            engines=[],
            cells=[],
        )
        self._writer = RunWriter(out, self._manifest)
        self._schedules: list[Schedule] | None = None
        self._cell: CellRun | None = None
        self._task: asyncio.Task[object] | None = None
        self._interrupted = False

    def interrupt(self) -> None:
        """End early: keep what was measured, start nothing more."""
        self._interrupted = True
        if self._cell is not None:
            self._cell.interrupt()
        elif self._task is not None:
            self._task.cancel()

    async def run(self) -> Summary:
        """Every cell, then the tables and the summary.

        Whatever ends the run early, what was measured is kept and the manifest says how it ended.  Raises EngineError,
        WorkloadError, CountError and RunWriteError after that.
        """
        self._task = asyncio.current_task()
        try:
            for asked in self._plan.engines:
                async with self._engine(asked) as engine:
                    await self._measure(asked, engine)
                if self._interrupted:
                    break
            self._manifest.status = "interrupted" if self._interrupted else "complete"
        except asyncio.CancelledError:
            self._manifest.status = "interrupted"
            if not self._interrupted:
                raise
        except BaseException:
            self._manifest.status = "failed"
            raise
        finally:
            summary = self._finish()
        return summary

    @property
    def was_interrupted(self) -> bool:
        return self._interrupted

    def _finish(self) -> Summary:
        """Tables, manifest and summary from whatever was written."""
        self._writer.close()
        self._devices.close()
        summary = summarise(load_run(self._writer.path))
        write_summary(self._writer.path, summary)
        return summary

    @contextlib.asynccontextmanager
    async def _engine(self, asked: EngineAsked) -> AsyncIterator[ReadyEngine]:
        """The engine, launched if it has a recipe, probed, and listed in the manifest."""
        async with contextlib.AsyncExitStack() as stack:
            running: RunningEngine | None = None
            if asked.recipe is not None:
                self._display.note(f"starting {asked.name} ({asked.recipe})")
                recipe = find(asked.recipe)
                logs = self._writer.path / "logs"
                running = await stack.enter_async_context(launched(recipe, asked.settings, logs, name=asked.name))
                found = await probe_launched(running, recipe)
            else:
                assert asked.url is not None
                found = await probe(asked.url, self._api_key, asked.model, name=asked.name)
            info = found.info
            self._display.note(
                f"{asked.name}: {info.kind or 'engine'} {info.version or ''} serves {info.model} at {info.url}"
            )
            for note in found.capabilities.notes:
                self._display.note(f"{asked.name}: {note}")
            self._manifest.engines.append(info)
            self._writer.save_manifest()
            yield ReadyEngine(
                found=found,
                dialect=dialect_of(found, asked.extra_body),
                pids=None if running is None else running.pids,
                crash=(lambda: None) if running is None else running.crash,
            )

    async def _measure(self, asked: EngineAsked, engine: ReadyEngine) -> None:
        """Every cell of the plan on one engine."""
        if self._schedules is None:
            self._schedules = await self._build(engine)
        info = engine.found.info
        client = Client(
            info.url,
            api_key=self._api_key,
            timeouts=self._plan.timeouts.timeouts(),
            verify_tls=self._plan.verify_tls,
        )
        async with client:
            for schedule in self._schedules:
                await self._measure_cell(asked.name, engine, client, schedule)
                if self._interrupted:
                    return
                crash = engine.crash()
                if crash is not None:
                    raise LaunchError(crash)

    async def _measure_cell(self, name: str, engine: ReadyEngine, client: Client, schedule: Schedule) -> None:
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
        )
        run = CellRun(plan, client, engine.dialect, self._writer)
        scrapers = self._scrapers(engine.found)
        self._display.cell_started(cell, run.progress, scrapers)
        self._cell = run
        try:
            devices = self._devices
            with Watch(
                cell.cell_id, self._writer.append, scrapers=scrapers, pids=engine.pids, devices=devices
            ) as watch:
                outcome = await run.run()
        finally:
            self._cell = None
        cell.t_start, cell.t_end, cell.status = outcome.t_start, outcome.t_end, outcome.status
        if outcome.ran_dry:
            cell.workload.parameters["schedule"]["ran_dry"] = True
        self._writer.save_manifest()
        self._display.cell_ended(cell, run.progress)
        if watch.error is not None:
            raise watch.error

    def _scrapers(self, found: Probe) -> list[Scraper]:
        """What the engine tells about itself: ``/metrics``, and the ``/slots`` of llama.cpp."""
        scrapers = []
        if found.capabilities.metrics:
            scrapers.append(Scraper(found.info.url, api_key=self._api_key))
        if found.capabilities.slots:
            pool = found.info.settings.get("kv_tokens")
            parse = functools.partial(parse_slots, pool_tokens=pool if isinstance(pool, int) else None)
            scrapers.append(Scraper(found.info.url, path="/slots", api_key=self._api_key, parse=parse))
        return scrapers

    async def _build(self, first: ReadyEngine) -> list[Schedule]:
        """The schedules of all engines, counted by the first that can tokenize."""
        limits = [self._plan.max_model_len, first.found.info.max_model_len]
        limits += [_limit_of(asked) for asked in self._plan.engines]
        limit = min((limit for limit in limits if limit is not None), default=None)
        with contextlib.ExitStack() as stack:
            counter = await self._counter(first, stack)
            self._display.note(f"building prompts, tokens counted by {counter.name}")
            schedules = await asyncio.to_thread(lambda: list(build_schedules(self._plan, counter, limit)))
        inexact = sum(not request.exact for schedule in schedules for request in schedule.requests)
        if inexact and not isinstance(counter, WordCounter):
            self._display.note(
                f"{inexact} prompts could not be made exactly as long as drawn; their real length is used"
            )
        return schedules

    async def _counter(self, first: ReadyEngine, stack: contextlib.ExitStack) -> TokenCounter:
        if self._plan.tokenizer is not None:
            return FileCounter(self._plan.tokenizer)
        candidates = [first.found]
        if first.found.capabilities.tokenize is None:
            for asked in self._plan.engines:
                if asked.url is not None and asked.name != first.found.info.name:
                    with contextlib.suppress(UnreachableError):
                        candidates.append(await probe(asked.url, self._api_key, asked.model, name=asked.name))
        for found in candidates:
            if found.capabilities.tokenize is not None:
                server = ServerCounter(
                    found.info.url, found.capabilities.tokenize, model=found.info.model, api_key=self._api_key
                )
                return stack.enter_context(server)
        self._display.note("no engine has /tokenize and no --tokenizer was given: prompt lengths are estimates")
        return WordCounter()


def _limit_of(asked: EngineAsked) -> int | None:
    """The context length that a recipe's settings ask for, when they do."""
    value = asked.settings.get("max_model_len")
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        raise EngineError(f"engine {asked.name!r}: max_model_len must be a whole number, not {value!r}") from None


def _own_version() -> str:
    try:
        return version("pagedbench")
    except PackageNotFoundError:
        return "0+unknown"
