"""Goldens of the stimulus: what is planned has the statistics that its name promises, however it is dealt out."""

from __future__ import annotations

import numpy as np
import pytest

from harness.load.cell import CellPlan
from harness.load.split import split_plan
from workloads.arrivals import arrivals_of
from workloads.request import Load, RequestSpec, WorkloadError

N = 20_000


def planned(load: Load, seed: int = 7, *, count: int = N, workers: int = 1) -> np.ndarray:
    """Arrival times in seconds, as ``workers`` processes would send them."""
    arrivals = arrivals_of(load, seed, count=count)
    assert arrivals is not None
    requests = tuple(RequestSpec(index, None, "x", 1, 1) for index in range(count))
    parts = split_plan(CellPlan("cell", load, (), requests, arrivals), workers)
    assert len(parts) == workers
    return np.sort(np.concatenate([part.arrivals_ns for part in parts])) / 1e9


def dispersion(times: np.ndarray, width: float) -> float:
    """Index of dispersion of counts in windows of ``width`` seconds; 1 for a Poisson process."""
    counts = np.bincount((times / width).astype(int))[:-1]
    return float(counts.var() / counts.mean())


def gap_cv(times: np.ndarray) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_poisson_is_poisson_for_any_number_of_workers(workers: int, seed: int) -> None:
    times = planned(Load("poisson", rate=50), seed, workers=workers)
    assert 0.9 <= dispersion(times, 0.1) <= 1.1
    assert abs(gap_cv(times) - 1) <= 0.05
    assert abs(N / times[-1] / 50 - 1) <= 0.025  # chance alone moves the mean of so many gaps by 0.7 %


@pytest.mark.parametrize("workers", [1, 8])
def test_constant_gaps_are_equal_and_never_drift(workers: int) -> None:
    times = planned(Load("constant", rate=50), workers=workers)
    assert gap_cv(times) < 1e-6
    assert times[-1] == pytest.approx(N / 50, rel=1e-9)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_their_cv_and_mean(burstiness: float) -> None:
    times = planned(Load("gamma", rate=50, burstiness=burstiness))
    assert gap_cv(times) == pytest.approx(burstiness**-0.5, rel=0.05)
    assert N / times[-1] == pytest.approx(50, rel=0.04)


@pytest.mark.parametrize(("start", "end", "steps"), [(10, 90, 0), (90, 10, 0), (10, 90, 5), (20, 20, 0)])
def test_a_ramp_follows_its_rate(start: float, end: float, steps: int) -> None:
    load = Load("ramp", rate=start, ramp_to=end, ramp_steps=steps)
    arrivals = arrivals_of(load, 3, duration_s=200)
    assert arrivals is not None
    times = np.array(arrivals) / 1e9
    assert np.all(np.diff(times) > 0)
    assert times[-1] < 200
    fifths, _ = np.histogram(times, bins=5, range=(0, 200))
    middles = np.array([start + (end - start) * (k / 4 if steps else (k + 0.5) / 5) for k in range(5)])
    assert np.all(np.abs(fifths - middles * 40) < 5 * np.sqrt(middles * 40))


def test_plans_are_functions_of_their_seed() -> None:
    for load in (Load("poisson", rate=3), Load("gamma", rate=3, burstiness=2), Load("ramp", rate=3, ramp_to=9)):
        one, again, other = (arrivals_of(load, seed, count=50) for seed in (1, 1, 2))
        assert one == again != other
        shorter = arrivals_of(load, 1, count=20, duration_s=8.3)
        if load.mode != "ramp":
            assert one is not None
            assert shorter == one[: len(shorter or ())]


def test_loads_that_make_no_sense_are_refused() -> None:
    wrong: list[dict[str, object]] = [
        {"mode": "constant"},
        {"mode": "gamma", "rate": 1.0},
        {"mode": "gamma", "rate": 1.0, "burstiness": 0.0},
        {"mode": "ramp", "rate": 1.0},
        {"mode": "ramp", "rate": 1.0, "ramp_to": -1.0},
    ]
    for values in wrong:
        with pytest.raises(WorkloadError):
            Load(**values)  # type: ignore[arg-type]
    with pytest.raises(WorkloadError, match="need an end"):
        arrivals_of(Load("constant", rate=1), 0)
    assert arrivals_of(Load("closed", concurrency=2), 0) is None
