"""The rules of validity: every one can fire, and null fires none."""

from __future__ import annotations

import pytest

from harness.results.validity import RULES, Rule, disbelief, judge

# What sentences may mention besides their own measure.
CONTEXT: dict[str, float | None] = {"lag_ms_p99": 12.0, "late_from_s": 3.0}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.measure)
def test_every_rule_is_evaluated_at_both_thresholds(rule: Rule) -> None:
    for threshold, verdict in ((rule.suspect, "SUSPECT"), (rule.invalid, "INVALID")):
        if threshold is not None:
            validity, reasons = judge({**CONTEXT, rule.measure: threshold * 1.01})
            assert validity == verdict
            assert len(reasons) == 1
            assert "{" not in reasons[0]
    low = min(threshold for threshold in (rule.suspect, rule.invalid) if threshold is not None)
    assert judge({**CONTEXT, rule.measure: low}) == ("VALID", [])


def test_null_is_not_a_reason() -> None:
    assert judge({rule.measure: None for rule in RULES}) == ("VALID", [])
    assert judge({}) == ("VALID", [])


def test_the_gravest_reason_comes_first() -> None:
    validity, reasons = judge({"length_mismatch": 0.5, "error_share": 0.9})
    assert validity == "INVALID"
    assert "failed" in reasons[0]
    assert "planned length" in reasons[1]


def test_rules_are_ordered_sensibly() -> None:
    for rule in RULES:
        assert rule.suspect is not None or rule.invalid is not None
        if rule.suspect is not None and rule.invalid is not None:
            assert rule.suspect < rule.invalid


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.invalid is not None], ids=lambda rule: rule.measure)
def test_what_makes_a_cell_invalid_makes_it_incredible_unless_it_is_the_engines_answer(rule: Rule) -> None:
    assert rule.invalid is not None
    reason = disbelief({**CONTEXT, rule.measure: rule.invalid * 1.01})
    assert (reason is None) == (rule.measure == "error_share")
    assert disbelief({**CONTEXT, rule.measure: rule.invalid}) is None


def test_failed_requests_do_not_excuse_a_late_client() -> None:
    measures = {**CONTEXT, "error_share": 0.5, "lateness_ms_p99": 500.0}
    assert disbelief(measures) == "requests left late: p99 500.0 ms after their planned time, from 3.0 s on"
