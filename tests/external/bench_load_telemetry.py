"""What watching costs: output tokens/s with telemetry against without, in interleaved pairs on one running engine.

Each pair drives the same requests twice, once with everything sampled that ``pagedbench run`` samples, once with
nothing; which comes first alternates.  The change is the mean of the pairs' log ratios with Student's interval.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
    devices.close()
    journals.close()
    return judged({"engine": subject.name, "pairs": len(pairs), **change(pairs), "tokens_per_s": pairs})


def change(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The relative change of (with, without), and its 95 % interval."""
    logs = np.log([on / off for on, off in pairs])
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    mean = float(logs.mean())
    return {"change": math.expm1(mean), "low": math.expm1(mean - half), "high": math.expm1(mean + half)}


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its verdict: the whole interval must lie above a loss of ``MAX_CHANGE``."""
    missed = []
    if row["low"] < -MAX_CHANGE:
        missed.append(f"a loss of {-row['low']:.2%} is not excluded (mean {row['change']:+.2%})")
    return {**row, "met": not missed, "missed": missed}


def measure() -> Iterator[dict[str, Any]]:
    """One row an engine, as it ends."""
    for subject in SUBJECTS:
        yield asyncio.run(measure_subject(subject))
