"""The kill matrix: bounds against known values, what counts as killed, and what happens when an engine is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from harness.conformance import prove
from harness.conformance.cases import all_cases
from harness.conformance.context import Options
from harness.conformance.prove import FaultEntry, KillMatrix, Proof, Server, lower_bound, upper_bound
from harness.conformance.prove_report import markdown
from harness.engines.errors import EngineError
from harness.results.conformance import CaseResult, SuiteResult, Verdict
from harness.results.schema import EngineInfo


@pytest.mark.parametrize(("trials", "bound"), [(20, 0.861), (40, 0.928), (60, 0.951)])
def test_all_killed_gives_the_published_bounds(trials: int, bound: float) -> None:
    assert lower_bound(trials, trials) == pytest.approx(bound, abs=5e-4)
    assert upper_bound(0, trials) == pytest.approx(1 - bound, abs=5e-4)


def test_bounds_at_the_edges() -> None:
    assert lower_bound(0, 5) == 0
    assert upper_bound(5, 5) == 1
    assert lower_bound(0, 0) is None
    assert upper_bound(0, 0) is None
    assert lower_bound(8, 10) < 0.8 < upper_bound(8, 10)  # type: ignore[operator]


def entry(name: str, kind: str = "fault") -> FaultEntry:
    return FaultEntry(name, f"title of {name}", "source", kind, [])


def case_result(name: str, verdict: Verdict) -> CaseResult:
    case = all_cases()[name]
    return CaseResult(
        id=name,
        family=case.family,
        level=case.level,
        title=case.title,
        source=case.source,
        oracle=case.oracle,
        kills=list(case.kills),
        verdict=verdict,
        reason="so it was",
    )


Script = dict[tuple[str, str], Verdict]


def run(monkeypatch: pytest.MonkeyPatch, entries: list[FaultEntry], script: Script, **settings: Any) -> KillMatrix:
    """A proof on servers that answer by script: (fault, case) -> verdict, PASS where it says nothing."""
    lost = settings.pop("lost", ())

    async def fake_suite(url: str, ids: list[str], options: Options) -> SuiteResult:
        status = "lost" if url in lost else "complete"
        results = [case_result(one, script.get((url, one), "PASS")) for one in ids]
        return SuiteResult(
            tool_version="0",
            started="",
            seconds=0,
            status=status,
            status_reason="gone" if status == "lost" else "",
            engine=EngineInfo(name="e", kind="k", url=url, model="m"),
            results=results,
        )

    @asynccontextmanager
    async def start(one: FaultEntry | None) -> AsyncIterator[Server]:
        name = one.id if one else "clean"
        if name == "F42":
            raise EngineError("no such option")
        yield Server(name, None, None, lambda: 3)

    monkeypatch.setattr(prove, "run_suite", fake_suite)
    proof = Proof(start, Options, cases=["API-04", "STR-01", "API-03"], **settings)
    return asyncio.run(proof.run(entries, engine="e", model="m"))


def test_a_case_that_fails_kills_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = all_cases()["API-04"].kills
    assert "F44" in claimed
    faults = [entry("F44"), entry("F40"), entry("F34"), entry("F42"), entry("F99")]
    script: Script = {("F44", "API-04"): "FAIL", ("F40", "STR-01"): "INCONCLUSIVE"}
    matrix = run(monkeypatch, [*faults, entry("N1", "benign")], script)
    verdicts = {row.id: row.verdict for row in matrix.faults}
    assert verdicts["F44"] == "killed"
    assert verdicts["F40"] == "inconclusive"
    assert verdicts["F34"] == "missed"
    assert verdicts["F99"] == "no case"
    assert (matrix.kill_rate.hits, matrix.kill_rate.trials) == (1, 4)
    assert matrix.false_alarms.hits == 0
    assert matrix.faults[0].fired == 3
    assert "F44" in markdown(matrix)


def test_a_case_that_fails_on_the_clean_engine_kills_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = run(monkeypatch, [entry("F44")], {("clean", "API-04"): "FAIL", ("F44", "API-04"): "FAIL"})
    assert "API-04" in matrix.excluded
    assert not matrix.faults[0].killers


def test_an_alarm_on_a_variant_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = run(monkeypatch, [entry("N2", "benign")], {("N2", "STR-01"): "FAIL"})
    assert (matrix.false_alarms.hits, matrix.false_alarms.trials) == (1, 3)


def test_an_engine_that_is_lost_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = run(monkeypatch, [entry("F44")], {}, lost=("F44",))
    assert matrix.faults[0].verdict == "killed"
    assert matrix.faults[0].cells[-1].reason == "gone"


def test_all_killers_runs_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = run(monkeypatch, [entry("F44")], {("F44", "STR-01"): "FAIL"}, all_killers=True)
    assert matrix.faults[0].killers == ["STR-01"]
    assert not matrix.faults[0].cells[1].claimed
