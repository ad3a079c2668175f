"""The badge of correctness and the word beside each engine's speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.results.conformance import CaseResult, SuiteResult, verify_file
from reports.build import build_report
from reports.correctness import answers_of, correctness, judged_answers
from reports.dataset import load_dataset


def suite(engine: Any, verdicts: dict[str, str], answers: int = 4) -> SuiteResult:
    case = {"family": "RUN", "level": "MUST", "title": "t", "source": "s", "oracle": "baseline"}
    results = [
        CaseResult.model_validate(
            case | {"id": id_, "verdict": verdict, "reason": f"it is {verdict}", "evidence": {"answers": answers}}
        )
        for id_, verdict in verdicts.items()
    ]
    return SuiteResult(
        tool_version="0", started="2026-01-01T00:00:00Z", seconds=1.0, engine=engine, results=results,
        exit_code=int("FAIL" in verdicts.values()),
    )  # fmt: skip


@pytest.fixture
def two(draft: Callable[..., Any], engines: Any, tmp_path: Path) -> tuple[Any, Path]:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"], requests=4)
    return run.manifest, run.write(tmp_path / "run")


def write(path: Path, result: SuiteResult) -> None:
    (path / verify_file(result.engine.name)).write_text(result.model_dump_json())


def verdicts(manifest: Any, engine: Any, verdict: str) -> dict[str, str]:
    return {f"RUN.{cell.cell_id}": verdict for cell in manifest.cells if cell.engine == engine.name}


def test_every_engine_verified(two: tuple[Any, Path]) -> None:
    manifest, path = two
    for engine in manifest.engines:
        write(path, suite(engine, verdicts(manifest, engine, "PASS")))
    data = load_dataset([path])
    assert correctness(data)[:2] == ("ANSWERS VERIFIED", "valid")
    assert correctness(data).text == "8 answers of the loaded runs judged"
    page = build_report(path).read_text()
    assert page.count(">verified</span>") == 2
    assert "not checked" not in page


def test_one_engine_wrong_is_the_first_screens_badge_and_named(two: tuple[Any, Path]) -> None:
    manifest, path = two
    good, bad = manifest.engines
    write(path, suite(good, verdicts(manifest, good, "PASS")))
    write(path, suite(bad, verdicts(manifest, bad, "FAIL")))
    data = load_dataset([path])
    found = correctness(data)
    assert found[:2] == ("ANSWERS WRONG", "invalid")
    assert bad.name in found.text
    assert good.name not in found.text
    page = build_report(path).read_text()
    assert page.count(">WRONG</span>") == 1
    assert page.count(">verified</span>") == 1


def test_an_engine_that_was_not_judged_is_told(two: tuple[Any, Path]) -> None:
    manifest, path = two
    first, second = manifest.engines
    write(path, suite(first, verdicts(manifest, first, "PASS")))
    data = load_dataset([path])
    assert correctness(data)[:2] == ("ANSWERS NOT PROVEN", "suspect")
    assert "1 of 2 engines not checked" in correctness(data).text
    cells = {engine.name: [c for c in data.cells if c.engine.info.name == engine.name] for engine in manifest.engines}
    found = judged_answers(data)
    judged = answers_of(cells[first.name], found)
    assert judged is not None
    assert judged.badge == "verified"
    assert answers_of(cells[second.name], found) is None
    some = answers_of([*cells[first.name], *cells[second.name]], found)  # as where one of several repeats was judged
    assert some is not None
    assert some.badge == "NOT PROVEN"
    assert "not checked" in build_report(path).read_text()


def test_inconclusive_is_no_pass(two: tuple[Any, Path]) -> None:
    manifest, path = two
    for engine in manifest.engines:
        write(path, suite(engine, verdicts(manifest, engine, "INCONCLUSIVE")))
    assert correctness(load_dataset([path])).badge == "ANSWERS NOT PROVEN"
    assert ">NOT PROVEN</span>" in build_report(path).read_text()


def test_the_worse_of_both_findings_counts(two: tuple[Any, Path]) -> None:
    manifest, path = two
    for engine in manifest.engines:
        write(path, suite(engine, verdicts(manifest, engine, "PASS")))
        (path / f"conformance-{engine.name}.json").write_text(suite(engine, {"API-01": "FAIL"}).model_dump_json())
    assert correctness(load_dataset([path])).badge == "CONFORMANCE FAILED"


def test_without_judging_there_is_no_column(two: tuple[Any, Path]) -> None:
    _, path = two
    page = build_report(path).read_text()
    assert 'scope="col">answers</th>' not in page
