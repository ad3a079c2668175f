"""``pagedbench run --verify``: answers of the loaded run, judged beside their speed, one document an engine."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from harness.cli.conform import reference
from harness.conformance.api import Api
from harness.conformance.limits import Limits, limits_of_engine
from harness.conformance.loaded import LEAST_DECIDED, TIMEOUT_S, Finding, Loaded, LoadedJudge
from harness.conformance.questions import served_model
from harness.engines.errors import EngineError
from harness.engines.probe import Probe
from harness.load.plan import VerifyAsked
from harness.results.conformance import CaseResult, SuiteResult, Verdict, answers_case, exit_code_of, verify_file
from harness.results.schema import CellInfo
from harness.results.writer import RunWriteError, write_document

REFERENCE_ANSWERS_S = 15.0  # to be asked what it serves
TITLE = "answers given under this load are those given alone"
SOURCE = "PagedAttention: the same text whatever shares the memory"


class RunVerifier:
    """Judges the kept answers of each engine while it is still up, and writes ``verify-ENGINE.json`` into the run."""

    def __init__(
        self, asked: VerifyAsked, out: Path, note: Callable[[str], None], *, seed: int, api_key: str | None
    ) -> None:
        self._asked = asked
        self._out = out
        self._note = note
        self._seed = seed
        self._api_key = api_key

    async def judge(self, found: Probe, cells: Sequence[CellInfo], rows: Sequence[Mapping[str, Any]]) -> None:
        """Raises EngineError when the reference does not start, RunWriteError."""
        info, started, clock = found.info, datetime.datetime.now(datetime.UTC), time.monotonic()
        self._note(f"{info.name}: judging answers of the loaded run")
        limits = limits_of_engine(info)
        results: list[CaseResult] = []
        async with contextlib.AsyncExitStack() as stack:
            api = await stack.enter_async_context(Api(info.url, info.model, api_key=self._api_key, timeout_s=TIMEOUT_S))
            judge = LoadedJudge(api, limits, await stack.enter_async_context(self._reference()))
            for cell in cells:
                answers = self._drawn(cell, rows)
                before = time.monotonic()
                finding = await judge.judge(answers)
                results.append(_result(cell, finding, limits, time.monotonic() - before))
        result = SuiteResult(
            tool_version=version("pagedbench"),
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 2),
            engine=info,
            features={"limits": limits.name},
            options={"answers": self._asked.answers, "reference": self._has_reference, "seed": self._seed},
            results=results,
            exit_code=exit_code_of(results),
        )
        file = self._out / verify_file(info.name)
        try:
            write_document(file, result)
        except OSError as error:
            raise RunWriteError(f"cannot write {file}: {error.strerror or error}") from error
        self._say(info.name, results)

    def _drawn(self, cell: CellInfo, rows: Sequence[Mapping[str, Any]]) -> list[Loaded]:
        kept = sorted(
            (row for row in rows if row["cell_id"] == cell.cell_id), key=lambda row: int(row["request_index"])
        )
        number = min(self._asked.answers, len(kept))
        drawn = Random(f"{self._seed} {cell.cell_id} judged").sample(kept, number)
        return [Loaded.of(row) for row in drawn]

    @property
    def _has_reference(self) -> bool:
        return bool(self._asked.reference_model or self._asked.reference_url)

    @contextlib.asynccontextmanager
    async def _reference(self) -> AsyncIterator[Api | None]:
        """The naive engine, for the time of the judging only: it would take the machine from the engine under load."""
        if not self._has_reference:
            yield None
            return
        async with contextlib.AsyncExitStack() as stack:
            url = self._asked.reference_url
            if self._asked.reference_model is not None:
                url = await stack.enter_async_context(reference(self._asked.reference_model, self._out / "logs"))
            assert url is not None
            url = url.rstrip("/").removesuffix("/v1")
            try:
                model = await served_model(url, REFERENCE_ANSWERS_S)
            except EngineError as error:
                raise EngineError(f"the reference of --verify: {error}") from error
            yield await stack.enter_async_context(Api(url, model, timeout_s=TIMEOUT_S))

    def _say(self, name: str, results: Sequence[CaseResult]) -> None:
        wrong = [result for result in results if result.verdict == "FAIL"]
        if wrong:
            self._note(f"{name}: ANSWERS WRONG under load, {wrong[0].title}: {wrong[0].reason}")
            return
        open_ones = [result for result in results if result.verdict != "PASS"]
        if open_ones:
            self._note(f"{name}: answers not proven, {open_ones[0].title}: {open_ones[0].reason}")
            return
        answers = sum(int(result.evidence["answers"]) for result in results)
        self._note(f"{name}: {answers} answers of the loaded run verified")


def _result(cell: CellInfo, finding: Finding, limits: Limits, seconds: float) -> CaseResult:
    verdict, reason = _verdict(finding, limits)
    return CaseResult(
        id=answers_case(cell.cell_id),
        family="RUN",
        level="MUST",
        title=f"{cell.cell_id}: {TITLE}",
        source=SOURCE,
        oracle="baseline",
        rungs=finding.rungs,
        evidence_rule=f"at least {LEAST_DECIDED} positions that precision alone cannot have changed",
        verdict=verdict,
        reason=reason,
        evidence=finding.evidence(),
        seconds=round(seconds, 2),
    )


def _verdict(finding: Finding, limits: Limits) -> tuple[Verdict, str]:
    if finding.wrong:
        return "FAIL", f"{len(finding.wrong)} of {finding.answers} answers are wrong; {finding.wrong[0]}"
    if finding.unanswered is not None:
        return "INCONCLUSIVE", f"an answer could not be had again: {finding.unanswered}"
    if not finding.answers:
        return "INCONCLUSIVE", "no greedy answer was kept; requests that sample have no one right answer"
    if finding.decided < LEAST_DECIDED:
        return (
            "INCONCLUSIVE",
            f"only {finding.decided} positions of {finding.answers} answers could be decided at {limits.name} precision",
        )
    if finding.answers > 1 and finding.are_alike:
        return "INCONCLUSIVE", "all answers begin with the same text, so that one taken for another could not show"
    if finding.unknown:
        return (
            "INCONCLUSIVE",
            f"{finding.unknown} of {finding.answers} answers differ, and the engine returns no log-probabilities that "
            "tell whether the choice was close",
        )
    return "PASS", f"{finding.identical} of {finding.answers} identical, the others differ at a near tie only"
