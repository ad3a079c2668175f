"""Conformance results for people and CI: one HTML page (cases x engines, a section a case) and JUnit XML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from harness.results.conformance import VERDICT_MEANINGS, VERDICTS, CaseResult, SuiteResult
from reports import shell

# What stands for a verdict where colour is not seen.
MARKS = {"PASS": "✓", "FAIL": "✗", "NON-STRICT": "~", "UNSUPPORTED": "–", "INCONCLUSIVE": "?", "ERROR": "!"}


class Row(NamedTuple):
    """One case over all engines; None where an engine was not asked."""

    case: CaseResult
    cells: list[CaseResult | None]


class Family(NamedTuple):
    name: str
    rows: list[Row]


def rows_of(suites: Sequence[SuiteResult]) -> list[Family]:
    """The matrix: families and cases in the order of the first suite that has them."""
    tables = [{result.id: result for result in suite.results} for suite in suites]
    order: dict[str, CaseResult] = {}
    for suite in suites:
        for result in suite.results:
            order.setdefault(result.id, result)
    families: dict[str, list[Row]] = {}
    for id, result in order.items():
        families.setdefault(result.family, []).append(Row(result, [table.get(id) for table in tables]))
    return [Family(name, rows) for name, rows in families.items()]


def headline(suite: SuiteResult) -> str:
    """One sentence on a suite."""
    counts = suite.counts()
    failed = [result for result in suite.results if result.verdict == "FAIL"]
    must = sum(result.level == "MUST" for result in failed)
    if suite.status != "complete":
        return f"{suite.engine.name}: {suite.status} ({suite.status_reason})"
    if failed:
        return f"{suite.engine.name}: {must} MUST and {len(failed) - must} other cases failed of {len(suite.results)}"
    if counts["INCONCLUSIVE"]:
        return f"{suite.engine.name}: nothing failed, {counts['INCONCLUSIVE']} cases are inconclusive"
    return f"{suite.engine.name}: every case that could be run held"


def pretty(value: Any) -> str:
    """Evidence as text."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def render_page(suites: Sequence[SuiteResult]) -> str:
    """The page: one file, no script, no external reference."""
    context = {
        "suites": suites,
        "families": rows_of(suites),
        "headlines": [headline(suite) for suite in suites],
        "verdicts": VERDICTS,
        "meanings": VERDICT_MEANINGS,
    }
    return shell.render_page("conformance.html.j2", context, mark=MARKS.__getitem__, slug=slug, pretty=pretty)


def slug(verdict: str) -> str:
    """A verdict as the name of a style class."""
    return verdict.lower().replace("-", "")


def junit_xml(suites: Sequence[SuiteResult]) -> str:
    """JUnit: a testsuite an engine, a testcase a case.

    FAIL is a failure, ERROR an error; UNSUPPORTED and INCONCLUSIVE are skipped with their reason, since neither is a pass.
    """
    root = ElementTree.Element("testsuites", name="pagedbench conform")
    for suite in suites:
        counts = suite.counts()
        node = ElementTree.SubElement(
            root,
            "testsuite",
            name=suite.engine.name,
            tests=str(len(suite.results)),
            failures=str(counts["FAIL"]),
            errors=str(counts["ERROR"]),
            skipped=str(counts["UNSUPPORTED"] + counts["INCONCLUSIVE"]),
            time=f"{suite.seconds:.3f}",
            timestamp=suite.started,
        )
        for result in suite.results:
            case = ElementTree.SubElement(
                node,
                "testcase",
                classname=f"conformance.{result.family}",
                name=f"{result.id} {result.title}",
                time=f"{result.seconds:.3f}",
            )
            if result.verdict == "PASS":
                continue
            text = f"{result.reason}\nsource: {result.source}\nevidence: {pretty(result.evidence)}\nreplay: {result.replay}"
            if result.verdict in ("FAIL", "ERROR"):
                kind = "failure" if result.verdict == "FAIL" else "error"
                inner = ElementTree.SubElement(case, kind, message=clean(result.reason), type=result.level)
                inner.text = clean(text)
            elif result.verdict == "NON-STRICT":
                ElementTree.SubElement(case, "system-out").text = clean(f"NON-STRICT: {text}")
            else:
                ElementTree.SubElement(case, "skipped", message=clean(f"{result.verdict}: {result.reason}"))
        if suite.status != "complete":
            lost = ElementTree.SubElement(
                node, "testcase", classname="conformance", name="the suite ran to its end", time="0"
            )
            ElementTree.SubElement(lost, "error", message=clean(suite.status_reason), type=suite.status)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def clean(text: str) -> str:
    """Without characters that XML 1.0 does not allow; a server may have sent them."""
    return "".join(
        c for c in text if c in "\t\n\r" or "\x20" <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c >= "\U00010000"
    )
