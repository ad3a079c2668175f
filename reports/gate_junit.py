"""The gate as JUnit XML: one test case a metric and one a check of correctness, for CI systems that list tests."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from harness.results.gate import GateRecord
from reports.gate_words import result_of, rows

# What XML 1.0 cannot carry, even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def gate_junit(record: GateRecord) -> str:
    """XML text.  FAIL is a failure; INCONCLUSIVE and SKIPPED are skipped with their reason."""
    result = result_of(record)
    suite = ElementTree.Element("testsuite", name="pagedbench gate", timestamp=record.created_utc)
    failures = skipped = 0
    cases = [
        ("metric", row.metric, row.verdict, f"{row.change} [{row.interval}], limit {row.limit}: {row.reason}")
        for row in rows(result)
    ]
    cases += [("correctness", part.name, part.verdict, part.detail) for part in result.verified]
    cases.append(("verdict", "gate", result.verdict, result.headline))
    for kind, name, verdict, text in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=f"pagedbench.gate.{kind}", name=clean(name))
        if verdict == "FAIL":
            failures += 1
            ElementTree.SubElement(case, "failure", message=clean(text)).text = clean(text)
        elif verdict != "PASS":
            skipped += 1
            ElementTree.SubElement(case, "skipped", message=clean(f"{verdict}: {text}"))
    suite.attrib |= {"tests": str(len(cases)), "failures": str(failures), "skipped": str(skipped), "errors": "0"}
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def clean(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
