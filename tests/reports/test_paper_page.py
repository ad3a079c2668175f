"""The page of ``pagedbench paper``: everything in the document is on it, and what is off is said first."""

from __future__ import annotations

from typing import Any

from reports.paper_page import render_paper_page
from reports.style import LEDGER

WORDS = {word.name: 10 for word in LEDGER}


def row(case: str, within: bool | None, ours: float | None = 9.93, paper: float | None = 9.81) -> dict[str, Any]:
    return {
        "case": case,
        "quantity": "requests at once",
        "ours": ours,
        "paper": paper,
        "deviation": None if ours is None or paper is None else ours - paper,
        "unit": "requests",
        "tolerance": "10%",
        "within": within,
        "kind": "prediction",
    }


def document() -> dict[str, Any]:
    figures = [
        {"figure": "Fig. 2", "title": "Memory", "rows": [row("Orca (Pow2)", True)], "notes": ["a note"], "secondary": True,
         "series": []},
        {"figure": "Fig. 12", "title": "Latency", "rows": [row("<b>case</b>", False, ours=None)], "notes": [],
         "secondary": True, "x": "requests/s", "y": "s/token",
         "series": [{"name": "paged", "points": [[0.5, 0.1], [1.0, 0.2], [2.0, None]]}]},
    ]  # fmt: skip
    return {
        "profile": "a100-opt-13b",
        "seed": 3,
        "source": "from secondary texts",
        "within": 1,
        "judged": 2,
        "fitted": [{"parameter": "output cv", "value": 0.87, "fitted_to": "Fig. 2"}],
        "figures": figures,
        "timelines": {"paged": [[0.0, WORDS], [1.0, WORDS]], "static": [[0.0, WORDS], [2.0, WORDS]]},
    }


def test_numbers_deviations_fits_and_mismatches_are_on_the_page() -> None:
    page = render_paper_page(document())
    for text in ("1 of 2 judged numbers", "9.93", "9.81", "+0.12", "a note", "output cv", "secondary source", "seed 3"):
        assert text in page, text
    assert "<b>Off:</b> &lt;b&gt;case&lt;/b&gt;" in page
    assert page.count("<svg") >= 2
    assert "://" not in page.replace("http://www.w3.org", "")


def test_a_missing_number_is_a_dash() -> None:
    assert 'title="not measured"' in render_paper_page(document())
