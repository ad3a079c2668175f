"""One metric of the gate: its pairs as log ratios, what can be decided without statistics, and its result in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from harness.gate.procedure import Levels, Look
from harness.gate.spending import smallest_p
from harness.results.gate import PairRecord, RuleResult, RuleSpec, RuleVerdict, RunSample
from harness.results.intervals import Floats

# Fewer pairs than this cannot tell a count that repeats from a lucky one: 1 / C(12, 6) is 0.1 %.
MIN_EXACT_PAIRS = 6
POWER = 0.90
LOG_CAP = math.log(1e6)  # log ratio where one side is zero
DIGITS = 12


def values(rule: RuleSpec, samples: Sequence[RunSample]) -> list[float | None]:
    """The metric in each run; None where it was not measured or is not a number."""
    found = [sample.values.get(rule.key) for sample in samples]
    return [value if value is not None and math.isfinite(value) and value >= 0 else None for value in found]


def arms(rule: RuleSpec, pairs: Sequence[PairRecord]) -> tuple[list[float | None], list[float | None]]:
    return values(rule, [pair.baseline for pair in pairs]), values(rule, [pair.candidate for pair in pairs])


def log_ratios(rule: RuleSpec, pairs: Sequence[PairRecord]) -> Floats:
    """log(candidate / baseline) of each pair, turned so that more is worse.  Needs every value."""
    a, b = (np.array(side, dtype=np.float64) for side in arms(rule, pairs))
    with np.errstate(divide="ignore", invalid="ignore"):
        d = np.log(b) - np.log(a)
    d[(a == 0) & (b == 0)] = 0.0
    d = np.clip(d, -LOG_CAP, LOG_CAP)
    return -d if rule.better == "higher" else d


def decide_alone(rule: RuleSpec, pairs: Sequence[PairRecord]) -> RuleResult | None:
    """The result of a rule that statistics need not or cannot decide; None for one that goes into the family."""
    a, b = arms(rule, pairs)
    lacking = {"baseline": a.count(None), "candidate": b.count(None)}
    if any(lacking.values()):
        if rule.if_missing == "skip" and all(count == len(pairs) for count in lacking.values()):
            return describe(rule, pairs, "SKIPPED", "neither build measures it")
        where = " and ".join(f"{count} of {len(pairs)} {arm} runs" for arm, count in lacking.items() if count)
        samples = _samples(rule, pairs, only_missing=True)
        if samples and min(samples) > 0:
            few = f"{min(samples)} samples support no such percentile in {where}; send more requests"
            return describe(rule, pairs, "INCONCLUSIVE", few)
        return describe(rule, pairs, "FAIL", f"missing in {where}; a missing metric fails its rule")
    samples = _samples(rule, pairs)
    if rule.min_samples and min(samples, default=0) < rule.min_samples:
        fewest = min(samples, default=0)
        return describe(
            rule, pairs, "INCONCLUSIVE", f"shown only: {fewest} samples in a run, judged from {rule.min_samples} on"
        )
    if rule.kind == "count":
        return _compare_exactly(rule, pairs, [x for x in a if x is not None], [x for x in b if x is not None])
    return None


def _samples(rule: RuleSpec, pairs: Sequence[PairRecord], only_missing: bool = False) -> list[int]:
    runs = [sample for pair in pairs for sample in (pair.baseline, pair.candidate)]
    if only_missing:
        runs = [run for run, value in zip(runs, values(rule, runs), strict=True) if value is None]
    return [run.samples.get(rule.key, 0) for run in runs] if any(rule.key in run.samples for run in runs) else []


def _compare_exactly(rule: RuleSpec, pairs: Sequence[PairRecord], a: list[float], b: list[float]) -> RuleResult | None:
    """A count whose two ranges lie apart needs no statistics; one that overlaps is judged like a time (None)."""
    if len(pairs) < MIN_EXACT_PAIRS:
        reason = f"counts compare exactly from {MIN_EXACT_PAIRS} pairs on, there are {len(pairs)}"
        return describe(rule, pairs, "INCONCLUSIVE", reason)
    good, bad = (a, b) if rule.better == "lower" else (b, a)
    least, most = _ratio(min(bad), max(good)), _ratio(max(bad), min(good))
    if least > 1 + rule.limit:
        verdict: RuleVerdict = "FAIL"
        reason = (
            f"every candidate run is worse than every baseline run, by at least {least - 1:.2%}"
            if math.isfinite(least)
            else "every candidate run has some, no baseline run has any"
        )
    elif most <= 1 + rule.limit:
        verdict, reason = (
            "PASS",
            f"no candidate run is worse than any baseline run by more than {max(0.0, most - 1):.2%}",
        )
    else:
        return None
    result = describe(rule, pairs, verdict, reason)
    middle = result.change
    low, high = (_ratio(min(b), max(a)) - 1, _ratio(max(b), min(a)) - 1)
    return result.model_copy(
        update={
            "method": "exact",
            "low": tidy(low),
            "high": tidy(high),
            "worse_by": tidy(middle if rule.better == "lower" or middle is None else 1 / (1 + middle) - 1)
            if middle != -1.0
            else None,
            "bound": tidy(most - 1),
        }
    )


def _ratio(one: float, other: float) -> float:
    if other == 0:
        return 1.0 if one == 0 else math.inf
    return one / other


def describe(rule: RuleSpec, pairs: Sequence[PairRecord], verdict: RuleVerdict, reason: str) -> RuleResult:
    """A result with medians only."""
    a, b = ([x for x in side if x is not None] for side in arms(rule, pairs))
    before, after = (float(np.median(side)) if side else None for side in (a, b))
    change = None if before is None or after is None else _ratio(after, before) - 1
    mean = float(np.mean(a)) if a else 0.0
    return RuleResult(
        rule=rule,
        verdict=verdict,
        reason=reason,
        method="none",
        pairs=len(pairs),
        baseline_median=tidy(before),
        candidate_median=tidy(after),
        change=tidy(change),
        baseline_cv=tidy(float(np.std(a, ddof=1)) / mean) if len(a) > 1 and mean > 0 else None,
    )


def finish(
    rule: RuleSpec, pairs: Sequence[PairRecord], look: Look, d: Floats, levels: Levels, final_level: float
) -> RuleResult:
    """The result of a rule that was judged by statistics."""
    n = len(pairs)
    estimate, low, high, bound = (float(x) for x in (look.estimate, look.low, look.high, look.bound))
    detectable = smallest_detectable(low, high, n, rule.limit, final_level)
    share, limit = math.expm1(estimate), f"{rule.limit:.1%}"
    if look.failed:
        verdict: RuleVerdict = "FAIL"
        reason = f"{share:.1%} worse, beyond the limit of {limit} (p {float(look.p):.2g} <= {float(look.level):.2g})"
    elif look.cleared:
        verdict, reason = "PASS", f"at most {max(0.0, math.expm1(bound)):.1%} worse, limit {limit}"
    else:
        verdict, reason = "INCONCLUSIVE", _open_question(rule, look, n, share, bound, detectable, levels)
    sign = -1.0 if rule.better == "higher" else 1.0
    ends = sorted((math.expm1(sign * low), math.expm1(sign * high)))
    return describe(rule, pairs, verdict, reason).model_copy(
        update={
            "method": "wilcoxon",
            "change": tidy(math.expm1(sign * estimate)),
            "low": tidy(ends[0]),
            "high": tidy(ends[1]),
            "worse_by": tidy(share),
            "bound": tidy(math.expm1(bound)),
            "p": tidy(float(look.p)),
            "level": tidy(float(look.level)),
            "smallest_detectable": tidy(detectable),
        }
    )


def _open_question(
    rule: RuleSpec, look: Look, n: int, share: float, bound: float, detectable: float | None, levels: Levels
) -> str:
    """Why a rule is neither failed nor passed, and what could have been seen."""
    if 0 < levels.fail[-1] < smallest_p(n) and share > rule.limit:
        needed = next(k for k in range(n, 64) if smallest_p(k) <= levels.fail[-1])
        return f"{share:.1%} worse, but no p of {n} pairs is small enough to fail a metric of {len(levels.fail)}; plan {needed}"
    if not math.isfinite(bound):
        may = "has no bound with so few pairs"
    elif bound > LOG_CAP / 2:
        may = "has no bound, because it is zero in some runs"
    else:
        may = f"may be up to {math.expm1(bound):.1%} worse"
    seen = f"; a change of {detectable:.1%} or more would have been seen" if detectable is not None else ""
    if look.worse:
        return f"{share:.1%} worse for certain, within the limit of {rule.limit:.1%}, but {may}{seen}"
    return f"{may}, limit {rule.limit:.1%}{seen}"


def smallest_detectable(low: float, high: float, n: int, limit: float, level: float) -> float | None:
    """The slowdown that a gate of ``n`` pairs with this spread fails nine times in ten; None without an interval.

    By the normal theory of the estimate, its standard error taken from the width of the exact interval: the change must
    be significant at ``level`` and the estimate must lie beyond the limit.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or level <= 0:
        return None
    if smallest_p(n) > level:
        return None
    error = (high - low) / (2 * float(stdtrit(n - 1, 0.975)))
    again = float(stdtrit(n - 1, POWER))
    by_significance = (float(stdtrit(n - 1, 1 - level)) + again) * error
    by_limit = math.log1p(limit) + again * error
    return math.expm1(max(by_significance, by_limit))


def tidy(value: float | None) -> float | None:
    """Twelve significant digits, so that a last bit that libraries disagree about is no difference; None for infinity."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
