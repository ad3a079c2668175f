"""Verdicts from made-up pairs: what fails, what passes, and what must never read as better."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.gate.error_rates import NOISES, power, simulate_pairs
from harness.gate.judge import is_over, judge
from harness.gate.rules import smallest_detectable
from harness.results.gate import PairRecord
from harness.results.intervals import hodges_lehmann
from tests.harness.gate.conftest import noisy_pairs, pair, rule, sample, spec


def test_a_clear_slowdown_fails_at_the_first_look_that_can() -> None:
    result = judge(spec(), noisy_pairs(20, 0.10))
    assert (result.verdict, result.exit_code, result.pairs_used) == ("FAIL", 1, 12)
    found = result.rules[0]
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.10 < found.high
    assert "itl_p50" in result.headline


def test_equal_builds_pass_early_when_noise_is_small() -> None:
    result = judge(spec(), noisy_pairs(8, 0.0, cv=0.002))
    assert (result.verdict, result.exit_code, result.pairs_used) == ("PASS", 0, 8)


def test_noise_larger_than_the_limit_is_inconclusive_with_the_smallest_change() -> None:
    result = judge(spec(), noisy_pairs(20, 0.0, cv=0.10))
    assert (result.verdict, result.exit_code) == ("INCONCLUSIVE", 2)
    seen = result.rules[0].smallest_detectable
    assert seen is not None
    assert 0.05 < seen < 0.30


def test_a_certain_but_small_change_does_not_fail() -> None:
    result = judge(spec(rule(limit=0.05), looks=(20,)), noisy_pairs(20, 0.02, cv=0.003))
    assert result.rules[0].p is not None
    assert result.rules[0].p < 1e-4
    assert result.verdict == "PASS"


def test_higher_is_better_turns_the_sign() -> None:
    slower = judge(spec(rule(better="higher")), noisy_pairs(12, -0.10))
    assert slower.verdict == "FAIL"
    assert slower.rules[0].change == pytest.approx(-0.10, abs=0.02)
    assert slower.rules[0].worse_by == pytest.approx(0.11, abs=0.02)
    assert judge(spec(rule(better="higher")), noisy_pairs(12, 0.10)).verdict == "PASS"


def test_before_the_first_look_nothing_is_decided() -> None:
    result = judge(spec(), noisy_pairs(7, 0.5))
    assert result.verdict == "INCONCLUSIVE"
    assert "first look" in result.rules[0].reason


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -1.0])
def test_a_missing_metric_fails_and_never_passes(value: float | None) -> None:
    pairs = noisy_pairs(12)
    key = next(iter(pairs[0].candidate.values))
    pairs[3].candidate.values[key] = value
    result = judge(spec(), pairs)
    assert result.verdict == "FAIL"
    assert "missing in 1 of 8 candidate runs" in result.rules[0].reason


def test_missing_in_both_may_be_skipped_but_not_in_one() -> None:
    optional = rule("device_used_bytes", kind="count", if_missing="skip")
    pairs = noisy_pairs(12, cv=0.001)
    result = judge(spec(rule(), optional), pairs)
    assert (result.verdict, result.rules[1].verdict) == ("PASS", "SKIPPED")
    for one in pairs:
        one.baseline.values[optional.key] = 5.0
    assert judge(spec(rule(), optional), pairs).verdict == "FAIL"


def test_nothing_judged_is_not_a_pass() -> None:
    optional = rule("device_used_bytes", kind="count", if_missing="skip")
    assert judge(spec(optional), noisy_pairs(12)).verdict == "INCONCLUSIVE"
    assert judge(spec(), []).verdict == "INCONCLUSIVE"


def test_a_percentile_that_the_sample_does_not_support_is_inconclusive() -> None:
    pairs = noisy_pairs(12)
    for one in pairs:
        for run in (one.baseline, one.candidate):
            run.values[rule().key] = None
            run.samples[rule().key] = 3
    result = judge(spec(), pairs)
    assert result.verdict == "INCONCLUSIVE"
    assert "3 samples support no such percentile" in result.rules[0].reason


def test_p99_of_few_requests_is_shown_but_not_judged() -> None:
    pairs = noisy_pairs(12, 0.5)
    for one in pairs:
        one.baseline.samples[rule().key] = one.candidate.samples[rule().key] = 4999
    p99 = rule(min_samples=5000)
    result = judge(spec(p99), pairs)
    assert result.verdict == "INCONCLUSIVE"
    assert result.rules[0].change == pytest.approx(0.5, abs=0.05)
    for one in pairs:
        one.baseline.samples[rule().key] = one.candidate.samples[rule().key] = 5000
    assert judge(spec(p99), pairs).verdict == "FAIL"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([100.0] * 8, [101.0] * 8, "PASS"),
        ([100.0] * 8, [103.0] * 8, "FAIL"),
        ([100.0] * 8, [50.0] * 8, "PASS"),
        ([0.0] * 8, [0.0] * 8, "PASS"),
        ([0.0] * 8, [1.0] * 8, "FAIL"),
        ([100.0, 110.0] * 4, [110.0, 100.0] * 4, "INCONCLUSIVE"),
    ],
)
def test_counts_compare_exactly_where_their_ranges_lie_apart(
    before: list[float], after: list[float], verdict: str
) -> None:
    pairs = [pair(i, {"kv": a}, {"kv": b}) for i, (a, b) in enumerate(zip(before, after, strict=True))]
    result = judge(spec(rule("kv", kind="count")), pairs)
    assert result.rules[0].verdict == verdict
    assert result.rules[0].method == ("wilcoxon" if verdict == "INCONCLUSIVE" else "exact")


def test_the_family_is_as_large_whether_a_count_repeats_or_not() -> None:
    """Otherwise the level of the others would depend on the data, and Holm's rate would not hold."""
    pairs = noisy_pairs(12, 0.1, names=("itl_p50", "ttft_p50"))
    rules = [rule("itl_p50"), rule("ttft_p50"), rule("kv", kind="count")]
    levels = []
    for noise in (0.0, 40.0):
        for i, one in enumerate(pairs):
            one.baseline.values[rules[2].key] = 100.0 + noise * (i % 2)
            one.candidate.values[rules[2].key] = 100.0 + noise * (i % 3)
        result = judge(spec(*rules, looks=(12,)), pairs)
        assert result.rules[2].method == ("wilcoxon" if noise else "exact")
        levels.append(sorted(found.level for found in result.rules[:2] if found.level is not None))
    assert levels[0] == levels[1] == pytest.approx([0.01 / 3, 0.01 / 2])


def test_too_few_pairs_to_fail_say_how_many_it_takes() -> None:
    names = ("itl_p50", "ttft_p50", "itl_p90", "ttft_p90", "e2e_p50", "e2e_p90")
    rules = [rule(name) for name in names]
    result = judge(spec(*rules, looks=(9,)), noisy_pairs(9, 0.5, names=names))
    assert result.verdict == "INCONCLUSIVE"
    assert result.rules[0].reason.endswith("plan 10")
    assert judge(spec(*rules, looks=(10,)), noisy_pairs(10, 0.5, names=names)).verdict == "FAIL"


def test_a_count_that_is_sometimes_zero_has_no_bound() -> None:
    values = [0.0, 5.0] * 6
    pairs = [pair(i, {"kv": a}, {"kv": b}) for i, (a, b) in enumerate(zip(values, reversed(values), strict=True))]
    reason = judge(spec(rule("kv", kind="count"), looks=(12,)), pairs).rules[0].reason
    assert "zero in some runs" in reason


def test_counts_need_six_pairs() -> None:
    pairs = [pair(i, {"kv": 1.0}, {"kv": 2.0}) for i in range(5)]
    assert judge(spec(rule("kv", kind="count"), looks=(5,)), pairs).verdict == "INCONCLUSIVE"


def void(one: PairRecord, reason: str = "late", broken: bool = False, attempt: int = 0) -> PairRecord:
    candidate = one.candidate.model_copy(update={"void": [reason], "broken": [reason] if broken else []})
    return one.model_copy(update={"candidate": candidate, "attempt": attempt})


def test_void_runs_are_not_slow_runs() -> None:
    slow = [void(one) for one in noisy_pairs(2, 0.5)]
    good = noisy_pairs(12, 0.0, cv=0.001)
    result = judge(spec(), [*slow, *good])
    assert result.verdict == "PASS"
    assert result.attempts_void == 2


def test_too_many_void_runs_are_inconclusive_whatever_the_rest_says() -> None:
    good = noisy_pairs(12, 0.5)
    bad = [void(good[i], attempt=1) for i in range(4)]
    result = judge(spec(), [*bad, *good])
    assert result.verdict == "INCONCLUSIVE"
    assert "4 of 16 attempts were void" in result.reasons[0]
    assert is_over(spec(), [*bad, *good])


def test_a_candidate_that_breaks_in_every_attempt_fails_whatever_its_speed() -> None:
    attempts = [void(noisy_pairs(1, -0.5)[0], "5% of the requests failed", broken=True, attempt=k) for k in range(3)]
    result = judge(spec(), attempts)
    assert result.verdict == "FAIL"
    assert "not correct" in result.headline
    assert judge(spec(), attempts[:2] + noisy_pairs(8, cv=0.001)).verdict == "PASS"


def with_answers(pairs: list[PairRecord], before: str, after: str) -> list[PairRecord]:
    for one in pairs:
        one.baseline.answers = {"q": before}
        one.candidate.answers = {"q": after}
    return pairs


def test_changed_answers_fail_a_faster_candidate() -> None:
    pairs = with_answers(noisy_pairs(12, -0.2), "a", "b")
    assert judge(spec(), pairs).verdict == "FAIL"
    assert judge(spec(answers="report"), pairs).verdict == "PASS"
    assert judge(spec(), with_answers(noisy_pairs(12, -0.2), "a", "a")).verdict == "PASS"


def test_answers_that_the_baseline_itself_varies_decide_nothing() -> None:
    pairs = with_answers(noisy_pairs(12, -0.2), "a", "b")
    for i, one in enumerate(pairs):
        one.baseline.answers = {"q": str(i)}
    result = judge(spec(), pairs)
    assert result.verdict == "PASS"
    assert {part.name: part.verdict for part in result.verified}["same answers"] == "NOT DECIDED"


def test_judging_again_is_the_same_bit_for_bit() -> None:
    pairs = noisy_pairs(20, 0.01, cv=0.02, seed=4)
    first = judge(spec(), pairs)
    copies = [PairRecord.model_validate_json(one.model_dump_json()) for one in pairs]
    assert judge(spec(), copies).model_dump_json() == first.model_dump_json()


def test_smallest_detectable_change_is_found_nine_times_in_ten() -> None:
    d = simulate_pairs(np.random.default_rng(1), 400, 1, 20, NOISES["normal"], 0.0, cv=0.02)[:, 0]
    _, low, high = hodges_lehmann(d)
    found = [smallest_detectable(float(a), float(b), 20, 0.0, 0.01) for a, b in zip(low, high, strict=True)]
    typical = float(np.median([x for x in found if x is not None]))
    assert 0.85 < power(1000, (0.0,), (20,), typical, 0.02)["20"] < 0.95


def test_a_run_without_values_is_missing_not_zero() -> None:
    one = noisy_pairs(1)[0].model_copy(update={"candidate": sample("candidate", {})})
    assert judge(spec(), [one]).verdict == "FAIL"
