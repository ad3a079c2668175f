"""The client process of the load client's benchmarks: one cell into journals, and what it cost.

Nothing is imported here that the client does not need, so that its start-up and memory are its own.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import uvloop

from harness.load.cell import CellPlan, CellRun
from harness.load.client import Client
from harness.load.dialect import Dialect
from harness.load.worker import SharedJournals
from workloads.arrivals import poisson_arrivals
from workloads.request import Load, RequestSpec

PROMPT = "one two three four " * 16


def drive(url: str, streams: int, mode: str, count: int, rate: float, folder: Path, model: str, tokens: int) -> None:
    """``count`` requests of ``tokens`` tokens: closed with ``streams`` in flight, or Poisson at ``rate`` (requests/s)."""
    startup_s = time.process_time()
    arrivals = None
    load = Load("closed", concurrency=streams)
    if mode == "poisson":
        arrivals, load = poisson_arrivals(rate, 1, count=count), Load("poisson", rate=rate)
    requests = tuple(RequestSpec(index, None, PROMPT, 64, tokens) for index in range(count))
    sink = SharedJournals({name: folder / f"{name}.jsonl" for name in ("requests", "chunks", "system")})
    plan = CellPlan("cell", load, (), requests, arrivals)
    gc.collect()
    base = peak_rss_mib()

    async def main() -> Any:
        async with Client(url) as client:
            run = CellRun(plan, client, Dialect(model), sink)
            before, start = time.process_time(), time.monotonic()
            await run.run()
            return time.process_time() - before, time.monotonic() - start, client.connections

    cpu_s, wall_s, connections = uvloop.run(main())
    cost = {"startup_cpu_s": startup_s, "cpu_s": cpu_s, "wall_s": wall_s, "connections": connections}
    print(json.dumps({**cost, "rss_base_mib": base, "rss_peak_mib": peak_rss_mib()}))


def peak_rss_mib() -> float:
    """The most memory this program has held.  (``ru_maxrss`` begins with that of the program which started this one.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    url, streams, mode, count, rate, folder, model, tokens = sys.argv[1:]
    drive(url, int(streams), mode, int(count), float(rate), Path(folder), model, int(tokens))
