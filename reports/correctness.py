"""The first screen's badge of correctness, and a word beside each engine's speed.

What weighs most comes first: answers of the loaded runs that were judged (``run --verify``) and conformance results that
lie beside the runs, else whether the engines' outputs agree.

Speed without right answers is worth nothing, so the page says what is known of them even when that is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from harness.results.conformance import CaseResult, SuiteResult, answers_case, exit_code_of, suites_in
from reports.dataset import Cell, Dataset
from reports.words import listing, percent, plural

Judged = dict[tuple[Path, str], CaseResult]
ORDER = ("invalid", "suspect", "unjudged", "valid")  # of badges, the worst first


class Correctness(NamedTuple):
    """``css`` is the badge's class: valid, invalid, suspect or unjudged."""

    badge: str
    css: str
    text: str


def correctness(data: Dataset) -> Correctness:
    """What is known about the answers of the engines compared."""
    verified, suites = _suites(data, "verify"), _suites(data, "conformance")
    number = len({engine.info.name for engine in data.engines})
    found = [_of_answers(verified, number)] if verified else []
    found += [_of_suites(suites, number)] if suites else []
    return min(found, key=lambda one: ORDER.index(one.css), default=None) or _of_outputs(data)


def judged_answers(data: Dataset) -> Judged:
    """What was found of every cell whose answers were judged, by run directory and case."""
    return {
        (run.run.path, result.id): result
        for run in data.runs
        for suite in suites_in(run.run.path, "verify")
        for result in suite.results
    }


def answers_of(cells: Sequence[Cell], judged: Judged) -> Correctness | None:
    """What the judged answers of these cells say, for the table of engines; None where none were judged."""
    keys = [(cell.tables.run.path, answers_case(cell.info.cell_id)) for cell in cells]
    results = [judged[key] for key in keys if key in judged]
    if not results:
        return None
    wrong = next((result for result in results if result.verdict == "FAIL"), None)
    if wrong is not None:
        return Correctness("WRONG", "invalid", wrong.reason)
    open_one = next((result for result in results if result.verdict != "PASS"), None)
    if open_one is not None or len(results) < len(cells):
        return Correctness("NOT PROVEN", "suspect", open_one.reason if open_one else "not every repeat was judged")
    return Correctness("verified", "valid", f"{_answers(results)} answers")


def _suites(data: Dataset, kind: Literal["conformance", "verify"]) -> list[SuiteResult]:
    names = {engine.info.name for engine in data.engines}
    found = [suite for run in data.runs for suite in suites_in(run.run.path, kind)]
    return [suite for suite in found if suite.engine.name in names]


def _answers(results: Iterable[CaseResult]) -> int:
    return sum(int(result.evidence.get("answers", 0)) for result in results)


def _of_answers(suites: list[SuiteResult], engines: int) -> Correctness:
    results = [(suite.engine.name, result) for suite in suites for result in suite.results]
    wrong = [(name, result) for name, result in results if result.verdict == "FAIL"]
    if wrong:
        names = listing(sorted({name for name, _ in wrong}))
        text = f"{names}: {plural(len(wrong), 'cell')} with answers under load that are not those given alone"
        return Correctness("ANSWERS WRONG", "invalid", text)
    text = f"{_answers(result for _, result in results)} answers of the loaded runs judged"
    unseen = engines - len({suite.engine.name for suite in suites})
    open_ones = sum(result.verdict != "PASS" for _, result in results)
    if open_ones or unseen > 0 or not results:
        text += f"; {plural(open_ones, 'cell')} not proven" if open_ones else ""
        text += f"; {unseen} of {engines} engines not checked" if unseen > 0 else ""
        return Correctness("ANSWERS NOT PROVEN", "suspect", text)
    return Correctness("ANSWERS VERIFIED", "valid", text)


def _of_suites(suites: list[SuiteResult], engines: int) -> Correctness:
    counts = {"PASS": 0, "FAIL": 0, "INCONCLUSIVE": 0}
    for suite in suites:
        for verdict, n in suite.counts().items():
            if verdict in counts:
                counts[verdict] += n
    text = f"{counts['PASS']} cases passed, {counts['FAIL']} failed, {counts['INCONCLUSIVE']} inconclusive"
    unseen = engines - len({suite.engine.name for suite in suites})
    if unseen > 0:
        text += f"; {unseen} of {engines} engines not checked"
    worst = _worst(exit_code_of(suite.results, suite.status) for suite in suites)
    if worst == 1:
        return Correctness("CONFORMANCE FAILED", "invalid", text)
    if worst or unseen > 0:
        return Correctness("CONFORMANCE INCONCLUSIVE", "suspect", text)
    return Correctness("CONFORMS", "valid", text)


def _worst(codes: Iterable[int]) -> int:
    """A failure beats everything else that is not a pass."""
    codes = list(codes)
    return 1 if 1 in codes else max(codes)


def _of_outputs(data: Dataset) -> Correctness:
    shares = [
        share
        for cell in data.cells
        if cell.summary is not None and cell.is_valid
        for share in cell.summary.tokens_identical_to.values()
    ]
    if not shares:
        return Correctness("ANSWERS NOT CHECKED", "unjudged", "no conformance result, no outputs compared")
    if min(shares) >= 1:
        return Correctness("OUTPUTS AGREE", "valid", "same text from every engine; no conformance result")
    return Correctness("OUTPUTS DIFFER", "suspect", f"{percent(min(shares))} agree at worst; no conformance result")
