"""The catalogue is whole and consistent: ids, levels, needs, faults."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.conformance.cases import all_cases
from harness.conformance.context import Options
from harness.conformance.features import MEANINGS
from harness.conformance.runner import UnknownCaseError, select
from harness.results.schema import METRIC_NAMES

CASES = all_cases()


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.id)
def test_a_case_is_declared_whole(case) -> None:
    assert re.fullmatch(r"[A-Z]{3}-\d\d", case.id)
    assert case.level in ("MUST", "SHOULD", "INFO")
    assert case.title
    assert case.source
    assert case.oracle
    for fault in case.kills:
        assert re.fullmatch(r"F\d\d|[PARKBE]\d+", fault), fault
    for need in case.needs:
        for part in need.split("|"):
            if part.startswith("metric:"):
                assert part.removeprefix("metric:") in METRIC_NAMES, part
            else:
                assert part in MEANINGS, part


def test_ids_and_families_choose_cases() -> None:
    assert [case.id for case in select(["api-04"], Options())] == ["API-04"]
    assert {case.family for case in select(["STR-*"], Options())} == {"STR"}
    assert {case.family for case in select(["str"], Options())} == {"STR"}
    assert all(case.level == "MUST" for case in select(None, Options(levels=("MUST",))))
    with pytest.raises(UnknownCaseError, match="API-99"):
        select(["API-99"], Options())


def test_every_need_of_a_case_can_be_found_out() -> None:
    named = {part for case in CASES.values() for need in case.needs for part in need.split("|")}
    source = "".join(Path(f"harness/conformance/{name}.py").read_text() for name in ("features", "questions", "runner"))
    for need in named:
        if not need.startswith("metric:"):
            assert source.count(f'"{need}"') >= 2, f"nothing ever grants {need}"


def test_every_must_case_claims_a_fault() -> None:
    assert [case.id for case in CASES.values() if case.level == "MUST" and not case.kills] == []


def test_every_evidence_rule_is_tried_in_a_world_without_it_or_is_named() -> None:
    """``blindness.py`` finds most rules' worlds by their words; a new rule must not slip past it unseen."""
    from tests.harness.conformance.blindness import WORLDS, world_of

    ruled = [case for case in all_cases().values() if case.evidence and not case.soak]
    tried = [case for case in ruled if world_of(case) is not None]
    assert len(tried) > len(ruled) / 2
    assert {world_of(case) for case in tried} == set(WORLDS)


@pytest.mark.slow
def test_no_case_passes_without_its_evidence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.harness.conformance.blindness", "--out", str(tmp_path / "blindness.md")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "**0 passed all the same**" in (tmp_path / "blindness.md").read_text()
