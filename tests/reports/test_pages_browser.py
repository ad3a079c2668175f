"""Every page beside the run's report in a real browser: axe-core finds nothing, light and dark, nothing sticks out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.gate.history import change_points, entry_of
from harness.gate.trend import trends
from harness.results.conformance import CaseResult, ExchangeRecord, SuiteResult
from harness.results.schema import EngineInfo
from reports import build_report
from reports.block_map import render_block_map
from reports.conformance import render_page
from reports.gate_page import gate_page
from reports.history_page import history_page
from reports.kernels_page import render_kernels_page
from reports.paper_page import render_paper_page
from tests.harness.gate.test_history import record as gate_of_day
from tests.reports.browser import Page, findings, is_missing
from tests.reports.test_block_map import line
from tests.reports.test_gate_views import record
from tests.reports.test_kernels_page import RESULTS
from tests.reports.test_memory_table import calibration, search
from tests.reports.test_paper_page import document
from tests.reports.test_run_block_maps import step

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(is_missing, reason="chromium and chromedriver are not installed"),
]

LONG = "a-name-without-any-place-to-break-it-" * 5


def conformance() -> str:
    def case(verdict: str, number: int) -> CaseResult:
        exchange = ExchangeRecord(
            method="POST", path="/v1/" + LONG, sent="{}", status=200, received=LONG * 20, seconds=0.1
        )
        return CaseResult(
            id=f"API-{number:02}", family="API", level="MUST", title="a title", source="a clause", oracle="an oracle",
            verdict=verdict, reason="because " + LONG, seconds=1.0, evidence={"answer": LONG * 9}, exchanges=[exchange],
            replay="pagedbench conform --cases API-01",
        )  # fmt: skip

    verdicts = ("PASS", "FAIL", "NON-STRICT", "UNSUPPORTED", "INCONCLUSIVE", "ERROR")
    suites = [
        SuiteResult(
            tool_version="0", started="2026-01-01T00:00:00", seconds=1, engine=EngineInfo(name=name, url="http://x"),
            features={"limits": "fp32"}, options={"reference": False},
            results=[case(verdict, i) for i, verdict in enumerate(verdicts)],
        )
        for name in ("paged", LONG)
    ]  # fmt: skip
    return render_page(suites)


def history() -> str:
    entries = [entry_of(gate_of_day(day, 1.1 if day >= 12 else 1.0)) for day in range(1, 20)]
    return history_page(trends(entries, change_points), len(entries))


PAGES: dict[str, Callable[[], str]] = {
    "conformance": conformance,
    "gate-fail": lambda: gate_page(record()),
    "gate-pass": lambda: gate_page(record(0.0, rules=14)),
    "gate-empty": lambda: gate_page(record(0.0, pairs=0)),
    "history": history,
    "kernels": lambda: render_kernels_page(RESULTS),
    "paper": lambda: render_paper_page(document()),
    "block-map": lambda: render_block_map(json.loads(step(3, 700, 900)) | {"reserved": {"1": [800, 801]}}),
    "block-map-small": lambda: render_block_map(line()),
}


@pytest.fixture(params=sorted(PAGES))
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One page on disk."""
    path = tmp_path / "page.html"
    path.write_text(PAGES[request.param](), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Page, page: Path, scheme: str) -> None:
    browser.show(page, scheme=scheme)
    assert browser.run("return document.querySelectorAll('header, main, footer').length") == 3
    assert findings(browser) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_is_fetched_or_logged(browser: Page, page: Path, width: int) -> None:
    browser.show(page, width, 900)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.driver.get_log("browser") == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.run("return document.scripts.length") == 0


def test_it_prints_in_black_on_white(browser: Page, page: Path) -> None:
    browser.show(page, 703, 1000, scheme="dark")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    try:
        assert browser.run("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.run("return document.documentElement.scrollWidth") <= 703
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_with_searches_calibration_and_block_maps_is_clean(
    browser: Page, draft: Any, engines: Any, tmp_path: Path, scheme: str
) -> None:
    run = draft([engines["paged"]], workloads=["chat"])
    run.manifest.searches, run.manifest.machine.calibration = [search()], calibration(200)
    path = run.write(tmp_path / "run")
    (path / "logs").mkdir()
    (path / "logs" / "paged.plans.jsonl").write_text(step(1, 300, 600))
    browser.show(build_report(path), scheme=scheme)
    assert browser.run("return document.querySelectorAll('#search, #calibration, #blocks-0').length") == 3
    assert findings(browser) == []
    assert browser.run("return document.documentElement.scrollWidth") <= 1280
