"""A schedule dealt out to workers is the same schedule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.load.cell import CellPlan
from harness.load.split import split_plan
from workloads.arrivals import poisson_arrivals
from workloads.request import Load, RequestSpec


def conversations(lengths: list[int], first_index: int = 0) -> tuple[RequestSpec, ...]:
    """Conversations of so many turns each."""
    specs: list[RequestSpec] = []
    for conversation, turns in enumerate(lengths):
        for turn in range(turns):
            index = first_index + len(specs)
            after = index - 1 if turn else None
            specs.append(RequestSpec(index, None, "x", 1, 1, conversation=conversation, turn=turn, after=after))
    return tuple(specs)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=12),
    st.lists(st.integers(1, 3), max_size=4),
    st.integers(1, 9),
    st.booleans(),
)
def test_every_request_is_sent_once_at_its_own_time(
    lengths: list[int], warm: list[int], workers: int, open_loop: bool
) -> None:
    warmup = conversations(warm, first_index=-sum(warm))
    requests = conversations(lengths)
    arrivals = poisson_arrivals(5, 1, count=len(lengths) + len(warm)) if open_loop else None
    load = Load("poisson", rate=5) if open_loop else Load("closed", concurrency=4)
    plan = CellPlan("cell", load, warmup, requests, arrivals)
    parts = split_plan(plan, workers)
    assert sorted(spec.index for part in parts for spec in part.requests) == [spec.index for spec in requests]
    assert sorted(spec.index for part in parts for spec in part.warmup) == [spec.index for spec in warmup]

    def times(one: CellPlan) -> dict[int, int]:
        firsts = [spec.index for spec in (*one.warmup, *one.requests) if spec.after is None]
        return dict(zip(firsts, one.arrivals_ns or (), strict=one.arrivals_ns is not None))

    merged: dict[int, int] = {}
    for part in parts:
        merged |= times(part)
        indices = {spec.index for spec in (*part.warmup, *part.requests)}
        assert all(spec.after is None or spec.after in indices for spec in (*part.warmup, *part.requests))
    assert merged == times(plan)


@pytest.mark.parametrize(("concurrency", "workers", "shares"), [(10, 4, [3, 3, 2, 2]), (2, 8, [1, 1]), (8, 1, [8])])
def test_requests_in_flight_are_shared_out(concurrency: int, workers: int, shares: list[int]) -> None:
    plan = CellPlan("cell", Load("closed", concurrency=concurrency), (), conversations([1] * 40))
    assert [part.load.concurrency for part in split_plan(plan, workers)] == shares
