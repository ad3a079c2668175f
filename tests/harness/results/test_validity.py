"""The rules of validity: every one can fire, and null fires none."""

from __future__ import annotations

import pytest

from harness.results.validity import RULES, Rule, judge

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
