"""Poisson arrivals: the process that was asked for, and nothing done to it afterwards."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from workloads.arrivals import poisson_arrivals
from workloads.request import Load, WorkloadError


@pytest.mark.parametrize("rate", [0.5, 50.0, 2000.0])
def test_gaps_are_exponential_and_counts_are_poisson(rate: float) -> None:
    n = 20_000
    times = np.array(poisson_arrivals(rate, random.randrange(2**32), count=n)) / 1e9
    gaps = np.diff(times, prepend=0.0)
    assert gaps.min() >= 0
    assert gaps.mean() * rate == pytest.approx(1.0, abs=0.04)  # 5.6 standard errors
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)
    bins = np.histogram(times, bins=np.arange(0, times[-1], 10 / rate))[0]
    assert bins.var() / bins.mean() == pytest.approx(1.0, abs=0.15)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.05


def test_the_end_is_a_number_or_a_duration() -> None:
    by_count = poisson_arrivals(10, 3, count=200)
    by_time = poisson_arrivals(10, 3, duration_s=5.0)
    assert len(by_count) == 200
    assert by_time == tuple(t for t in by_count if t < 5_000_000_000)
    assert poisson_arrivals(10, 3, count=4, duration_s=5.0) == by_count[:4]
    assert all(a <= b for a, b in pairwise(by_count))


def test_duration_does_not_condition_the_count() -> None:
    # A rescaled process has the same count every time; a Poisson one has variance = mean.
    counts = [len(poisson_arrivals(20, random.randrange(2**40), duration_s=5.0)) for _ in range(400)]
    assert np.var(counts) / np.mean(counts) == pytest.approx(1.0, abs=0.4)


def test_bad_loads_get_a_sentence() -> None:
    with pytest.raises(WorkloadError, match="need an end"):
        poisson_arrivals(1.0, 0)
    with pytest.raises(WorkloadError, match="rate above 0"):
        Load("poisson", rate=0)
    with pytest.raises(WorkloadError, match="concurrency"):
        Load("closed")
