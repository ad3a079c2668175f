"""The suite as pytest items: ``pytest --pagedbench-engine URL [--pagedbench-cases API,PFX-04]``.

An engine's own CI can adopt the cases one by one.  FAIL fails the item; UNSUPPORTED and INCONCLUSIVE skip it with the
reason, since neither is a pass; NON-STRICT passes with a warning.  A failed SHOULD or INFO is an expected failure
(xfail) unless ``--pagedbench-strict`` is given.
"""

from __future__ import annotations

import asyncio
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.conformance.case import Case
from harness.conformance.context import Options
from harness.conformance.features import Features
from harness.conformance.questions import find_features
from harness.conformance.runner import UnknownCaseError, run_suite, select
from harness.engines.errors import EngineError
from harness.results.conformance import CaseResult


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pagedbench conformance")
    group.addoption("--pagedbench-engine", metavar="URL", help="run the conformance suite against this engine")
    group.addoption("--pagedbench-cases", metavar="IDS", default="", help="case ids or families, separated by commas")
    group.addoption("--pagedbench-model", metavar="ID", help="model id to ask for")
    group.addoption("--pagedbench-reference", metavar="URL", help="a naive fp32 engine with the same model")
    group.addoption("--pagedbench-strict", action="store_true", help="a failed SHOULD fails, too")


FEATURES = pytest.StashKey[Features]()


class NonStrictWarning(UserWarning):
    """A case found an allowed deviation."""


class CaseFailure(Exception):
    """A case failed; the message is its report."""


class CaseItem(pytest.Item):
    """One case against the engine of the command line."""

    def __init__(self, *, case: Case, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.case = case
        self.add_marker(case.level.lower())

    def runtest(self) -> None:
        result = self.ask()
        report = f"{result.reason}\nsource: {result.source}\nevidence: {result.evidence}"
        if result.verdict in ("UNSUPPORTED", "INCONCLUSIVE"):
            pytest.skip(f"{result.verdict}: {result.reason}")
        if result.verdict == "NON-STRICT":
            warnings.warn(NonStrictWarning(f"{result.id}: {result.reason}"), stacklevel=1)
        if result.verdict == "FAIL" and result.level != "MUST" and not self.config.getoption("pagedbench_strict"):
            pytest.xfail(f"{result.level}: {result.reason}")
        if result.verdict in ("FAIL", "ERROR"):
            raise CaseFailure(report)

    def ask(self) -> CaseResult:
        """The verdict.  An engine that is not there fails the item."""
        config = self.config
        options = Options(
            model=config.getoption("pagedbench_model"), reference_url=config.getoption("pagedbench_reference")
        )
        url = config.getoption("pagedbench_engine")
        try:
            if FEATURES not in config.stash:
                config.stash[FEATURES] = asyncio.run(probed(url, options))
            # Cases add to the features what only a run knows: each gets its own copy.
            options.known_features = copy.deepcopy(config.stash[FEATURES])
            suite = asyncio.run(run_suite(url, [self.case.id], options))
        except EngineError as error:
            raise CaseFailure(str(error)) from None
        return suite.results[0]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *arguments: Any, **more: Any) -> Any:
        if isinstance(excinfo.value, CaseFailure):
            return f"{self.case.id} ({self.case.level}) {self.case.title}\n{excinfo.value}"
        return super().repr_failure(excinfo, *arguments, **more)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"{self.case.id}: {self.case.title}"


async def probed(url: str, options: Options) -> Features:
    """Features of the engine, found out once for all items."""
    root = url.rstrip("/").removesuffix("/v1")
    return await find_features(root, name=None, model=options.model, api_key=None, timeout_s=30.0)


class CaseCollector(pytest.Collector):
    """All cases that were asked for."""

    def collect(self) -> Iterator[pytest.Item]:
        asked = [part for part in self.config.getoption("pagedbench_cases").split(",") if part] or None
        try:
            chosen = select(asked, Options())
        except UnknownCaseError as error:
            raise self.CollectError(str(error)) from None
        for case in chosen:
            yield CaseItem.from_parent(self, name=case.id, case=case)


def pytest_configure(config: pytest.Config) -> None:
    for level in ("must", "should", "info"):
        config.addinivalue_line("markers", f"{level}: conformance case of this level")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Add the cases to whatever else is collected."""
    result = yield
    if session.config.getoption("pagedbench_engine"):
        collector = CaseCollector.from_parent(session, name="conformance")
        items = [item for item in collector.collect() if isinstance(item, pytest.Item)]
        session.items.extend(items)
        session.testscollected = len(session.items)
    return result
