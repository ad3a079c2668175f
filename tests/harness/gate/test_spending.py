"""The frozen levels keep the error rate that they promise."""

from __future__ import annotations

from itertools import pairwise

import pytest

from harness.gate.simulate_spending import levels, sums
from harness.gate.spending import FAIL_RATE, MAX_FAMILY, PASS_RATE, SHIPPED, Plan, fail_levels, pass_levels, plan_for
from harness.results.intervals import null_tail


@pytest.mark.parametrize("plan", SHIPPED, ids=lambda plan: plan.key)
def test_frozen_levels_spend_no_more_than_the_rate(plan: Plan) -> None:
    drawn = sums(plan, 200_000, seed=7)  # another seed than the one that made the file

    def crossing(chosen: tuple[float, ...]) -> float:
        hit = drawn[:, 0] < 0
        for k, n in enumerate(plan.looks):
            hit |= null_tail(n)[drawn[:, k]] <= chosen[k]
        return float(hit.mean())

    spent = crossing(fail_levels(plan, 1))
    assert 0.8 * FAIL_RATE < spent < FAIL_RATE + 3 * (FAIL_RATE / 200_000) ** 0.5
    spent = crossing(pass_levels(plan))
    assert 0.9 * PASS_RATE < spent < PASS_RATE + 3 * (PASS_RATE / 200_000) ** 0.5


@pytest.mark.parametrize("plan", SHIPPED, ids=lambda plan: plan.key)
def test_fewer_hypotheses_are_never_judged_more_strictly(plan: Plan) -> None:
    table = [fail_levels(plan, m) for m in range(1, MAX_FAMILY + 4)]
    for fewer, more in pairwise(table):
        assert all(a >= b for a, b in zip(fewer, more, strict=True))


def test_a_single_look_has_the_whole_rate() -> None:
    assert fail_levels(plan_for([17]), 5) == (FAIL_RATE / 5,)
    assert pass_levels(plan_for([17])) == (PASS_RATE,)


def test_other_looks_are_covered_by_the_union_bound() -> None:
    plan = plan_for([5, 10, 15])
    assert sum(fail_levels(plan, 3)) == pytest.approx(FAIL_RATE / 3)


def test_simulated_levels_do_not_exceed_what_is_left() -> None:
    plan = Plan((6, 10), fail=(0.5, 1.0), clear=(0.5, 1.0))
    chosen = levels(plan, sums(plan, 50_000, seed=1), (0.5, 1.0), 0.1)
    assert 0 < chosen[0] <= 0.05
    assert 0 < chosen[1] <= 0.1


@pytest.mark.parametrize("looks", [[], [3, 3], [5, 4], [0]])
def test_looks_must_rise(looks: list[int]) -> None:
    with pytest.raises(ValueError, match="rising"):
        plan_for(looks)
