"""The kill matrix: bounds against known values, what counts as killed, what is done again, and what happens to lost engines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from harness.conformance import prove
from harness.conformance.cases import all_cases
from harness.conformance.context import Options
from harness.conformance.digests import digest_of
from harness.conformance.matrix import (
    KillMatrix,
    MatrixError,
    MatrixFile,
    Row,
    Settings,
    idle_musts,
    lower_bound,
    upper_bound,
)
from harness.conformance.prove import FaultEntry, Proof, Server, undisturbed
from harness.conformance.prove_report import markdown
from harness.engines.errors import EngineError
from harness.results.conformance import CaseResult, SuiteResult, Verdict
from harness.results.schema import EngineInfo

EMPTY = KillMatrix(tool_version=version("pagedbench"), engine="e", model="m")


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


def entry(name: str, kind: str = "fault", digest: str = "d", **settings: Any) -> FaultEntry:
    return FaultEntry(name, f"title of {name}", "source", kind, settings, digest)


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


class Rig:
    """Proofs on servers that answer by script: (fault, case) -> verdict, PASS where it says nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.script: Script = {}
        self.lost: set[str] = set()
        self.strikes = 3  # that the server counts
        self.asked: list[tuple[str, str]] = []  # what was run, in order
        self.started: list[tuple[str, Settings]] = []
        self.file = MatrixFile(folder / "kill-matrix.json", lambda id: ["F34", "F40", "F44"].index(id[:3]), EMPTY)
        monkeypatch.setattr(prove, "run_suite", self.run_suite)
        monkeypatch.setattr(prove, "find_features", self.find_features)

    async def find_features(self, url: str, **options: Any) -> None:
        return None

    async def run_suite(self, url: str, ids: list[str], options: Options) -> SuiteResult:
        self.asked += [(url, one) for one in ids]
        status = "lost" if url in self.lost else "complete"
        return SuiteResult(
            tool_version="0",
            started="",
            seconds=0,
            status=status,
            status_reason="gone" if status == "lost" else "",
            engine=EngineInfo(name="e", kind="k", url=url, model="m"),
            results=[case_result(one, self.script.get((url, one), "PASS")) for one in ids],
        )

    @asynccontextmanager
    async def start(self, one: FaultEntry | None, settings: Settings) -> AsyncIterator[Server]:
        name = one.id if one else "clean"
        self.started.append((name, settings))
        if name == "F42":
            raise EngineError("no such option")
        yield Server(lambda: name, None, None, None, lambda: self.strikes)

    def prove(self, *entries: FaultEntry, each_case: bool = False, **settings: Any) -> KillMatrix:
        self.asked.clear()
        cases = settings.pop("cases", ["API-04", "STR-01", "API-03"])

        async def main() -> KillMatrix:
            async with Proof(self.start, Options(), self.file, cases=cases, **settings) as proof:
                matrix = await proof.run(entries)
                return await proof.run_idle(entries) if each_case else matrix

        return asyncio.run(main())


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    return Rig(monkeypatch, tmp_path)


def verdicts(matrix: KillMatrix) -> dict[str, str]:
    return {row.id: row.verdict for row in matrix.faults}


def test_strikes_of_a_later_server_add_to_the_rows(rig: Rig) -> None:
    rig.script = {("F34", "API-04"): "FAIL"}
    assert rig.prove(entry("F34")).faults[0].fired == 3
    rig.strikes = 0
    matrix = rig.prove(entry("F34"), each_case=True)
    assert rig.asked == [("F34", "API-03")]
    assert (verdicts(matrix), matrix.faults[0].fired) == ({"F34": "killed"}, 3)


def test_a_way_is_a_row_of_its_own_that_the_faults_cases_claim(rig: Rig) -> None:
    rig.script = {("F34:how=early", "API-04"): "FAIL"}
    matrix = rig.prove(entry("F34"), entry("F34:how=early"), cases=["STR-01", "API-04"])
    assert verdicts(matrix) == {"F34": "missed", "F34:how=early": "killed"}
    assert [one.case for one in matrix.faults[1].cells if one.claimed] == ["API-04"]
    assert ("F34:how=early", "STR-01") not in rig.asked, "what claims the fault comes first"


def test_a_case_that_fails_kills_and_others_do_not(rig: Rig) -> None:
    rig.file = MatrixFile(rig.file.path, lambda id: 0, EMPTY)
    rig.script = {("F44", "API-04"): "FAIL", ("F40", "STR-01"): "INCONCLUSIVE"}
    matrix = rig.prove(entry("F44"), entry("F40"), entry("F34"), entry("F42"), entry("F99"), entry("N1", "benign"))
    assert verdicts(matrix) == {
        "F44": "killed",
        "F40": "inconclusive",
        "F34": "missed",
        "F42": "not started",
        "F99": "missed",
    }
    assert (matrix.kill_rate.hits, matrix.kill_rate.trials) == (1, 4)
    assert matrix.false_alarms.hits == 0
    assert matrix.faults[0].fired == 3
    assert "F44" in markdown(matrix, {})


@pytest.mark.parametrize("verdict", ["PASS", "FAIL"])
def test_a_fault_that_never_struck_is_neither_killed_nor_missed(rig: Rig, verdict: Verdict) -> None:
    rig.strikes = 0
    rig.script["F40", "API-04"] = verdict
    (row,) = rig.prove(entry("F40"), cases=["API-04"]).faults
    assert (row.verdict, row.reason) == ("inconclusive", "the fault never struck")


def test_claiming_cases_come_first_and_the_others_follow_until_one_kills(rig: Rig) -> None:
    rig.script = {("F44", "STR-01"): "FAIL"}
    matrix = rig.prove(entry("F44"))
    assert [case for url, case in rig.asked if url == "F44"] == ["API-04", "STR-01"]
    assert matrix.faults[0].killers == ["STR-01"]
    assert not matrix.faults[0].cells[1].claimed


def test_full_runs_every_case(rig: Rig) -> None:
    rig.script = {("F44", "API-04"): "FAIL", ("F44", "STR-01"): "FAIL"}
    assert set(rig.prove(entry("F44"), full=True).faults[0].killers) == {"API-04", "STR-01"}


def test_a_case_that_fails_on_the_clean_engine_kills_nothing(rig: Rig) -> None:
    rig.script = {("clean", "API-04"): "FAIL", ("F44", "API-04"): "FAIL"}
    matrix = rig.prove(entry("F44"))
    assert matrix.excluded() == {"API-04": "so it was"}
    assert not matrix.faults[0].killers


def test_an_alarm_on_a_variant_is_counted(rig: Rig) -> None:
    rig.file = MatrixFile(rig.file.path, lambda id: 0, EMPTY)
    rig.script = {("N2", "STR-01"): "FAIL"}
    matrix = rig.prove(entry("N2", "benign"))
    assert (matrix.false_alarms.hits, matrix.false_alarms.trials) == (1, 3)


def test_an_engine_that_is_lost_is_killed(rig: Rig) -> None:
    rig.lost = {"F44"}
    matrix = rig.prove(entry("F44"))
    assert matrix.faults[0].verdict == "killed"
    assert matrix.faults[0].cells[-1].reason == "gone"


def test_what_is_known_is_not_done_again(rig: Rig) -> None:
    rig.script = {("F44", "API-04"): "FAIL", ("F40", "STR-01"): "FAIL"}
    rig.prove(entry("F44"))
    rig.prove(entry("F44"), entry("F40"))
    assert {url for url, _ in rig.asked} == {"F40", "clean"}
    matrix = rig.prove(entry("F44"), entry("F40"))
    assert not rig.asked
    assert verdicts(matrix) == {"F40": "killed", "F44": "killed"}
    rig.prove(entry("F44"), redo=True)
    assert ("F44", "API-04") in rig.asked


def test_a_row_of_another_fault_version_or_settings_is_drawn_again(rig: Rig) -> None:
    rig.script = {("F44", "API-04"): "FAIL"}
    rig.prove(entry("F44"))
    rig.prove(entry("F44", digest="other"))
    assert ("F44", "API-04") in rig.asked
    rig.prove(entry("F44", digest="other", model="x"))
    assert ("F44", "API-04") in rig.asked
    assert ("clean", {"model": "x"}) in rig.started


def test_a_cell_of_another_case_version_is_stale(rig: Rig) -> None:
    rig.script = {("F44", "API-04"): "FAIL"}
    matrix = rig.prove(entry("F44"))
    row = matrix.faults[0]
    assert row.cells[0].digest == digest_of(all_cases()["API-04"])
    assert "older version" not in markdown(matrix, {"F44": "d"})
    row.cells[0].digest = "old"
    assert "older version of the fault or of a case: F44" in markdown(rig.file.put(row), {"F44": "d"})
    rig.prove(entry("F44"))
    assert ("F44", "API-04") in rig.asked


def test_a_variant_goes_on_where_it_was_left(rig: Rig) -> None:
    rig.file = MatrixFile(rig.file.path, lambda id: 0, EMPTY)
    rig.prove(entry("N2", "benign"), cases=["API-04"])
    rig.prove(entry("N2", "benign"), cases=["API-04", "STR-01"])
    assert rig.asked == [("N2", "STR-01")]


def test_each_must_case_is_tried_on_what_it_claims(rig: Rig) -> None:
    rig.script = {("F44", "API-04"): "FAIL", ("F34", "API-03"): "FAIL", ("F34", "API-04"): "FAIL"}
    entries = (entry("F34"), entry("F44"))
    before = rig.prove(*entries)
    assert idle_musts(before, ["API-04", "API-03"])
    after = rig.prove(*entries, each_case=True)
    assert idle_musts(after, ["API-04", "API-03"]) == []


def test_proofs_side_by_side_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "kill-matrix.json"
    files = [MatrixFile(path, lambda id: int(id[1:]), EMPTY) for _ in range(2)]
    for number in (3, 1, 2):
        row = Row(**{**prove._named(entry(f"F{number}")), "verdict": "killed"})
        files[number % 2].put(row)
    matrix = KillMatrix.model_validate(json.loads(path.read_text()))
    assert [row.id for row in matrix.faults] == ["F1", "F2", "F3"]
    assert matrix.kill_rate.hits == 3


@pytest.mark.parametrize("text", ["{}", "no json", json.dumps({**json.loads(EMPTY.model_dump_json()), "model": "x"})])
def test_a_foreign_file_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kill-matrix.json"
    path.write_text(text)
    with pytest.raises(MatrixError, match="another --out") as caught:
        MatrixFile(path, lambda id: 0, EMPTY).read()
    assert "\n" not in str(caught.value)


async def test_what_was_suspended_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "SUSPENDED_S", 1.0)  # longer than a busy machine pauses us
    monkeypatch.setattr(prove, "TICK_S", 0.01)
    calls = 0

    async def work() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.02)
        if calls == 1:
            time.sleep(1.2)  # as if the process had been stopped
        return calls

    assert await undisturbed(work) == 2
    assert await undisturbed(work) == 3
