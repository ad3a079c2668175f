"""What watching costs: output tokens/s with telemetry against without, in neighbouring windows of one running load.

While a closed loop runs, everything that ``pagedbench run`` samples is sampled in one window of some seconds and nothing in
the next; which comes first alternates.  A window's rate is the tokens that came in it.  The change is the mean of the pairs'
log ratios with Student's interval: neighbours in time share what else the machine does.

A machine whose speed wanders by more than the bound hides the answer all the same.  So the work itself is measured, too: the
CPU time of the engine and of this process while nothing is asked, watched less unwatched, as a share of all cores.
"""

from __future__ import annotations

import asyncio
import json
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
WARM_UP_S, WINDOW_S, MOST_REQUESTS = 8.0, 4.0, 20_000
WORK_S, WORK_PAIRS = 10.0, 3


@dataclass(frozen=True)
class Subject:
    """An engine by its recipe, and the load under which it is watched now and then."""

    name: str
    recipe: str
    streams: int
    output_tokens: int
    pairs: int


SUBJECTS = (
    Subject("emulator", "recipe:emulator,ttft_ms=50,itl_ms=20", 100, 100, 10),
    # All but the few tokens of the prompt is decoding, so that its speed is steady.
    Subject("reference", "recipe:reference,kv_memory=128MiB", 4, 400, 75),
)


async def measure_subject(subject: Subject) -> dict[str, Any]:
    """Launch the engine and measure it."""
    with tempfile.TemporaryDirectory() as text:
        asked = EngineAsked(**parse_engine(f"{subject.name}={subject.recipe}"))
        async with ready_engine(asked, Path(text), print, api_key=None) as engine:
            return await measure_engine(subject, engine, Path(text))


async def measure_engine(subject: Subject, engine: ReadyEngine, folder: Path) -> dict[str, Any]:
    """The pairs of one engine."""
    journals = SharedJournals({name: folder / f"{name}.jsonl" for name in ("requests", "chunks", "system", "metrics")})
    devices = NvmlSampler()
    devices.pids = engine.pids or (lambda: [])

    def watch(cell: str) -> Watch:
        scrapers = scrapers_of(engine.found, None)
        return Watch(cell, journals.append, scrapers=scrapers, pids=engine.pids, devices=devices)

    specs = tuple(
        RequestSpec(index, None, f"Story {index}: once upon a time", 8, subject.output_tokens)
        for index in range(MOST_REQUESTS)
    )
    seconds = WARM_UP_S + 2 * subject.pairs * WINDOW_S
    load = Load("closed", concurrency=subject.streams)
    plan = CellPlan("load", load, (), specs, duration_s=seconds)
    windows: list[tuple[bool, int, int]] = []

    async def toggle() -> None:
        await asyncio.sleep(WARM_UP_S)
        for number in range(subject.pairs):
            for watched in (True, False) if number % 2 else (False, True):
                start = time.monotonic_ns()
                if watched:
                    async with (seen := watch(f"{number}")):
                        await asyncio.sleep(WINDOW_S)
                    if seen.error is not None:
                        raise seen.error
                else:
                    await asyncio.sleep(WINDOW_S)
                windows.append((watched, start, time.monotonic_ns()))

    async with ClientOptions(urls=(engine.found.info.url,)).make() as client:
        run = CellRun(plan, client, engine.dialect, journals)
        await asyncio.gather(run.run(), toggle())
    if run.progress.failed:
        raise SystemExit(f"{subject.name}: {run.progress.failed} requests failed: {run.progress.last_error}")
    if run.progress.done >= MOST_REQUESTS:
        raise SystemExit(f"{subject.name}: all {MOST_REQUESTS} requests were answered before the last window")
    times = np.sort([json.loads(line)["t"] for line in (folder / "chunks.jsonl").read_bytes().splitlines()])
    pairs = paired_rates(windows, times)
    shares = []
    for number in range(WORK_PAIRS):
        without = await idle_cpu_s(engine, None)
        shares.append((await idle_cpu_s(engine, watch(f"idle.{number}")) - without) / WORK_S / (os.cpu_count() or 1))
    devices.close()
    journals.close()
    row = {"engine": subject.name, "pairs": len(pairs), **change(pairs), "work": max(shares), "works": shares}
    return judged({**row, "tokens_per_s": [[round(rate, 2) for rate in pair] for pair in pairs]})


def paired_rates(windows: list[tuple[bool, int, int]], times: Any) -> list[tuple[float, float]]:
    """(with, without) of each two neighbouring windows [chunks/s]; ``times`` of all chunks [ns], in order."""
    rates = []
    for watched, start, end in windows:
        count = np.searchsorted(times, end) - np.searchsorted(times, start)
        rates.append((watched, float(count) / ((end - start) / 1e9)))
    pairs = []
    for (first_watched, first), (_, second) in zip(rates[::2], rates[1::2], strict=True):
        pairs.append((first, second) if first_watched else (second, first))
    return pairs


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
