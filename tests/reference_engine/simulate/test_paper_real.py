"""The measured part of ``pagedbench paper``: medians, order, and a real (tiny) model under all five policies."""

from __future__ import annotations

from typing import Any

import pytest

from reference_engine.bench import Bench
from reference_engine.bench_policies import MEASURES, POLICIES, by_policy, measure_policies
from reference_engine.server.options import ServerOptions
from reference_engine.simulate import paper, paper_real


def cell(policy: str, at_once: float, **more: float) -> dict[str, Any]:
    return {"policy": policy, **dict.fromkeys(MEASURES, 1.0), "at_once": at_once, **more}


def test_rows_give_the_median_and_the_range() -> None:
    cells = [cell("paged", value, waste=value / 100) for value in (9.0, 4.0, 5.0)]
    rows = paper_real.real_rows(cells)
    assert rows[0] == ("paged", "requests at once, median of 3 (4 to 9)", 5.0, "requests")
    policy, quantity, middle, unit = rows[2]
    assert (policy, quantity, unit) == ("paged", "waste, median of 3 (4 to 9)", "% of the slots in use")
    assert middle == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("at_once", "ordered"),
    [((1, 2, 3, 4, 5), True), ((9, 2, 3, 4, 5), True), ((1, 2, 4, 3, 5), False), ((1, 2, 3, 5, 5), False)],
)  # fmt: skip
def test_the_order_is_that_of_the_paper_and_strict(at_once: tuple[int, ...], ordered: bool) -> None:
    """Static batching has no place in the paper's order."""
    cells = [cell(policy, value) for policy, value in zip(POLICIES, at_once, strict=True)]
    assert paper_real.is_ordered(cells) is ordered
    judged = paper.on_a_real_engine("m", {"cells": cells, "settings": {}})["rows"][-1]
    assert judged["within"] is ordered


def test_a_model_that_cannot_be_had_is_named_and_judges_nothing() -> None:
    measured = paper_real.measure_real("no/such/model.gguf", 0, lambda said: None)
    assert "no/such/model.gguf" in measured["unavailable"]
    figure = paper.on_a_real_engine("no/such/model.gguf", measured)
    assert figure["rows"] == []
    assert figure["notes"] == [f"Not measured: {measured['unavailable']}"]


def test_every_policy_serves_the_same_requests_on_a_real_model() -> None:
    bench = Bench(
        ServerOptions(model="sentinel", device="cpu", threads=1, block_size=4, num_blocks=64, max_model_len=64)
    )
    said: list[str] = []
    cells = list(measure_policies(bench, requests=10, repeats=1, scale=0.03, max_model_len=64, progress=said.append))
    assert [one["policy"] for one in cells] == list(POLICIES)
    assert len(said) == len(POLICIES)
    assert len({one["output_tokens"] for one in cells}) == 1
    found = {row["policy"]: row for row in by_policy(cells)}
    assert found["orca-max"]["at_once"][0] <= 256 / 64
    assert found["paged"]["at_once"][0] > found["orca-max"]["at_once"][0]
    assert found["paged"]["waste"][0] < found["orca-max"]["waste"][0]
