"""The arithmetic of the load client's benchmarks; the benchmarks themselves need a quiet machine."""

from __future__ import annotations

import random
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bench_load_client import highest_right, is_right, table
from bench_load_scaling import compared
from bench_load_telemetry import change, paired_rates
from bench_load_telemetry import judged as judged_telemetry
from bench_load_wire import cases, judged, received_since, stimulus
from known_server import answer_s, delivered_share

from harness.load.plan import make_plan
from workloads.trace_files import read_trace


def times(gaps: list[float]) -> np.ndarray:
    return (np.array(list(accumulate(gaps))) * 1e9).astype(np.int64)


def wire(case: str, gaps: list[float], late_ms: float = 0.1) -> dict[str, Any]:
    planned = times(gaps)
    return judged({"case": case, **stimulus(planned, planned + round(late_ms * 1e6))})


def test_the_wire_is_judged_by_what_arrived() -> None:
    chance = random.Random(3)
    assert wire("constant", [0.02] * 500)["met"]
    assert not wire("constant", [0.02 + chance.uniform(-0.001, 0.001) for _ in range(500)])["met"]
    poisson = [chance.expovariate(500) for _ in range(10_000)]
    assert wire("poisson", poisson)["met"]
    assert not wire("poisson", [0.002] * 10_000)["met"]
    # Two workers with one seed: every gap twice.
    assert not wire("poisson", [gap for gap in poisson[:5000] for gap in (gap, 0.0)])["met"]
    assert wire("trace", [0.01] * 100, late_ms=4.9)["met"]
    assert "6.0 ms late" in wire("trace", [0.01] * 100, late_ms=6)["missed"][0]


def test_a_wrong_rate_is_seen() -> None:
    planned = times([0.02] * 500)
    slow = judged({"case": "constant", **stimulus(planned, (planned * 1.01).astype(np.int64))})
    assert "rate off by" in slow["missed"][0]


def test_probes_before_the_load_do_not_count() -> None:
    truth = [np.array([at, at + 5]) for at in (10, 400, 300)]
    assert received_since(truth, 300).tolist() == [300, 400]


def test_the_cases_are_what_pagedbench_takes(tmp_path: Path) -> None:
    asked = cases(tmp_path)
    assert {case.workers for case in asked if case.name == "poisson"} == {1, 2, 4, 8}
    make_plan({"engines": [{"name": "a", "url": "http://h:1"}], "workloads": [asked[0].options[1]]}, "test")
    assert len(read_trace(tmp_path / "trace.jsonl", "auto")) == 600


def test_delivered_sees_a_pause_between_requests() -> None:
    answer = np.arange(200) * 20_000_000 + 50_000_000
    prompt = round(answer_s() * 1e9)

    def closed(pause: int) -> list[np.ndarray]:
        period = prompt + pause
        starts = [turn * period + stream * period // 10 for turn in range(6) for stream in range(10)]
        return [np.concatenate(([start], start + answer)) for start in starts]

    assert delivered_share(closed(0), 10, answer_s()) == pytest.approx(1.0, abs=1e-6)
    assert delivered_share(closed(prompt // 4), 10, answer_s()) == pytest.approx(0.8, abs=1e-6)
    assert delivered_share(closed(prompt // 500), 10, answer_s()) == pytest.approx(1 / 1.002, abs=1e-6)
    assert delivered_share(closed(0)[:10], 10, answer_s()) is None


def level(tool: str, streams: int, error_ms: float = 0.0) -> dict[str, Any]:
    row = {"tool": tool, "streams": streams, "ttft_p50_error_ms": error_ms, "itl_p99_error": 0.0, "delivered": 0.99}
    return {**row, "chunks": streams * 100, "cpu_s": 1 + streams * 100 * 20e-6}


def test_the_highest_right_level_has_no_wrong_one_below() -> None:
    rows = [level("a", 400), level("a", 100), level("a", 200, 6.0), level("b", 10, -7.0)]
    assert not is_right(rows[2])
    found = highest_right(rows)
    assert found["a"]["highest_right"] == 100
    assert found["b"]["highest_right"] == 0
    assert found["a"]["cpu_us_per_chunk_slope"] == pytest.approx(20)
    assert "400" in table(rows, ("tool", "streams"))


def scale(workers: int, rate: float, delivered: float = 0.99) -> dict[str, Any]:
    row = {"workers": workers, "failed": 0, "delivered": delivered, "chunks_per_s": rate}
    return {**row, "cpu_us_per_chunk": 15.0 * workers}


def test_scaling_is_compared_with_the_fewest_workers() -> None:
    one = scale(1, 20_000)
    assert compared(scale(2, 39_500), one)["met"]
    assert "1.50 times" in compared(scale(2, 30_000), one)["missed"][0]
    assert "delivered 0.970" in compared(scale(2, 40_000, delivered=0.97), one)["missed"][0]
    assert compared(scale(2, 40_000), one)["cost_ratio"] == 2


def test_telemetry_must_be_shown_to_be_free() -> None:
    chance = random.Random(1)
    steady = [(100 * (1 + chance.gauss(0, 0.002)), 100.0) for _ in range(20)]
    assert judged_telemetry({**change(steady), "work": 0.002})["met"]
    assert not judged_telemetry({**change(steady), "work": 0.02})["met"]
    assert not judged_telemetry({**change([(on * 0.985, off) for on, off in steady]), "work": 0.002})["met"]
    noisy = [(100 * (1 + chance.gauss(0, 0.1)), 100.0) for _ in range(6)]
    assert not judged_telemetry({**change(noisy), "work": 0.002})["met"]  # nothing is shown, so it is not met


def test_neighbouring_windows_are_paired_whichever_was_watched() -> None:
    times = [int(second * 1e9) for second in (0.1, 0.2, 0.3, 1.1, 1.2, 2.5, 3.1, 3.2, 3.3, 3.4)]
    edges = [(False, 0, 1), (True, 1, 2), (True, 2, 3), (False, 3, 4)]
    windows = [(watched, int(start * 1e9), int(end * 1e9)) for watched, start, end in edges]
    assert paired_rates(windows, times) == [(2.0, 3.0), (1.0, 4.0)]
