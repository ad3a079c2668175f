"""Is the load on the wire the load that was asked for?  Arrival times as an independent server received them.

Each case is one ``pagedbench run``.  Both processes read the same clock, so the server's receive times are compared with
the planned times of the run's own record: the gaps' spread, their dispersion, the realised rate, and the lateness of
the worst request.  Bounds are those that the project promises; what the plan itself came to is printed beside them,
because chance moves a Poisson draw.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from known_server import Truth, environment, pinned, serving

CONSTANT_RATE, CONSTANT_S = 50, 30
# Ten thousand arrivals in bins of 10 ms: chance moves the dispersion by 0.03, the gaps' CV by 0.01 (one sigma).
POISSON_RATE, POISSON_S, BIN_S = 500, 20, 0.01
WORKERS = (1, 2, 4, 8)
TRACE_ROWS = 600

MAX_CONSTANT_CV = 0.015
DISPERSION = (0.9, 1.1)
MAX_CV_ERROR = 0.05
MAX_LATE_MS = 5.0
MAX_RATE_ERROR = 0.005


@dataclass(frozen=True)
class Case:
    """One run: what it is called, and the options that ask for it."""

    name: str
    options: tuple[str, ...]
    workers: int = 1


def cases(folder: Path) -> list[Case]:
    """Constant gaps, Poisson over 1 to 8 workers, and a trace with bursts."""
    short = ("--workload", "concurrency:input=32,output=4")
    constant = (
        "--rate",
        str(CONSTANT_RATE),
        "--arrivals",
        "constant",
        "--num-requests",
        str(CONSTANT_RATE * CONSTANT_S),
    )
    poisson = ("--rate", str(POISSON_RATE), "--num-requests", str(POISSON_RATE * POISSON_S))
    trace = folder / "trace.jsonl"
    trace.write_text(bursty_trace(), encoding="utf-8")
    return [
        Case("constant", (*short, *constant)),
        *(Case("poisson", (*short, *poisson), workers) for workers in WORKERS),
        *(Case("trace", ("--workload", f"trace:file={trace}"), workers) for workers in (1, 2)),
    ]


def bursty_trace() -> str:
    """Rows whose gaps are nothing, a millisecond, or a pause: what a recorded service looks like."""
    chance, now, lines = random.Random(7), 0.0, []
    for _ in range(TRACE_ROWS):
        lines.append(json.dumps({"timestamp": round(now, 6), "input_length": 32, "output_length": 4}))
        now += chance.choice((0.0, 0.001, 0.02, 0.1))
    return "\n".join(lines) + "\n"


def measure_case(case: Case, folder: Path) -> dict[str, Any]:
    """Run one case in ``folder`` and compare."""
    with serving("c", folder, ttft_ms=5, itl_ms=1, tokens=4) as (url, end):
        words = ["--engine", f"truth={url}", *case.options, "--workers", str(case.workers), "--warmup", "0"]
        words += ["--seed", "1", "--no-report", "--json", "--out", str(folder / "run")]
        command = [*pinned("1"), sys.executable, "-m", "harness.cli", "run", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if not done.stdout:
            raise SystemExit(f"{case.name}: {done.stderr}")
        (cell,) = json.loads(done.stdout)["cells"]
        truth = end()
    requests = pq.read_table(folder / "run" / "requests.parquet")
    planned = np.sort(requests["t_sched"].to_numpy())
    received = received_since(truth, int(requests["t_send"].to_numpy().min()))
    row = {"case": case.name, "workers": case.workers, "requests": len(planned), "received": len(received)}
    row |= {"validity": cell["validity"], "reasons": cell["reasons"]}
    if len(received) != len(planned):
        return {**row, "met": False, "missed": ["not every request reached the server"]}
    return judged({**row, **stimulus(planned, received)})


def received_since(truth: Truth, start: int) -> np.ndarray:
    """When requests arrived, in order, without those that probed the server before the load."""
    times = np.sort([one[0] for one in truth])
    return times[times >= start]


def stimulus(planned: np.ndarray, received: np.ndarray) -> dict[str, float]:
    """The wire beside the plan; times in ns, sorted."""
    late = (received - planned) / 1e6
    return {
        "gap_cv": gap_cv(received),
        "planned_gap_cv": gap_cv(planned),
        "dispersion": dispersion(received),
        "planned_dispersion": dispersion(planned),
        "rate_error": float(np.ptp(planned) / np.ptp(received) - 1),
        "late_ms_p50": float(np.percentile(late, 50)),
        "late_ms_p99": float(np.percentile(late, 99)),
        "late_ms_max": float(late.max()),
    }


def gap_cv(times: np.ndarray) -> float:
    """Standard deviation of the gaps over their mean: 0 for equal gaps, 1 for a Poisson process."""
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


def dispersion(times: np.ndarray, bin_s: float = BIN_S) -> float:
    """Variance over mean of the counts in bins of ``bin_s``: 1 for a Poisson process, 0 for equal gaps."""
    edges = np.arange(times[0], times[-1], bin_s * 1e9)
    counts = np.histogram(times, edges)[0]
    return float(counts.var(ddof=1) / counts.mean())


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the bounds that it missed."""
    missed = []
    if abs(row["rate_error"]) > MAX_RATE_ERROR:
        missed.append(f"rate off by {row['rate_error']:.2%}")
    if row["case"] == "constant" and row["gap_cv"] > MAX_CONSTANT_CV:
        missed.append(f"gap CV {row['gap_cv']:.4f} above {MAX_CONSTANT_CV}")
    if row["case"] == "poisson" and abs(row["gap_cv"] - 1) > MAX_CV_ERROR:
        missed.append(f"gap CV {row['gap_cv']:.3f} not within {MAX_CV_ERROR:.0%} of 1")
    if row["case"] == "poisson" and not DISPERSION[0] <= row["dispersion"] <= DISPERSION[1]:
        missed.append(f"index of dispersion {row['dispersion']:.3f} outside {DISPERSION}")
    if row["case"] == "trace" and row["late_ms_max"] > MAX_LATE_MS:
        missed.append(f"a request left {row['late_ms_max']:.1f} ms late")
    return {**row, "met": not missed, "missed": missed}


def measure() -> Iterator[dict[str, Any]]:
    """Every case, as it ends."""
    with tempfile.TemporaryDirectory() as text:
        for number, case in enumerate(cases(Path(text))):
            yield measure_case(case, Path(text) / str(number))
