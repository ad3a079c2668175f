"""Which answers are kept to be judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.load.kept import is_greedy, kept_indices
from workloads.request import RequestSpec, Sampling

SPEC = RequestSpec(0, None, "p", 1, 4)


class Plan:
    """The parts of a schedule that matter here."""

    def __init__(self, requests: list[RequestSpec], *, is_pool: bool = False) -> None:
        self.requests, self.is_pool, self.key = requests, is_pool, "chat.c1.0"


def kept(plan: Any, answers: int, seed: int = 0) -> frozenset[int]:
    return kept_indices(plan, answers, seed)


def test_the_same_ones_for_every_engine_and_others_for_another_seed() -> None:
    plan = Plan([replace(SPEC, index=index) for index in range(200)])
    assert kept(plan, 16) == kept(plan, 16)
    assert len(kept(plan, 16)) == 16
    assert kept(plan, 16) != kept(plan, 16, seed=1)
    assert max(kept(plan, 16)) > 100  # over the whole cell
    assert len(kept(plan, 1000)) == 200


def test_only_requests_with_one_right_answer() -> None:
    odd = [replace(SPEC, sampling=Sampling(temperature=0.7)), replace(SPEC, n=2), replace(SPEC, cancel_after_s=1.0)]
    assert not any(is_greedy(spec) for spec in odd)
    assert kept(Plan([*odd, replace(SPEC, index=9)]), 4) == {9}


def test_a_pool_keeps_more_because_most_of_it_is_never_sent() -> None:
    plan = Plan([replace(SPEC, index=index) for index in range(1000)], is_pool=True)
    assert len(kept(plan, 16)) == 256
    assert sum(index < 200 for index in kept(plan, 16)) >= 16


def test_nothing_to_keep() -> None:
    assert kept(Plan([]), 4) == frozenset()


@pytest.mark.parametrize("seed", range(3))
def test_indices_are_those_of_the_requests(seed: int) -> None:
    plan = Plan([replace(SPEC, index=index) for index in range(-3, 40, 2)])
    assert kept(plan, 5, seed) <= {spec.index for spec in plan.requests}
