"""Reported times against those of a server in another process.  Bounds are for a machine that is not overloaded."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvloop

from harness.load.cell import CellPlan, CellRun
from harness.load.client import Client
from harness.load.dialect import Dialect
from harness.load.lag import own_cpu_s
from workloads.request import Load, RequestSpec

TTFT_S, ITL_S, TOKENS = 0.05, 0.02, 100


@pytest.fixture
def truth_url() -> Iterator[str]:
    script = Path(__file__).with_name("truth_server.py")
    command = [sys.executable, str(script), str(TTFT_S), str(ITL_S), str(TOKENS)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    child.kill()
    child.wait()
    child.stdout.close()


class Kept:
    """A sink that keeps request and chunk rows."""

    def __init__(self) -> None:
        self.requests: list[dict[str, int]] = []
        self.chunks: list[dict[str, int]] = []

    def append(self, table: str, rows: object) -> None:
        if table != "system":
            getattr(self, table).extend(rows)


def drive(url: str, streams: int, rounds: int) -> tuple[Kept, float]:
    """Rows, and the client's CPU seconds while the cell ran."""
    rows = Kept()
    requests = tuple(RequestSpec(i, None, "one two three " * 20, 60, TOKENS) for i in range(streams * rounds))
    plan = CellPlan("cell", Load("closed", concurrency=streams), (), requests)

    async def main() -> float:
        async with Client(url) as client:
            run = CellRun(plan, client, Dialect("words"), rows)
            before = own_cpu_s()
            await run.run()
            return own_cpu_s() - before

    return rows, uvloop.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 10, 50])
def test_times_agree_with_the_servers_own(truth_url: str, streams: int) -> None:
    rows, cpu_s = drive(truth_url, streams, 3)
    assert all(row["ok"] for row in rows.requests)
    with urllib.request.urlopen(f"{truth_url}/truth") as answer:
        truth = [np.array(times) for times in json.load(answer)]
    true_ttft = np.median([times[1] - times[0] for times in truth])
    true_itl = np.percentile(np.concatenate([np.diff(times[1:]) for times in truth]), [50, 99])
    ttft = np.median([row["t_first"] - row["t_send"] for row in rows.requests]) / 1e9
    by_request: dict[int, list[int]] = {}
    for chunk in rows.chunks:
        by_request.setdefault(chunk["request_index"], []).append(chunk["t"])
    itl = np.percentile(np.concatenate([np.diff(times) for times in by_request.values()]), [50, 99]) / 1e9
    print(
        f"{streams} streams: TTFT {ttft * 1e3:.2f} ms, truth {true_ttft * 1e3:.2f}; "
        f"{cpu_s / len(rows.chunks) * 1e6:.1f} us of CPU a chunk"
    )
    print(f"ITL p50 and p99 {itl * 1e3} ms, truth {true_itl * 1e3}")
    assert abs(ttft - true_ttft) < 0.005
    assert itl[0] == pytest.approx(true_itl[0], rel=0.02)


@pytest.mark.slow
def test_a_chunk_costs_little_cpu(truth_url: str) -> None:
    """The slope between two sizes, so that start-up drops out."""
    few, cpu_few = drive(truth_url, 10, 1)
    many, cpu_many = drive(truth_url, 50, 2)
    cost = (cpu_many - cpu_few) / (len(many.chunks) - len(few.chunks))
    print(f"{cost * 1e6:.1f} us of CPU a chunk, settling and writing rows included")
    assert cost <= 40e-6
