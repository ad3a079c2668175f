"""Arrival times, computed before the first byte is sent.

One generator and one running sum: times are absolute offsets from the start, so lateness of one send never moves
another, and the realised rate is left to chance (no rescaling), as a Poisson process has it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from random import Random

from workloads.request import Load, WorkloadError

NS_PER_S = 1_000_000_000


def arrivals_of(
    load: Load, seed: int, *, count: int | None = None, duration_s: float | None = None
) -> tuple[int, ...] | None:
    """The arrival offsets (ns) that ``load`` draws; None where it draws none (a closed loop, a trace).

    The first ``count`` of them or all within ``duration_s``; with both given, whichever ends first.
    """
    if load.rate is None or load.mode in ("closed", "trace"):
        return None
    if load.mode == "constant":
        return _until(constant_times(load.rate), count, duration_s)
    if load.mode == "gamma":
        assert load.burstiness is not None
        return _until(gamma_times(load.rate, load.burstiness, seed), count, duration_s)
    if load.mode == "ramp":
        assert load.ramp_to is not None
        if duration_s is None:
            if count is None:
                raise WorkloadError("a ramp needs an end: give a number of requests or a duration")
            duration_s = count / ((load.rate + load.ramp_to) / 2)
        return _until(ramp_times(load.rate, load.ramp_to, duration_s, load.ramp_steps, seed), count, duration_s)
    return poisson_arrivals(load.rate, seed, count=count, duration_s=duration_s)


def poisson_arrivals(
    rate: float, seed: int, *, count: int | None = None, duration_s: float | None = None
) -> tuple[int, ...]:
    """Arrival offsets in ns of a Poisson process of ``rate`` requests/s.

    The gaps are independent exponentials, the first one included.
    """
    return _until((unit / rate for unit in unit_times(seed)), count, duration_s)


def unit_times(seed: int) -> Iterator[float]:
    """A Poisson process of rate 1, without end."""
    random = Random(f"arrivals/{seed}")
    now = 0.0
    while True:
        now -= math.log(1.0 - random.random())
        yield now


def constant_times(rate: float) -> Iterator[float]:
    """One arrival every ``1 / rate`` seconds, the first after one such gap; computed from its number, so no sum drifts."""
    return (number / rate for number in itertools.count(1))


def gamma_times(rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Gaps drawn from a gamma law of mean ``1 / rate`` and shape ``burstiness``, as vLLM's benchmark has it.

    Their coefficient of variation is ``1 / sqrt(burstiness)``: 1 is Poisson, less comes in bursts, more is smoother.
    """
    random = Random(f"arrivals/{seed}")
    now = 0.0
    while True:
        now += random.gammavariate(burstiness, 1 / (rate * burstiness))
        yield now


def ramp_times(rate: float, ramp_to: float, duration_s: float, steps: int, seed: int) -> Iterator[float]:
    """A Poisson process whose rate goes from ``rate`` to ``ramp_to`` within ``duration_s``; then it ends.

    With ``steps`` the rate climbs a staircase of that many equal stretches, else in a straight line.  Each time is the
    inverse of the expected number of arrivals so far, taken at an arrival of the unit process.
    """
    stretches = steps or 1
    span = duration_s / stretches
    edges = [rate + (ramp_to - rate) * k / max(1, stretches - 1) for k in range(stretches)]
    for unit in unit_times(seed):
        left, start = unit, 0.0
        for level in edges:
            first, last = (level, level) if steps else (rate, ramp_to)
            expected = (first + last) / 2 * span
            if left < expected:
                yield start + _time_in(left, first, last, span)
                break
            left, start = left - expected, start + span
        else:
            return


def _time_in(expected: float, first: float, last: float, span: float) -> float:
    """When, within a stretch whose rate goes from ``first`` to ``last``, ``expected`` arrivals are expected to have come."""
    slope = (last - first) / span
    if slope == 0:
        return expected / first
    return 2 * expected / (first + math.sqrt(first * first + 2 * slope * expected))


def _until(times: Iterator[float], count: int | None, duration_s: float | None) -> tuple[int, ...]:
    if count is None and duration_s is None:
        raise WorkloadError("arrivals need an end: give a number of requests or a duration")
    end = math.inf if duration_s is None else duration_s
    within = itertools.takewhile(lambda t: t < end, times)
    return tuple(round(t * NS_PER_S) for t in itertools.islice(within, count))
