"""From pairs and limits to a verdict: a pure function, so that a stored gate can be judged again bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from harness.gate.procedure import Look, levels_of, look_at
from harness.gate.rules import decide_alone, describe, finish, log_ratios
from harness.gate.spending import plan_for
from harness.gate.verify import verify
from harness.gate.words import headline_of
from harness.results.gate import (
    EXIT_CODES,
    GateResult,
    JudgeSpec,
    LookResult,
    PairRecord,
    RuleResult,
    Verdict,
    VerifiedPart,
)

MIN_ATTEMPTS_FOR_VOID_SHARE = 5


class Judged(NamedTuple):
    """What one look came to."""

    verdict: Verdict
    rules: list[RuleResult]


def judge(
    spec: JudgeSpec,
    pairs: Sequence[PairRecord],
    *,
    checks: Sequence[VerifiedPart] = (),
    warnings: Sequence[str] = (),
    is_interrupted: bool = False,
) -> GateResult:
    """The verdict on all pairs so far.  ``verdict`` is INCONCLUSIVE as long as no planned look decided.

    Correctness comes first, then what makes the measurement worthless (void runs), then the metrics at each planned
    look in turn; the first look that decides ends it, whatever pairs were recorded after it.
    """
    counted = counted_pairs(pairs)
    void = sum(pair.is_void for pair in pairs)
    lost = len({pair.index for pair in pairs} - {pair.index for pair in counted})
    verified = [*verify(spec, pairs, counted), *checks]
    looks, judged, used = _looks(spec, counted)
    if judged is None:
        judged, used = Judged("INCONCLUSIVE", _too_few(spec, counted)), len(counted)
    reasons: list[str] = []
    verdict = judged.verdict
    missing = [rule for rule in judged.rules if _is_missing(rule)]
    broken = [part for part in verified if part.verdict == "FAIL"]
    if broken:
        verdict = "FAIL"
        reasons += [f"{part.name}: {part.detail}" for part in broken]
    elif missing and counted:
        verdict = "FAIL"
    elif void_share(pairs) > spec.max_void_share:
        verdict = "INCONCLUSIVE"
        reasons.append(
            f"{void} of {len(pairs)} attempts were void, more than the {spec.max_void_share:.0%} that may be: "
            f"{_most_common_void(pairs)}"
        )
    elif not counted:
        reasons.append("no pair of runs counts" + (f": {_most_common_void(pairs)}" if void else ""))
    reasons += [f"{rule.rule.label}: {rule.reason}" for rule in judged.rules if rule.verdict not in ("PASS", "SKIPPED")]
    if is_interrupted:
        reasons.append("the gate was interrupted before its next look")
    return GateResult(
        verdict=verdict,
        exit_code=EXIT_CODES[verdict],
        headline=headline_of(verdict, judged.rules, reasons, used, bool(broken)),
        reasons=reasons,
        warnings=list(warnings),
        pairs_planned=spec.looks[-1],
        pairs_used=used,
        pairs_void=lost,
        attempts_void=void,
        looks=looks,
        rules=judged.rules,
        verified=verified,
    )


def counted_pairs(pairs: Sequence[PairRecord]) -> list[PairRecord]:
    """The attempt of each pair that is not void, in the order of their index."""
    good = {pair.index: pair for pair in pairs if not pair.is_void}
    return [good[index] for index in sorted(good)]


def void_share(pairs: Sequence[PairRecord]) -> float:
    """Share of void attempts, 0 while there are too few to tell."""
    if len(pairs) < MIN_ATTEMPTS_FOR_VOID_SHARE:
        return 0.0
    return sum(pair.is_void for pair in pairs) / len(pairs)


def is_over(spec: JudgeSpec, pairs: Sequence[PairRecord]) -> bool:
    """Whether a gate that is being driven has its answer, or cannot get one any more."""
    counted = counted_pairs(pairs)
    if void_share(pairs) > spec.max_void_share or len(counted) >= spec.looks[-1]:
        return True
    if any(part.verdict == "FAIL" for part in verify(spec, pairs, counted)):
        return True
    if counted and any(_is_missing(decide_alone(rule, counted)) for rule in spec.rules):
        return True
    judged = _looks(spec, counted)[1]
    return judged is not None and judged.verdict != "INCONCLUSIVE"


def _is_missing(result: RuleResult | None) -> bool:
    """Whether a rule failed because its metric was not measured."""
    return result is not None and result.verdict == "FAIL" and result.method == "none"


def _looks(spec: JudgeSpec, counted: Sequence[PairRecord]) -> tuple[list[LookResult], Judged | None, int]:
    """Every planned look that the pairs reach, up to the first that decides."""
    plan = plan_for(spec.looks)
    results: list[LookResult] = []
    judged: Judged | None = None
    used = 0
    for k, pairs in enumerate(plan.looks):
        if pairs > len(counted):
            break
        judged, used = _look(spec, counted[:pairs], k), pairs
        results.append(LookResult(pairs=pairs, verdict=judged.verdict, note=_note(judged, k + 1 < len(plan.looks))))
        if judged.verdict != "INCONCLUSIVE":
            break
    return results, judged, used


def _look(spec: JudgeSpec, pairs: Sequence[PairRecord], k: int) -> Judged:
    """Judge exactly these pairs at look ``k``."""
    alone = {rule.key: decide_alone(rule, pairs) for rule in spec.rules}
    family = [rule for rule in spec.rules if alone[rule.key] is None]
    results: dict[str, RuleResult] = {key: found for key, found in alone.items() if found is not None}
    if family:
        d = np.stack([log_ratios(rule, pairs) for rule in family])
        # A count that was compared exactly stays in the family, as one that is not rejected: whether it needs statistics
        # is seen in its data, and the size of a family that depends on the data would not control Holm's error rate.
        exact = sum(found.method == "exact" for found in results.values())
        levels = levels_of(plan_for(spec.looks), len(family) + exact, spec.fail_rate, spec.pass_rate)
        steps = replace(levels[k], fail=levels[k].fail[exact:])
        look = look_at(d[None], np.array([rule.limit for rule in family]), steps)
        for i, rule in enumerate(family):
            results[rule.key] = finish(rule, pairs, _one(look, i), d[i], levels[k], levels[-1].fail[-1])
    rules = [results[rule.key] for rule in spec.rules]
    verdicts = {rule.verdict for rule in rules} - {"SKIPPED"}
    if "FAIL" in verdicts:
        return Judged("FAIL", rules)
    return Judged("PASS" if verdicts == {"PASS"} else "INCONCLUSIVE", rules)


def _one(look: Look, i: int) -> Look:
    """The numbers of metric ``i`` of the only gate."""
    return Look(*(values[0, i] for values in look))


def _too_few(spec: JudgeSpec, counted: Sequence[PairRecord]) -> list[RuleResult]:
    """Rules of a gate that reached no look: missing metrics fail all the same, the rest is described without a verdict."""
    results = []
    for rule in spec.rules:
        alone = decide_alone(rule, counted) if counted else None
        if alone is not None and alone.method == "none":
            results.append(alone)
        else:
            reason = f"{len(counted)} pairs that count; the first look comes after {spec.looks[0]}"
            results.append(describe(rule, counted, "INCONCLUSIVE", reason))
    return results


def _note(judged: Judged, more: bool) -> str:
    counts: dict[str, int] = {}
    for rule in judged.rules:
        counts[rule.verdict] = counts.get(rule.verdict, 0) + 1
    said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    return said + ("; went on" if judged.verdict == "INCONCLUSIVE" and more else "")


def _most_common_void(pairs: Sequence[PairRecord]) -> str:
    counts: dict[str, int] = {}
    for pair in pairs:
        for sample in (pair.baseline, pair.candidate):
            for reason in sample.void[:1]:
                key = f"{sample.arm}, {reason}"
                counts[key] = counts.get(key, 0) + 1
    return max(counts, key=lambda key: counts[key]) if counts else "no reason recorded"
