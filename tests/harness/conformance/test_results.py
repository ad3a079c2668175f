"""Exit codes, and the documents made of results."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from harness.results.conformance import CaseResult, SuiteResult, exit_code_of
from harness.results.schema import EngineInfo
from reports.conformance import junit_xml, render_page


def result(verdict: str, level: str = "MUST", id: str = "API-01") -> CaseResult:
    return CaseResult(
        id=id,
        family=id[:3],
        level=level,
        title="a <title>",
        source="s",
        oracle="structural",
        verdict=verdict,
        reason="r\x00",
    )


@pytest.mark.parametrize(
    ("verdicts", "status", "code"),
    [
        ([], "complete", 0),
        (["PASS", "NON-STRICT", "UNSUPPORTED"], "complete", 0),
        (["PASS", "INCONCLUSIVE"], "complete", 2),
        (["FAIL", "INCONCLUSIVE", "ERROR"], "complete", 1),
        (["ERROR", "INCONCLUSIVE"], "complete", 4),
        (["PASS"], "lost", 3),
        (["FAIL"], "lost", 1),
        (["PASS"], "interrupted", 2),
    ],
)
def test_exit_codes(verdicts: list[str], status: str, code: int) -> None:
    assert exit_code_of([result(verdict) for verdict in verdicts], status) == code


def test_a_failed_should_counts_only_when_strict() -> None:
    assert exit_code_of([result("FAIL", "SHOULD")]) == 0
    assert exit_code_of([result("FAIL", "SHOULD")], strict=True) == 1
    assert exit_code_of([result("FAIL", "INFO")], strict=True) == 0


def suite(name: str, *results: CaseResult) -> SuiteResult:
    info = EngineInfo(name=name, url="http://x")
    return SuiteResult(
        tool_version="0",
        started="2026-01-01T00:00:00",
        seconds=1,
        engine=info,
        features={"limits": "fp32"},
        options={"reference": False},
        results=list(results),
    )


def test_outputs_hold_every_case_of_every_engine() -> None:
    suites = [
        suite("one", result("PASS"), result("FAIL", id="STR-01")),
        suite("two", result("INCONCLUSIVE"), result("UNSUPPORTED", id="ERR-01")),
    ]
    xml = ElementTree.fromstring(junit_xml(suites))
    assert [node.get("failures") for node in xml] == ["1", "0"]
    assert [node.get("skipped") for node in xml] == ["0", "2"]
    page = render_page(suites)
    for id in ("API-01", "STR-01", "ERR-01"):
        assert f'id="{id}"' in page
    assert "a &lt;title&gt;" in page
    assert "://" not in page.replace("http://x", "")
    assert SuiteResult.model_validate_json(suites[0].model_dump_json()) == suites[0]
