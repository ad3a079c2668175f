"""The first screen's badge of correctness: conformance results beside the runs, else whether the engines' outputs agree.

Speed without right answers is worth nothing, so the page says what is known of them even when that is nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from harness.results.conformance import SuiteResult, exit_code_of
from reports.dataset import Dataset
from reports.words import percent


class Correctness(NamedTuple):
    """``css`` is the badge's class: valid, invalid, suspect or unjudged."""

    badge: str
    css: str
    text: str


def correctness(data: Dataset) -> Correctness:
    """What is known about the answers of the engines compared."""
    suites = [suite for run in data.runs for suite in suites_of(run.run.path)]
    names = {engine.info.name for engine in data.engines}
    suites = [suite for suite in suites if suite.engine.name in names]
    return _of_suites(suites, len(names)) if suites else _of_outputs(data)


def suites_of(path: Path) -> list[SuiteResult]:
    """The conformance results that lie in a run directory (``pagedbench conform --out RUN``); unreadable ones are left."""
    found = []
    for file in sorted(path.glob("conformance-*.json")):
        try:
            found.append(SuiteResult.model_validate(json.loads(file.read_bytes())))
        except (OSError, ValueError, ValidationError):
            continue
    return found


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
