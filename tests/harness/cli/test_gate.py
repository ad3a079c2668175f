"""``pagedbench gate`` as a command: its modes, exit codes and files."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from harness.cli.gate_conform import part_of
from harness.cli.main import app, main
from harness.results.conformance import SuiteResult
from tests.harness.gate.conftest import write_sets
from tests.harness.gate.test_bench_files import bench_file, rounds

runner = CliRunner()


def gate(*arguments: object) -> tuple[int, str]:
    done = runner.invoke(app, ["gate", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        code = getattr(done.exception, "code", None)
        if code is None:
            raise done.exception
        return int(code), str(done.exception)
    return done.exit_code, done.output


def test_recorded_runs_leave_every_view_and_the_exit_code(tmp_path: Path) -> None:
    base, cand = write_sets(tmp_path, 10, slowdown=0.2)
    out, summary = tmp_path / "out", tmp_path / "summary.md"
    summary.write_text("before\n")
    code, said = gate("--baseline", base, "--candidate", cand, "--out", out, "--markdown", summary)
    assert code == 1
    assert said.startswith("FAIL after 10 pairs")
    assert {path.name for path in out.iterdir()} == {"gate.json", "gate.md", "gate.html", "junit.xml"}
    assert summary.read_text().startswith("before\n## pagedbench gate: FAIL")
    suite = ElementTree.parse(out / "junit.xml").getroot()[0]
    assert int(suite.get("failures", 0)) >= 2
    assert len((out / "gate.md").read_bytes()) < 20_000
    code, said = gate("--replay", out / "gate.json", "--json")
    assert code == 1
    assert said == (out / "gate.json").read_text()


def test_replay_refuses_a_record_that_comes_out_differently(tmp_path: Path) -> None:
    base, cand = write_sets(tmp_path, 8, slowdown=0.2)
    gate("--baseline", base, "--candidate", cand, "--out", tmp_path / "out")
    file = tmp_path / "out" / "gate.json"
    document = json.loads(file.read_text())
    document["result"]["verdict"] = "PASS"
    file.write_text(json.dumps(document))
    code, said = gate("--replay", file)
    assert code == 4
    assert "judged PASS" in said


def test_init_writes_a_file_that_the_gate_takes_and_never_overwrites(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    assert gate("--init", "--thresholds", file)[0] == 0
    code, said = gate("--explain", "--thresholds", file)
    assert code == 0
    assert "It FAILS as soon as one metric is significantly worse" in said
    assert "it cannot fail yet, only pass" in said
    assert gate("--init", "--thresholds", file)[0] == 3


def test_pytest_benchmark_files(tmp_path: Path) -> None:
    a = bench_file(tmp_path / "a.json", {"t::one": rounds(1, 0)})
    b = bench_file(tmp_path / "b.json", {"t::one": rounds(1.3, 1)})
    arguments = ("--pytest-benchmark", a, "--pytest-benchmark", b, "--out", tmp_path / "out", "--json")
    code, said = gate(*arguments)
    assert code == 1
    assert json.loads(said)["mode"] == "pytest-benchmark"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name both builds"),
        (("--baseline", "http://127.0.0.1:9", "--candidate", "."), "must both be"),
        (("--baseline", "x", "--candidate", "y"), "does not exist"),
        (("--replay", "none.json"), "cannot read"),
        (("--thresholds", "none.yaml", "--explain"), "--init"),
        (("--pairs", "a", "--explain"), "whole numbers"),
        (("--pairs", "9,8", "--explain"), "rising"),
        (("--pytest-benchmark", "a.json"), "twice"),
        (("--baseline", "recipe:referense", "--candidate", "recipe:reference", "--out", "never"), "reference"),
        (("--baseline", "recipe:reference", "--candidate", "cmd:x", "--out", "never"), "{port}"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_3(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = gate(*arguments)
    assert (code, words in said) == (3, True), said


def test_an_unknown_option_is_not_an_inconclusive_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pagedbench", "gate", "--bassline", "x"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 3


def test_the_conformance_part_names_the_must_cases_that_failed() -> None:
    case = {"family": "STR", "title": "t", "source": "s", "oracle": "o", "reason": "no [DONE]"}
    results = [
        {**case, "id": "STR-01", "level": "MUST", "verdict": "FAIL"},
        {**case, "id": "STR-02", "level": "SHOULD", "verdict": "FAIL"},
        {**case, "id": "STR-03", "level": "MUST", "verdict": "PASS"},
    ]
    engine = {"name": "candidate", "url": "http://x"}
    suite = SuiteResult.model_validate(
        {"tool_version": "0", "started": "2026", "seconds": 1.0, "engine": engine, "results": results}
    )
    part = part_of(suite, 1)
    assert part.verdict == "FAIL"
    assert part.detail == "2 FAIL, 1 PASS; failed: STR-01 (no [DONE])"


def test_drives_two_emulators_to_a_verdict(tmp_path: Path) -> None:
    limits = tmp_path / "limits.yaml"
    limits.write_text("void: {foreign_cpu: null, max_share: 100%}\nmetrics: {itl_p50: 20%}\nrates: {fail: 10%}\n")
    where = "recipe:emulator,ttft_ms=2,itl_ms=4"
    code, said = gate(
        "--baseline", where, "--candidate", f"{where},slowdown=3", "--thresholds", limits, "--pairs", "4",
        "--workload", "concurrency:levels=2,input=4,output=6", "--num-requests", "4", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 1, said
    record = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert record["mode"] == "driven"
    assert record["result"]["pairs_used"] == 4
    assert record["result"]["rules"][0]["change"] > 1.5
