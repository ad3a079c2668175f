"""Chunks per second over worker processes: does a second worker carry a second load at the same cost?

Each worker gets a C server and so many streams of its own; two workers are asked for twice the chunks.  Delivered is
what the servers saw arrive, as a share of the ideal; the CPU cost is that of the workers' own meters.  Servers and workers
share the machine's cores: on two cores the second pair competes with the first (which also makes a chunk dearer, so the
ratio of the costs is shown and not judged), and the result is a lower bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from known_server import ITL_MS, MODEL, TOKENS, TTFT_MS, answer_s, delivered_share, serving

from harness.load.cell import CellPlan
from harness.load.client_options import ClientOptions
from harness.load.dialect import Dialect
from harness.load.workers import WorkersRun
from workloads.request import Load, RequestSpec

STREAMS, ROUNDS = 400, 4  # of each worker: 20,000 chunks/s
MIN_DELIVERED, MIN_SPEEDUP = 0.98, 0.95  # of ideal; of linear


def measure(levels: tuple[int, ...] = (1, 2)) -> Iterator[dict[str, Any]]:
    """One row for each number of workers, as it ends; compared with the first."""
    first: dict[str, Any] | None = None
    for workers in levels:
        row = measure_level(workers)
        first = first or row
        yield compared(row, first)


def compared(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """The row beside the smallest number of workers, with the bounds that it missed."""
    linear = row["workers"] / first["workers"]
    speedup = row["chunks_per_s"] / first["chunks_per_s"]
    cost = row["cpu_us_per_chunk"] / first["cpu_us_per_chunk"]
    missed = []
    if row["failed"]:
        missed.append(f"{row['failed']} requests failed")
    if row["delivered"] < MIN_DELIVERED:
        missed.append(f"delivered {row['delivered']:.3f} of ideal")
    if speedup < MIN_SPEEDUP * linear:
        missed.append(f"{speedup:.2f} times the chunks for {linear:g} times the workers")
    return {**row, "speedup": speedup, "cost_ratio": cost, "met": not missed, "missed": missed}


def measure_level(workers: int) -> dict[str, Any]:
    """``workers`` processes, as many servers, ``STREAMS`` streams for each."""
    with tempfile.TemporaryDirectory() as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        cores = sorted(os.sched_getaffinity(0))
        # With cores enough each server has its own, and the workers the rest.
        apart = len(cores) >= 2 * workers
        servers = [
            stack.enter_context(serving("c", folder / str(n), cores=str(cores[n]) if apart else ""))
            for n in range(workers)
        ]
        if apart:
            os.sched_setaffinity(0, cores[workers:])
        try:
            streams, journals = STREAMS * workers, {t: folder / f"{t}.jsonl" for t in ("requests", "chunks", "system")}
            specs = tuple(RequestSpec(i, None, "one two three four", 4, TOKENS) for i in range(streams * ROUNDS))
            plan = CellPlan("cell", Load("closed", concurrency=streams), (), specs)
            options = ClientOptions(urls=tuple(url for url, _ in servers))
            asyncio.run(WorkersRun(plan, options, Dialect(MODEL), journals, workers).run())
        finally:
            os.sched_setaffinity(0, cores)
        truth = [one for _, end in servers for one in end()]
        failed = sum(not json.loads(line)["ok"] for line in journals["requests"].open("rb") if line.strip())
        cpu = cpu_seconds(journals["system"])
    delivered = delivered_share(truth, streams, answer_s())
    assert delivered is not None
    rate = delivered * streams * TOKENS / answer_s()
    wall_s = (max(one[-1] for one in truth) - min(one[0] for one in truth)) / 1e9
    return {
        "workers": workers, "streams": streams, "servers_on_own_cores": apart, "ttft_ms": TTFT_MS, "itl_ms": ITL_MS,
        "failed": failed, "chunks": sum(one.size - 1 for one in truth), "delivered": delivered, "chunks_per_s": rate,
        "cpu_us_per_chunk": cpu / sum(one.size - 1 for one in truth) * 1e6, "wall_s": wall_s,
    }  # fmt: skip


def cpu_seconds(system: Path) -> float:
    """What the workers' own meters come to: each sample is the share of a core since the one before it."""
    shares: dict[str, list[tuple[int, float]]] = {}
    for line in system.open("rb"):
        row = json.loads(line)
        if row["name"] == "cpu_percent":
            shares.setdefault(row["label"], []).append((row["t"], row["value"]))
    total = 0.0
    for samples in shares.values():
        t, percent = np.array(samples).T
        total += float((np.diff(t, prepend=t[0] - np.diff(t).mean()) * percent).sum()) / 1e11
    return total
