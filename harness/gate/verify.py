"""Correctness gates speed: what the runs themselves show about the candidate's answers.

Two things can be told from a pair of runs.  Whether the candidate **answers at all**: failed requests, crashes and wrong
lengths that the baseline does not have.  And whether it **answers the same**: a question is decidable when the baseline
gave one and the same answer in at least three runs; the answer has changed when no candidate run gave it.  Questions that
the baseline itself answers in several ways (batching changes rounding) decide nothing, and that is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from harness.results.gate import JudgeSpec, PairRecord, VerifiedPart

MIN_REPEATS = 3
MAX_ATTEMPTS = 3


def verify(spec: JudgeSpec, pairs: Sequence[PairRecord], counted: Sequence[PairRecord]) -> list[VerifiedPart]:
    """The checks that the pairs allow."""
    return [_answers_at_all(pairs), _answers_the_same(spec, counted)]


def _answers_at_all(pairs: Sequence[PairRecord]) -> VerifiedPart:
    name = "answers"
    by_index: dict[int, list[PairRecord]] = defaultdict(list)
    for pair in pairs:
        by_index[pair.index].append(pair)
    for attempts in [*by_index.values(), list(pairs)]:
        broken = [pair.candidate.broken for pair in attempts if pair.candidate.broken and not pair.baseline.broken]
        if len(attempts) >= MAX_ATTEMPTS and len(broken) == len(attempts):
            detail = f"the candidate failed in every one of {len(attempts)} runs, the baseline in none: {broken[-1][0]}"
            return VerifiedPart(name=name, verdict="FAIL", detail=detail)
    if all(pair.candidate.void for pair in pairs):
        return VerifiedPart(name=name, verdict="NOT DECIDED", detail="no candidate run counts")
    return VerifiedPart(name=name, verdict="PASS", detail="the candidate completed its requests")


def _answers_the_same(spec: JudgeSpec, counted: Sequence[PairRecord]) -> VerifiedPart:
    name = "same answers"
    baseline: dict[str, list[str]] = defaultdict(list)
    candidate: dict[str, list[str]] = defaultdict(list)
    equal = both = 0
    for pair in counted:
        for key, text in pair.baseline.answers.items():
            baseline[key].append(text)
            if key in pair.candidate.answers:
                both += 1
                equal += pair.candidate.answers[key] == text
        for key, text in pair.candidate.answers.items():
            candidate[key].append(text)
    if not both:
        return VerifiedPart(name=name, verdict="NOT DECIDED", detail="the runs hold no answers to compare")
    stable = {key for key, texts in baseline.items() if len(texts) >= MIN_REPEATS and len(set(texts)) == 1}
    decidable = {key for key in stable if len(candidate[key]) >= MIN_REPEATS}
    changed = {key for key in decidable if baseline[key][0] not in candidate[key]}
    shares = f"{equal} of {both} answers equal in pairs"
    if not decidable:
        detail = (
            f"{shares}; no question was answered alike by the baseline in {MIN_REPEATS} runs, so nothing is decided"
        )
        return VerifiedPart(name=name, verdict="NOT DECIDED", detail=detail)
    if changed:
        detail = f"{len(changed)} of {len(decidable)} answers that the baseline always gives never came back; {shares}"
        if spec.answers == "report":
            return VerifiedPart(name=name, verdict="NOT DECIDED", detail=f"{detail} (only reported)")
        hint = " (if that is meant, set `answers: report`)"
        return VerifiedPart(name=name, verdict="FAIL", detail=detail + hint)
    detail = f"all {len(decidable)} answers that the baseline always gives came back; {shares}"
    return VerifiedPart(name=name, verdict="PASS", detail=detail)
