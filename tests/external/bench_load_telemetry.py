"""What watching costs: output tokens/s with telemetry against without, in interleaved pairs on one running engine.

Each pair drives the same requests twice, once with everything sampled that ``pagedbench run`` samples, once with
nothing; which comes first alternates.  The change is the mean of the pairs' log ratios with Student's interval.

A machine whose speed wanders by more than the bound hides the answer.  So the work itself is measured, too: the CPU time
of the engine and of this process while nothing is asked, watched less unwatched, as a share of all cores.  That is what
an engine that uses every core could lose.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy import stats

from harness.load.cell import CellPlan, CellRun
from harness.load.client_options import ClientOptions
from harness.load.engine_room import ReadyEngine, ready_engine, scrapers_of
from harness.load.plan import EngineAsked, parse_engine
from harness.load.worker import SharedJournals
from harness.telemetry.nvml import NvmlSampler
from harness.telemetry.watch import Watch
from workloads.request import Load, RequestSpec

MAX_CHANGE = 0.01
WORK_S, WORK_PAIRS = 10.0, 3


@dataclass(frozen=True)
class Subject:
    """An engine by its recipe, and what it is asked in each cell."""

    name: str
    recipe: str
    streams: int
    requests: int
    output_tokens: int
    pairs: int


SUBJECTS = (
    Subject("emulator", "recipe:emulator,ttft_ms=50,itl_ms=20", 100, 200, 100, 6),
    # All but the few tokens of the prompt is decoding, so that a cell is short and its speed steady.
    Subject("reference", "recipe:reference,kv_memory=64MiB", 4, 8, 48, 20),
)


async def measure_subject(subject: Subject) -> dict[str, Any]:
    """Launch the engine and measure it."""
    with tempfile.TemporaryDirectory() as text:
        asked = EngineAsked(**parse_engine(f"{subject.name}={subject.recipe}"))
        async with ready_engine(asked, Path(text), print, api_key=None) as engine:
            return await measure_engine(subject, engine, Path(text))


async def measure_engine(subject: Subject, engine: ReadyEngine, folder: Path) -> dict[str, Any]:
    """The pairs of one engine; one cell before them warms up both."""
    journals = SharedJournals({name: folder / f"{name}.jsonl" for name in ("requests", "chunks", "system", "metrics")})
    devices = NvmlSampler()
    options = ClientOptions(urls=(engine.found.info.url,))

    async def tokens_per_s(cell: str, watched: bool) -> float:
        specs = tuple(
            RequestSpec(index, None, f"Story {index}: once upon a time", 8, subject.output_tokens)
            for index in range(subject.requests)
        )
        plan = CellPlan(cell, Load("closed", concurrency=subject.streams), (), specs)
        devices.pids = engine.pids or (lambda: [])
        async with options.make() as client:
            run = CellRun(plan, client, engine.dialect, journals)
            start = time.monotonic()
            if watched:
                scrapers = scrapers_of(engine.found, None)
                async with Watch(cell, journals.append, scrapers=scrapers, pids=engine.pids, devices=devices) as watch:
                    await run.run()
                    end = time.monotonic()
                if watch.error is not None:
                    raise watch.error
            else:
                await run.run()
                end = time.monotonic()
        if run.progress.failed:
            raise SystemExit(f"{subject.name}: {run.progress.failed} requests failed: {run.progress.last_error}")
        return run.progress.settled_tokens / (end - start)

    await tokens_per_s("warm", False)
    pairs = []
    for number in range(subject.pairs):
        first = number % 2 == 0
        one = await tokens_per_s(f"{number}.a", first)
        two = await tokens_per_s(f"{number}.b", not first)
        pairs.append((one, two) if first else (two, one))
    shares = []
    for number in range(WORK_PAIRS):
        without = await idle_cpu_s(engine, None)
        scrapers = scrapers_of(engine.found, None)
        watch = Watch(f"idle.{number}", journals.append, scrapers=scrapers, pids=engine.pids, devices=devices)
        shares.append((await idle_cpu_s(engine, watch) - without) / WORK_S / (os.cpu_count() or 1))
    devices.close()
    journals.close()
    row = {"engine": subject.name, "pairs": len(pairs), **change(pairs), "work": max(shares), "works": shares}
    return judged({**row, "tokens_per_s": pairs})


async def idle_cpu_s(engine: ReadyEngine, watch: Watch | None) -> float:
    """CPU seconds of the engine and of this process over ``WORK_S`` in which nothing is asked."""
    processes = [psutil.Process(pid) for pid in (os.getpid(), *(engine.pids() if engine.pids else ()))]

    def used() -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in processes))

    before = used()
    if watch is None:
        await asyncio.sleep(WORK_S)
    else:
        async with watch:
            await asyncio.sleep(WORK_S)
    return used() - before


def change(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The relative change of (with, without), and its 95 % interval."""
    logs = np.log([on / off for on, off in pairs])
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    mean = float(logs.mean())
    return {"change": math.expm1(mean), "low": math.expm1(mean - half), "high": math.expm1(mean + half)}


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its verdict: work and the whole interval must lie above a loss of ``MAX_CHANGE``."""
    missed = []
    if row["low"] < -MAX_CHANGE:
        missed.append(f"a loss of {-row['low']:.2%} is not excluded (mean {row['change']:+.2%})")
    if row["work"] > MAX_CHANGE:
        missed.append(f"telemetry takes {row['work']:.2%} of the machine")
    return {**row, "met": not missed, "missed": missed}


def measure() -> Iterator[dict[str, Any]]:
    """One row an engine, as it ends."""
    for subject in SUBJECTS:
        yield asyncio.run(measure_subject(subject))
