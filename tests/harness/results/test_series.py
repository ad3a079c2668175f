"""Sampled series: step functions against a brute-force integral."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.results.series import Series

# Machines that run these tests are busy: no judgement by time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(-10, 10)), min_size=1, max_size=20, unique_by=lambda s: s[0]),
    st.integers(0, 50),
    st.integers(1, 30),
)
def test_mean_is_the_integral_of_the_steps(samples: list[tuple[int, float]], start: int, length: int) -> None:
    samples.sort()
    series = Series(np.array([t for t, _ in samples]), np.array([v for _, v in samples]))
    held = []
    for moment in range(start, start + length):
        before = [v for t, v in samples if t <= moment]
        if before:
            held.append(before[-1])
    expected = sum(held) / len(held) if held else None
    assert series.mean(start, start + length) == (None if expected is None else pytest.approx(expected, abs=1e-9))


def test_increase_survives_a_restart() -> None:
    series = Series(np.array([0, 10, 20, 30]), np.array([5.0, 9.0, 2.0, 3.0]))
    assert series.increase(0, 30) == 4 + 2 + 1
    assert series.increase(40, 50) is None  # only the value that holds: nothing to compare
    assert Series(np.array([5]), np.array([1.0])).increase(0, 10) is None


def test_maximum_includes_the_value_that_holds_at_the_start() -> None:
    series = Series(np.array([0, 10]), np.array([7.0, 1.0]))
    assert series.maximum(5, 20) == 7.0
    assert series.maximum(11, 20) == 1.0
    assert series.maximum(-5, -1) is None
