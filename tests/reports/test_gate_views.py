"""The gate's page, Markdown and JUnit: self-contained, the same bytes each time, and safe for hostile names."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from harness.gate.judge import judge
from harness.results.gate import ArmInfo, GateRecord
from reports.gate_junit import gate_junit
from reports.gate_markdown import MAX_BYTES, gate_markdown
from reports.gate_page import gate_page
from tests.harness.gate.conftest import noisy_pairs, rule, spec

HOSTILE = "<script>alert(1)</script>|`\x00\x1b*_"


def record(slowdown: float = 0.1, rules: int = 1, label: str = "ITL p50", pairs: int = 12) -> GateRecord:
    names = [f"itl_p{50 + i}" for i in range(rules)]
    made = noisy_pairs(pairs, slowdown, names=names)
    found = spec(*(rule(name, label=f"{label} {i}") for i, name in enumerate(names)), looks=(max(1, pairs),))
    return GateRecord(
        tool_version="0",
        created_utc="2026-11-26T00:00:00+00:00",
        mode="driven",
        seed=1,
        baseline=ArmInfo(where="a", facts={"engine": "pagedbench", "settings": {"block_size": 16}}),
        candidate=ArmInfo(where=label, facts={"engine": label, "settings": {"block_size": 32}}),
        spec=found,
        pairs=made,
        result=judge(found, made, warnings=[label]),
    )


def test_the_page_is_whole_in_itself_and_always_the_same() -> None:
    page = gate_page(record())
    assert page == gate_page(GateRecord.model_validate_json(record().model_dump_json()))
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert "<script" not in page
    assert len(page.encode()) < 300_000
    assert "FAIL after 12 pairs" in page
    assert "block_size" in page


@pytest.mark.parametrize(("slowdown", "pairs"), [(0.1, 12), (0.0, 12), (0.1, 1), (0.0, 0)])
def test_every_verdict_has_its_views(slowdown: float, pairs: int) -> None:
    one = record(slowdown, pairs=pairs)
    assert one.result is not None
    assert one.result.verdict in gate_page(one)
    assert gate_markdown(one).startswith(f"## pagedbench gate: {one.result.verdict}")
    suite = ElementTree.fromstring(gate_junit(one))[0]
    assert suite.get("failures") == ("2" if one.result.verdict == "FAIL" else "0")
    assert suite.get("tests") == str(len(suite))


def test_hostile_names_break_nothing() -> None:
    one = record(label=HOSTILE)
    assert "<script>" not in gate_page(one)
    markdown = gate_markdown(one)
    assert "<script>" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {10}
    ElementTree.fromstring(gate_junit(one))


def test_markdown_of_many_metrics_stays_within_its_limit() -> None:
    text = gate_markdown(record(rules=300, label="a metric with a rather long name " * 5))
    assert len(text.encode()) <= MAX_BYTES
    assert "more in the JSON" in text or "cut at 20 kB" in text


def test_a_record_without_a_judgement_says_so() -> None:
    bare = record().model_copy(update={"result": None})
    with pytest.raises(ValueError, match="--replay"):
        gate_page(bare)
