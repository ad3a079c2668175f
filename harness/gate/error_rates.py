"""The gate's own error, simulated: ``python -m harness.gate.error_rates [--gates N]`` prints JSON.

Whole gates are played from synthetic runs in the order in which a real gate would take them (ABBA blocks turned by a
seed), with all planned looks, through :func:`harness.gate.procedure.look_at`.  Printed: how often a gate of two equal
builds fails, how often a given slowdown is found, and how often the 95 % interval covers the truth.  ``docs/gate.md``
shows the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import numpy as np

from harness.gate.design import orders_of
from harness.gate.procedure import levels_of, look_at
from harness.gate.spending import DEFAULT_LOOKS, plan_for
from harness.results.intervals import Floats, hodges_lehmann

RUN_CV = 0.02
CHUNK = 1000
TIMING_LIMITS = (0.02, 0.05, 0.05, 0.02, 0.03)

Noise = Callable[[np.random.Generator, tuple[int, ...]], Floats]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Independent normal noise of every run.  Shape (..., runs); log scale, standard deviation 1."""
    return rng.standard_normal(shape)


def student(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Student's t with 3 degrees of freedom, scaled to standard deviation 1."""
    return rng.standard_t(3, shape) / np.sqrt(3.0)


def outliers(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Normal, and 10 % of the runs slower by 5 to 20 standard deviations."""
    hit = rng.random(shape) < 0.1
    return rng.standard_normal(shape) + hit * rng.uniform(5, 20, shape)


def autoregressive(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """AR(1) with coefficient 0.8 along the runs in time order, stationary standard deviation 1."""
    steps = rng.standard_normal(shape) * np.sqrt(1 - 0.8**2)
    steps[..., 0] /= np.sqrt(1 - 0.8**2)
    for i in range(1, shape[-1]):
        steps[..., i] += 0.8 * steps[..., i - 1]
    return steps


def drift(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Normal, and a linear drift of 3 % (in units of ``RUN_CV``) over the session."""
    return rng.standard_normal(shape) + np.linspace(0, np.log1p(0.03) / RUN_CV, shape[-1])


NOISES: dict[str, Noise] = {
    "normal": normal,
    "Student t3": student,
    "10 % outlier runs": outliers,
    "AR(1) 0.8": autoregressive,
    "3 % drift": drift,
}


def simulate_pairs(
    rng: np.random.Generator,
    gates: int,
    metrics: int,
    pairs: int,
    noise: Noise,
    shift: Sequence[float] | float = 0.0,
    cv: float = RUN_CV,
    shared: float = 0.0,
) -> Floats:
    """Log ratios of shape (gates, metrics, pairs).

    ``shift``: true slowdown of each metric as a share.  ``shared``: share of each run's noise variance that all metrics
    have in common, as tokens/s and ITL of one run do.
    """
    runs = 2 * pairs
    own = noise(rng, (gates, metrics, runs))
    common = noise(rng, (gates, 1, runs))
    value = cv * (np.sqrt(1 - shared) * own + np.sqrt(shared) * common)
    first = np.array([orders_of(int(seed), pairs) for seed in rng.integers(0, 2**31, gates)]) == "AB"
    early, late = value[..., 0::2], value[..., 1::2]
    difference = late - early
    d = np.where(first[:, None, :], difference, -difference)
    return d + np.log1p(np.broadcast_to(np.asarray(shift, dtype=np.float64), (metrics,)))[None, :, None]


def play(d: Floats, limits: Sequence[float], looks: Sequence[int]) -> Floats:
    """Outcome of each gate: columns failed, passed, pairs used.  ``d`` of shape (gates, metrics, pairs)."""
    plan = plan_for(looks)
    result = np.zeros((d.shape[0], 3))
    open_gates = np.arange(d.shape[0])
    for levels in levels_of(plan, d.shape[1]):
        for start in range(0, open_gates.size, CHUNK):
            rows = open_gates[start : start + CHUNK]
            look = look_at(d[rows][..., : levels.pairs], np.asarray(limits), levels)
            failed = look.failed.any(axis=1)
            result[rows, 0] = failed
            result[rows, 1] = look.cleared.all(axis=1) & ~failed
            result[rows, 2] = levels.pairs
        open_gates = open_gates[(result[open_gates, :2] == 0).all(axis=1)]
    return result


def false_alarms(
    gates: int, noise: Noise, shared: float, looks: Sequence[int], limits: Sequence[float], seed: int
) -> dict[str, float]:
    """Shares of A/A gates that fail, pass and stay open, and the mean number of pairs."""
    outcome = _play_many(gates, limits, looks, noise, 0.0, RUN_CV, shared, seed)
    failed, passed, pairs = outcome.mean(axis=0)
    return {"fail": failed, "pass": passed, "inconclusive": 1 - failed - passed, "pairs": pairs}


def _play_many(
    gates: int,
    limits: Sequence[float],
    looks: Sequence[int],
    noise: Noise,
    shift: Sequence[float] | float,
    cv: float,
    shared: float,
    seed: int,
) -> Floats:
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, gates, 10 * CHUNK):
        count = min(10 * CHUNK, gates - start)
        d = simulate_pairs(rng, count, len(limits), looks[-1], noise, shift, cv, shared)
        parts.append(play(d, limits, looks))
    return np.concatenate(parts)


def power(
    gates: int,
    limits: Sequence[float],
    looks: Sequence[int],
    shift: Sequence[float] | float,
    cv: float,
    noise: Noise = normal,
    shared: float = 0.0,
    seed: int = 2,
) -> dict[str, float]:
    """Share of gates that fail under a true slowdown, by any look up to each planned one."""
    outcome = _play_many(gates, limits, looks, noise, shift, cv, shared, seed)
    found = outcome[:, 0] == 1
    return {str(n): float((found & (outcome[:, 2] <= n)).mean()) for n in looks}


def coverage(cases: int, pairs: int, noise: Noise, seed: int) -> float:
    """Share of 95 % intervals that cover a true slowdown of 3 %."""
    rng = np.random.default_rng(seed)
    d = simulate_pairs(rng, cases, 1, pairs, noise, 0.03)
    _, low, high = hodges_lehmann(d)
    truth = np.log1p(0.03)
    return float(((low <= truth) & (truth <= high)).mean())


def tables(gates: int) -> dict[str, object]:
    """Every simulated table of docs/gate.md, as shares."""
    looks, one = DEFAULT_LOOKS, TIMING_LIMITS[:1]
    alarms = {}
    for name, noise in NOISES.items():
        alarms[name] = {
            **false_alarms(gates, noise, 0.0, looks, TIMING_LIMITS, seed=1),
            "fail, metrics share 70 % of their noise": false_alarms(gates, noise, 0.7, looks, TIMING_LIMITS, 2)["fail"],
            "significant, were every limit 0": false_alarms(gates, noise, 0.0, looks, (0.0,) * 5, 3)["fail"],
        }
    curves = {}
    for cv in (0.005, 0.01, 0.02):
        for slower in (0.02, 0.03, 0.05, 0.10):
            curves[f"CV {cv:.1%}, all five metrics {slower:.0%} slower"] = power(
                gates // 4, TIMING_LIMITS, looks, slower, cv, shared=0.5
            )
    alone = {
        "5 % on one metric of five, CV 2 %, looks 8/12/20": power(gates, (0.02,) * 5, looks, (0.05, 0, 0, 0, 0), 0.02),
        "5 % on one metric of five, CV 2 %, one look at 12": power(gates, (0.02,) * 5, (12,), (0.05, 0, 0, 0, 0), 0.02),
        "5 % on the only metric, CV 2 %, looks 8/12/20": power(gates, one, looks, 0.05, 0.02),
        "3 % on the only metric, CV 2 %, limit 2 %, looks 8/12/20": power(gates, one, looks, 0.03, 0.02),
        "3 % on the only metric, CV 2 %, limit 1.5 %, looks 8/12/20": power(gates, (0.015,), looks, 0.03, 0.02),
        "3 % on the only metric, CV 2 %, limit 1.5 %, one look at 20": power(gates, (0.015,), (20,), 0.03, 0.02),
        "3 % on the only metric, CV 1.5 %, limit 2 %, looks 8/12/20": power(gates, one, looks, 0.03, 0.015),
        "5 % on the only metric, 10 % outlier runs, looks 8/12/20": power(gates, one, looks, 0.05, 0.02, outliers),
    }
    covered = {
        name: {f"{pairs} pairs": coverage(2000, pairs, noise, seed=5) for pairs in (8, 12, 20)}
        for name, noise in NOISES.items()
    }
    return {"gates": gates, "alarms": alarms, "curves": curves, "alone": alone, "coverage of 2000": covered}


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the error rates of the gate.")
    parser.add_argument("--gates", type=int, default=20_000, help="simulated gates for each rate [count]")
    print(json.dumps(tables(parser.parse_args().gates), indent=1, default=float))


if __name__ == "__main__":
    main()
