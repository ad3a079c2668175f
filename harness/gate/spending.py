"""How much of the error rate each planned look may spend.

A gate may look at its data at planned numbers of pairs and stop.  Testing at the full level each time would add up the
false alarms, so each look has a nominal level of its own: the p-value must not exceed it.  The levels follow from a
cumulative spending plan.  For continuous noise the joint distribution of the signed-rank sums at all looks is known
(uniform ranks, fair signs), whatever the noise is; it was simulated once with a fixed seed and the levels are frozen in
``spending.json``, for one and for several metrics (Holm divides the rate among the metrics not rejected yet).

Plans that are not in the file fall back to spending the increments as they are, which the union bound covers without
simulation and which is a little stricter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise

from harness.results.intervals import null_tail

DEFAULT_LOOKS = (8, 12, 20)
FAIL_RATE = 0.01  # family-wise, all metrics and all looks together
PASS_RATE = 0.05  # for each metric, all looks together
MAX_FAMILY = 12  # metrics up to which the simulated levels go


@dataclass(frozen=True, slots=True)
class Plan:
    """``looks``: numbers of pairs, rising.  ``fail`` and ``clear``: share of the rate that is spent up to each look."""

    looks: tuple[int, ...]
    fail: tuple[float, ...]
    clear: tuple[float, ...]

    @property
    def key(self) -> str:
        return "/".join(map(str, self.looks))


# At 8 pairs the smallest possible p is 0.0039: no family can be failed there, but a quiet one can be passed.
SHIPPED: tuple[Plan, ...] = (
    Plan((8, 12, 20), fail=(0.0, 0.65, 1.0), clear=(0.3, 0.6, 1.0)),
    Plan((12, 20), fail=(0.65, 1.0), clear=(0.5, 1.0)),
    Plan((12, 20, 32), fail=(0.4, 0.7, 1.0), clear=(0.35, 0.65, 1.0)),
)


def plan_for(looks: Sequence[int]) -> Plan:
    """The shipped plan with these looks, or one that spends in proportion to the pairs.  Raises ValueError."""
    asked = tuple(looks)
    if not asked or any(a >= b for a, b in pairwise(asked)) or asked[0] < 1:
        raise ValueError(f"looks must be rising numbers of pairs, such as 8, 12, 20, not {list(asked)}")
    for plan in SHIPPED:
        if plan.looks == asked:
            return plan
    shares = tuple(look / asked[-1] for look in asked)
    return Plan(asked, fail=shares, clear=shares)


def fail_levels(plan: Plan, hypotheses: int, rate: float = FAIL_RATE) -> tuple[float, ...]:
    """Nominal one-sided level at each look for a share ``rate / hypotheses`` of the family's false alarms."""
    return _levels(plan, "fail", plan.fail, rate, FAIL_RATE, hypotheses)


def pass_levels(plan: Plan, rate: float = PASS_RATE) -> tuple[float, ...]:
    """Nominal level of the upper bound at each look.  Every metric must clear its bound, so nothing is divided."""
    return _levels(plan, "pass", plan.clear, rate, PASS_RATE, 1)


@cache
def frozen() -> dict[str, dict[str, dict[str, list[float]]]]:
    """Plan -> "fail" | "pass" -> number of hypotheses -> nominal level of each look."""
    text = resources.files("harness.gate").joinpath("spending.json").read_text(encoding="utf-8")
    levels: dict[str, dict[str, dict[str, list[float]]]] = json.loads(text)["levels"]
    return levels


def _levels(
    plan: Plan, kind: str, cumulative: tuple[float, ...], rate: float, simulated: float, hypotheses: int
) -> tuple[float, ...]:
    if len(plan.looks) == 1:
        return (rate / hypotheses,)
    spent = (0.0, *cumulative)
    increments = tuple((now - before) * rate / hypotheses for before, now in pairwise(spent))
    if rate != simulated or plan not in SHIPPED:
        return increments
    known = frozen()[plan.key][kind]
    if str(hypotheses) in known:
        return tuple(known[str(hypotheses)])
    return tuple(map(min, increments, known[str(MAX_FAMILY)]))  # never less strict than for fewer hypotheses


def smallest_p(pairs: int) -> float:
    """The smallest one-sided p that this many pairs can give, 2^-n."""
    return float(null_tail(pairs)[-2])
