"""The rows of ``pagedbench paper``: verdicts, crossings, and (slow) the paper's numbers themselves."""

from __future__ import annotations

import pytest

from reference_engine.simulate import paper, paper_runs


@pytest.mark.parametrize(
    ("ours", "stated", "tolerance", "within"),
    [
        (10.7, 9.81, "10%", True),
        (10.9, 9.81, "10%", False),
        (29.7, 26.8, "3pt", True),
        (23.7, 26.8, "3pt", False),
        (3.9, None, "<4", True),
        (4.1, None, "<4", False),
        (5.0, 4.0, "", None),
        (None, 4.0, "10%", None),
    ],
)
def test_a_row_is_judged_by_its_tolerance(
    ours: float | None, stated: float | None, tolerance: str, within: bool | None
) -> None:
    assert paper.row("c", "q", ours, stated, kind="fit", unit="x", tolerance=tolerance)["within"] is within


def test_the_sustained_rate_is_where_the_curve_crosses() -> None:
    assert paper.rate_at([[1.0, 0.1], [2.0, 0.3], [3.0, 0.7]], 0.5) == pytest.approx(2.5)
    assert paper.rate_at([[1.0, 0.1], [2.0, 0.3]], 0.5) is None
    assert paper.rate_at([[1.0, 0.6], [2.0, 0.9]], 0.5) is None


def test_jobs_are_named_once() -> None:
    keys = [job.key for job in paper_runs.jobs(0)]
    assert len(keys) == len(set(keys))


@pytest.mark.slow
def test_the_paper_is_reproduced_within_the_stated_tolerances() -> None:
    document = paper.reproduce(seed=0)
    off = [
        (figure["figure"], row["case"], row["quantity"], row["ours"], row["paper"])
        for figure in document["figures"]
        for row in figure["rows"]
        if row["within"] is False and figure["figure"] in ("Fig. 2", "Fig. 13", "Fig. 15")
    ]
    assert off == []
