"""The kill matrix: the suite against an engine that is broken on purpose, one fault at a time.

::

    for every fault      start a server with it -> run the cases that claim to kill it (or all) -> stop
    for every variant    start a server with it -> run all cases: nothing may fail

A fault is *killed* by a case that FAILs with it and not without; it is *missed* if every case passed, *inconclusive* if none
failed and some could not tell.  A clean server runs beside: a case that fails there, too, kills nothing and is left out.

The kill rate is a share of faults, so its bound is the exact (Clopper-Pearson) one for that many trials; the same for
the share of case executions that complain about a benign variant.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from harness.conformance.cases import all_cases
from harness.conformance.context import Options
from harness.conformance.runner import run_suite
from harness.engines.errors import EngineError
from harness.results.conformance import SuiteResult

MATRIX_SCHEMA_VERSION = 1
CONFIDENCE = 0.95
CASES_A_BATCH = 2  # claimed cases run at once against one server; the first kill ends the fault unless all are wanted

FaultVerdict = Literal["killed", "missed", "inconclusive", "no case", "not started"]


class FaultEntry(NamedTuple):
    """What the matrix needs of a catalogue entry."""

    id: str
    title: str
    source: str
    kind: str
    needs: list[str]


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cell(Document):
    """One case against one fault."""

    case: str
    level: str
    verdict: str
    reason: str
    seconds: float
    hooks: bool = False  # the case needs the engine's debug endpoints
    claimed: bool = False  # the case says that it kills this fault


class Row(Document):
    """One fault."""

    id: str
    title: str
    source: str
    kind: str
    verdict: FaultVerdict
    reason: str = ""
    cells: list[Cell] = Field(default_factory=list)
    fired: int | None = None  # strikes that the server counted, where it tells
    status: str = "complete"
    seconds: float = 0.0

    @property
    def killers(self) -> list[str]:
        return [cell.case for cell in self.cells if cell.verdict == "FAIL"]

    @property
    def killed_without_hooks(self) -> bool:
        return any(cell.verdict == "FAIL" and not cell.hooks for cell in self.cells)


class Bound(Document):
    """``hits`` of ``trials``, and the one-sided bound that holds with ``confidence``."""

    hits: int
    trials: int
    bound: float | None
    confidence: float = CONFIDENCE


class KillMatrix(Document):
    """A whole proof."""

    schema_version: int = MATRIX_SCHEMA_VERSION
    tool_version: str
    started: str  # ISO 8601, UTC
    seconds: float
    engine: str
    model: str
    options: dict[str, Any] = Field(default_factory=dict)
    clean: Row
    excluded: dict[str, str] = Field(default_factory=dict)  # cases that did not pass on the clean engine, and why
    faults: list[Row]
    benign: list[Row]
    kill_rate: Bound
    kill_rate_without_hooks: Bound
    false_alarms: Bound


def lower_bound(hits: int, trials: int, confidence: float = CONFIDENCE) -> float | None:
    """Smallest rate that is compatible with at least so many ``hits``: one-sided Clopper-Pearson."""
    from scipy.stats import beta

    if not trials:
        return None
    return 0.0 if not hits else float(beta.ppf(1 - confidence, hits, trials - hits + 1))


def upper_bound(hits: int, trials: int, confidence: float = CONFIDENCE) -> float | None:
    """Largest rate that is compatible with at most so many ``hits``: one-sided Clopper-Pearson."""
    from scipy.stats import beta

    if not trials:
        return None
    return 1.0 if hits == trials else float(beta.ppf(confidence, hits + 1, trials - hits))


class Server(NamedTuple):
    """A running engine with one fault, and where it counts its strikes."""

    url: str
    restart: Any
    pids: Any
    fired: Callable[[], int | None]


Start = Callable[[FaultEntry | None], AbstractAsyncContextManager[Server]]
Tell = Callable[[str], None]


class Proof:
    """Runs the matrix.  ``start(fault)`` gives a running server with it; ``None`` is the clean one."""

    def __init__(
        self,
        start: Start,
        options: Callable[[], Options],
        *,
        cases: Sequence[str] | None = None,
        all_killers: bool = False,
        tell: Tell = lambda line: None,
    ) -> None:
        """``cases``: the ids that may be used, all by default.

        ``all_killers``: run every case against every fault instead of the claimed ones until one kills.
        """
        self._start = start
        self._options = options
        self._cases = list(all_cases() if cases is None else cases)
        self._all = all_killers
        self._tell = tell
        self._excluded: dict[str, str] = {}
        self._clean = Row(**_named(None), verdict="missed")
        self._faults: list[Row] = []
        self._benign: list[Row] = []

    async def run(self, entries: Sequence[FaultEntry], *, engine: str, model: str) -> KillMatrix:
        """All entries in turn; ``document`` tells at any time what was found so far."""
        self._engine, self._model = engine, model
        self._started = datetime.datetime.now(datetime.UTC)
        self._began = asyncio.get_running_loop().time()
        async with self._start(None) as clean:
            self._whole = clean
            for entry in entries:
                if entry.kind == "fault":
                    self._faults.append(await self._fault(entry))
                else:
                    self._benign.append(await self._one(entry, self._usable(self._cases), stop_at_kill=False))
                self._tell(_line((self._faults if entry.kind == "fault" else self._benign)[-1]))
        return self.document()

    async def _check_on_clean(self, row: Row) -> None:
        """A failure counts only if the case passes on the engine as it is, which each case is asked once."""
        known = {cell.case for cell in self._clean.cells}
        asked = [case for case in row.killers if case not in known]
        if asked:
            result = await run_suite(self._whole.url, asked, self._options())
            fresh = _cells(result, None)
            self._clean.cells += fresh
            self._excluded |= {cell.case: cell.reason for cell in fresh if cell.verdict == "FAIL"}
        for number, cell in enumerate(row.cells):
            if cell.verdict == "FAIL" and cell.case in self._excluded:
                told = {"verdict": "INCONCLUSIVE", "reason": f"fails without the fault, too: {cell.reason}"}
                row.cells[number] = cell.model_copy(update=told)

    def document(self) -> KillMatrix:
        judged = [row for row in self._faults if row.verdict != "not started"]
        alarms = [cell for row in self._benign for cell in row.cells]
        killed = sum(row.verdict == "killed" for row in judged)
        without = sum(row.killed_without_hooks for row in judged)
        wrong = sum(cell.verdict == "FAIL" for cell in alarms)
        return KillMatrix(
            tool_version=version("pagedbench"),
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(asyncio.get_running_loop().time() - self._began, 1),
            engine=self._engine,
            model=self._model,
            options={"all_killers": self._all, "effort": self._options().effort, "seed": self._options().seed},
            clean=self._clean,
            excluded=self._excluded,
            faults=self._faults,
            benign=self._benign,
            kill_rate=Bound(hits=killed, trials=len(judged), bound=lower_bound(killed, len(judged))),
            kill_rate_without_hooks=Bound(hits=without, trials=len(judged), bound=lower_bound(without, len(judged))),
            false_alarms=Bound(hits=wrong, trials=len(alarms), bound=upper_bound(wrong, len(alarms))),
        )

    def _usable(self, cases: Iterable[str]) -> list[str]:
        return [case for case in cases if case not in self._excluded]

    async def _fault(self, entry: FaultEntry) -> Row:
        known = all_cases()
        claimed = [case for case in self._cases if entry.id in known[case].kills]
        claimed.sort(key=lambda case: (known[case].needs_hooks, not known[case].structural))
        chosen = self._usable(self._cases if self._all else claimed)
        if not chosen:
            return Row(**_named(entry), verdict="no case", reason="no usable case claims to kill it")
        return await self._one(entry, chosen, stop_at_kill=not self._all)

    async def _one(self, entry: FaultEntry, cases: list[str], *, stop_at_kill: bool) -> Row:
        loop = asyncio.get_running_loop()
        began = loop.time()
        row = Row(**_named(entry), verdict="missed")
        try:
            async with self._start(entry) as server:
                size = CASES_A_BATCH if stop_at_kill else len(cases)
                for first in range(0, len(cases), size):
                    options = self._options()
                    options.restart, options.pids = server.restart, server.pids
                    result = await run_suite(server.url, cases[first : first + size], options)
                    row.cells += _cells(result, entry)
                    row.status = result.status
                    if result.status == "lost" and result.results:
                        # An engine that stops answering under a case has failed that case.
                        _fail_last(row, result.status_reason)
                    await self._check_on_clean(row)
                    if result.status != "complete" or (stop_at_kill and row.killers):
                        break
                with contextlib.suppress(OSError):
                    row.fired = server.fired()
        except EngineError as error:
            row.verdict, row.reason = "not started", str(error)
        else:
            row.verdict = _verdict(row)
        row.seconds = round(loop.time() - began, 1)
        return row


def _line(row: Row) -> str:
    found = " ".join(row.killers[:8]) or row.reason
    return f"{row.id:<5}{row.verdict:<14}{found} ({row.seconds:.0f} s)"


def _named(entry: FaultEntry | None) -> dict[str, Any]:
    if entry is None:
        return {"id": "clean", "title": "the engine as it is", "source": "", "kind": "clean"}
    return {"id": entry.id, "title": entry.title, "source": entry.source, "kind": entry.kind}


def _cells(result: SuiteResult, entry: FaultEntry | None) -> list[Cell]:
    cases = all_cases()
    return [
        Cell(
            case=one.id,
            level=one.level,
            verdict=one.verdict,
            reason=one.reason,
            seconds=one.seconds,
            hooks=cases[one.id].needs_hooks,
            claimed=entry is not None and entry.id in one.kills,
        )
        for one in result.results
    ]


def _fail_last(row: Row, reason: str) -> None:
    if row.cells[-1].verdict != "FAIL":
        row.cells[-1] = row.cells[-1].model_copy(update={"verdict": "FAIL", "reason": reason})


def _verdict(row: Row) -> FaultVerdict:
    if row.killers:
        return "killed"
    unknown = any(cell.verdict in ("INCONCLUSIVE", "UNSUPPORTED", "ERROR") for cell in row.cells)
    return "inconclusive" if unknown or not row.cells else "missed"


def idle_musts(matrix: KillMatrix) -> list[str]:
    """MUST cases that ran against some fault and killed none."""
    killers = {killer for row in matrix.faults for killer in row.killers}
    ran = {cell.case for row in matrix.faults for cell in row.cells if cell.level == "MUST"}
    return sorted(ran - killers)
