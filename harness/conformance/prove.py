"""Draws the kill matrix: the suite against an engine that is broken on purpose, one fault at a time.

::

    for every fault      start a server with it -> the cases that claim to kill it, then the others, until one does -> stop
    for every variant    start a server with it -> all cases: nothing may fail
    for every idle MUST  start a server with a fault that it claims -> that case

A fault is *killed* by a case that FAILs with it and not without; it is *missed* if none failed, *inconclusive* if none failed
and some of those that claim it could not tell, or if the server counted no strike of it.  A failing case is asked once on a
clean server with the same settings: one that fails there, too, kills nothing.

What was found before with the same version of case and fault is not done again, so a proof that was stopped goes on.

The kill rate is a share of faults, so its bound is the exact (Clopper-Pearson) one for that many trials; the same for
the share of case executions that complain about a benign variant.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from harness.conformance.case import Case
from harness.conformance.cases import all_cases
from harness.conformance.context import Options
from harness.conformance.digests import digest_of
from harness.conformance.matrix import Cell, FaultVerdict, KillMatrix, MatrixFile, Row, Settings, idle_musts
from harness.conformance.questions import find_features
from harness.conformance.runner import run_suite
from harness.engines.errors import EngineError
from harness.results.conformance import SuiteResult

VARIANT_BATCH = 10  # cases between two writes of a variant's row
TRIES = 3
TICK_S = 0.1
NEVER_STRUCK = "the fault never struck"
SUSPENDED_S = 10.0  # a loop that was silent for so long had no processor


class FaultEntry(NamedTuple):
    """What the matrix needs of a catalogue entry.  ``id``: also with a way, as ``F40:how=usage``."""

    id: str
    title: str
    source: str
    kind: str
    settings: Settings  # of the server, under which it can be seen
    digest: str

    @property
    def base(self) -> str:
        """The fault, whatever its way: what cases claim."""
        return self.id.partition(":")[0]


class Server(NamedTuple):
    """A running engine with one fault, and where it counts its strikes.  ``url`` is asked anew: a case may restart it."""

    url: Callable[[], str]
    reference_url: str | None
    restart: Any
    pids: Any
    fired: Callable[[], int | None]


Found = TypeVar("Found")
Start = Callable[[FaultEntry | None, Settings], AbstractAsyncContextManager[Server]]
Tell = Callable[[str], None]


class Proof:
    """Draws a matrix into a file.  ``start(fault, settings)`` gives a running server with it; ``None`` is the clean one."""

    def __init__(
        self,
        start: Start,
        options: Options,
        file: MatrixFile,
        *,
        cases: Sequence[str] | None = None,
        full: bool = False,
        redo: bool = False,
        tell: Tell = lambda line: None,
    ) -> None:
        """``cases``: the ids that may be used, all but soaks by default.

        ``full``: every case against every fault instead of until one kills.  ``redo``: what was found before does not count.
        """
        self._start = start
        self._options = options
        self._file = file
        known = all_cases()
        self._cases = (
            [known[case] for case in cases] if cases is not None else [c for c in known.values() if not c.soak]
        )
        self._full = full
        self._redo = redo
        self._tell = tell
        self._stack = AsyncExitStack()
        self._standing: tuple[Settings, Server, Options] | None = None

    async def __aenter__(self) -> Proof:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(self, entries: Sequence[FaultEntry]) -> KillMatrix:
        """All entries, those with equal settings together."""
        matrix = self._file.read()
        for entry in _by_settings(entries):
            row = self._row(matrix, entry)
            if entry.kind == "fault":
                todo = self._open_cases(row, entry)
                done = not todo or (row.verdict == "killed" and not self._full)
            else:
                todo = self._left(row, self._cases)
                done = not todo
            if not done:
                await self._draw(row, entry, todo, stop_at_kill=entry.kind == "fault" and not self._full)
            elif not row.cells:
                row.verdict, row.reason = "no case", "no case was chosen"
            matrix = self._file.put(row)
            self._tell(_line(row, done=done))
        return matrix

    async def run_idle(self, entries: Sequence[FaultEntry]) -> KillMatrix:
        """Each MUST case that has killed nothing yet, on the faults that it claims, until it has."""
        matrix = self._file.read()
        musts = {case.id: case for case in self._cases if case.level == "MUST"}
        for entry in _by_settings([entry for entry in entries if entry.kind == "fault"]):
            idle = [musts[case] for case in idle_musts(matrix, list(musts)) if entry.base in musts[case].kills]
            row = self._row(matrix, entry)
            todo = self._left(row, idle)
            if todo:
                await self._draw(row, entry, todo, stop_at_kill=False)
                matrix = self._file.put(row)
                self._tell(_line(row))
        return matrix

    # --- what there is to do ---

    def _row(self, matrix: KillMatrix, entry: FaultEntry) -> Row:
        """The row as it was left, without what is stale; or a new one."""
        found = matrix.row(entry.kind, entry.id)
        fresh = Row(**_named(entry), verdict="unfinished")
        if found is None or self._redo or (found.digest, found.settings) != (entry.digest, entry.settings):
            return fresh
        known = all_cases()
        current = [cell for cell in found.cells if cell.case in known and cell.digest == digest_of(known[cell.case])]
        kept = fresh.model_copy(update={"cells": current, "fired": found.fired, "seconds": found.seconds})
        kept.verdict = _verdict(kept)
        return kept.model_copy(update={"drawn": found.drawn})

    def _open_cases(self, row: Row, entry: FaultEntry) -> list[Case]:
        """Cases not yet tried on a fault: those that claim it, quick ones first, then all others."""

        def rank(case: Case) -> tuple[bool, bool, bool]:
            return (entry.base not in case.kills, case.needs_hooks, not case.structural)

        return sorted(self._left(row, self._cases), key=rank)

    @staticmethod
    def _left(row: Row, cases: Iterable[Case]) -> list[Case]:
        tried = {cell.case for cell in row.cells}
        return [case for case in cases if case.id not in tried]

    # --- drawing ---

    async def _draw(self, row: Row, entry: FaultEntry, cases: Sequence[Case], *, stop_at_kill: bool) -> None:
        """Run ``cases`` against the entry and enter what they say into ``row``."""
        loop = asyncio.get_running_loop()
        began, before = loop.time(), row.seconds
        row.reason = ""
        try:
            async with self._start(entry, entry.settings) as server:
                options = await self._options_for(server)
                size = 1 if stop_at_kill else VARIANT_BATCH
                for first in range(0, len(cases), size):
                    status = await self._batch(row, entry, server, options, cases[first : first + size])
                    row.seconds = round(before + loop.time() - began, 1)
                    if status != "complete" or (stop_at_kill and row.killers):
                        break
                    self._file.put(row.model_copy(update={"verdict": "unfinished"}))
                with contextlib.suppress(OSError):
                    # The row may hold what was drawn on another server; its strikes count, too.
                    struck = server.fired()
                    row.fired = row.fired if struck is None else (row.fired or 0) + struck
        except EngineError as error:
            row.verdict, row.reason = "not started", str(error)
        else:
            row.verdict = _verdict(row)
            if row.kind == "fault" and row.fired == 0:
                row.reason = NEVER_STRUCK
        row.drawn = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row.seconds = round(before + loop.time() - began, 1)

    async def _options_for(self, server: Server) -> Options:
        """The features are found out once a server, by asking it: a fault may hide one."""
        options = replace(self._options, reference_url=server.reference_url, restart=server.restart, pids=server.pids)
        limit_s = min(options.timeout_s, 30.0)
        options.known_features = await undisturbed(
            lambda: find_features(server.url(), name=options.name, model=options.model, api_key=None, timeout_s=limit_s)
        )
        return options

    async def _batch(self, row: Row, entry: FaultEntry, server: Server, options: Options, cases: Sequence[Case]) -> str:
        result = await undisturbed(lambda: run_suite(server.url(), [case.id for case in cases], options))
        fresh = _cells(result, entry, options.effort)
        if result.status == "lost" and fresh and fresh[-1].verdict != "FAIL":
            # An engine that stops answering under a case has failed that case.
            fresh[-1] = fresh[-1].model_copy(update={"verdict": "FAIL", "reason": result.status_reason})
        if entry.kind == "fault":
            await self._check_on_clean(fresh, entry.settings)
        row.cells += fresh
        return result.status

    async def _check_on_clean(self, cells: list[Cell], settings: Settings) -> None:
        """A failure counts only if the case passes on the engine as it is, which each case is asked once."""
        row = self._clean_row(settings)
        asked = [cell.case for cell in cells if cell.verdict == "FAIL" and cell.case not in {c.case for c in row.cells}]
        if asked:
            server, options = await self._clean_server(settings)
            result = await undisturbed(lambda: run_suite(server.url(), asked, options))
            row.cells += _cells(result, None, options.effort)
            row.drawn = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self._file.put(row)
        broken = {cell.case for cell in row.cells if cell.verdict == "FAIL"}
        for number, cell in enumerate(cells):
            if cell.verdict == "FAIL" and cell.case in broken:
                told = {"verdict": "INCONCLUSIVE", "reason": f"fails without the fault, too: {cell.reason}"}
                cells[number] = cell.model_copy(update=told)

    async def _clean_server(self, settings: Settings) -> tuple[Server, Options]:
        """A clean server; it stays until one with other settings is asked for."""
        if self._standing is None or self._standing[0] != settings:
            await self._stack.aclose()
            server = await self._stack.enter_async_context(self._start(None, settings))
            self._standing = (settings, server, await self._options_for(server))
        return self._standing[1:]

    def _clean_row(self, settings: Settings) -> Row:
        """What is known of the engine as it is under ``settings``, by this version of the cases."""
        matrix = self._file.read()
        row = Row(**_named(None), settings=settings, verdict="missed")
        found = matrix.clean_row(settings)
        if found is not None:
            known = all_cases()
            row.cells = [c for c in found.cells if c.case in known and c.digest == digest_of(known[c.case])]
        return row


async def undisturbed(run: Callable[[], Awaitable[Found]]) -> Found:
    """The result of ``run``; once more if this process was suspended meanwhile (a laptop that slept, SIGSTOP).

    All time limits pass while it is, and an answer that came too late then says nothing of the engine.
    """
    for _ in range(TRIES):
        pause = 0.0

        async def watch() -> None:
            nonlocal pause
            while True:
                before = time.monotonic()
                await asyncio.sleep(TICK_S)
                pause = max(pause, time.monotonic() - before)

        watching = asyncio.ensure_future(watch())
        try:
            result = await run()
            await asyncio.sleep(TICK_S)  # lets the watch see a pause that has just ended
        finally:
            watching.cancel()
        if pause < SUSPENDED_S:
            break
    return result


def _by_settings(entries: Sequence[FaultEntry]) -> list[FaultEntry]:
    """Faults before variants; within them equal settings together, in the order of first appearance."""
    seen: list[Settings] = []
    for entry in entries:
        if entry.settings not in seen:
            seen.append(entry.settings)
    return sorted(entries, key=lambda entry: (entry.kind != "fault", seen.index(entry.settings)))


def _line(row: Row, *, done: bool = False) -> str:
    found = " ".join(row.killers[:8]) or row.reason
    return f"{row.id:<5}{row.verdict:<14}{found} ({'known' if done else f'{row.seconds:.0f} s'})"


def _named(entry: FaultEntry | None) -> dict[str, Any]:
    if entry is None:
        return {"id": "clean", "title": "the engine as it is", "source": "", "kind": "clean"}
    return {
        "id": entry.id,
        "title": entry.title,
        "source": entry.source,
        "kind": entry.kind,
        "settings": entry.settings,
        "digest": entry.digest,
    }


def _cells(result: SuiteResult, entry: FaultEntry | None, effort: float) -> list[Cell]:
    cases = all_cases()
    return [
        Cell(
            case=one.id,
            level=one.level,
            verdict=one.verdict,
            reason=one.reason,
            seconds=one.seconds,
            digest=digest_of(cases[one.id]),
            effort=effort,
            hooks=cases[one.id].needs_hooks,
            claimed=entry is not None and entry.base in one.kills,
        )
        for one in result.results
    ]


def _verdict(row: Row) -> FaultVerdict:
    if row.kind == "fault" and row.fired == 0:
        return "inconclusive"  # what never struck was neither caught nor let through
    if row.killers:
        return "killed"
    # Who claims the fault has to tell; where nobody does, nobody had to.
    asked = [cell for cell in row.cells if cell.claimed]
    unknown = any(cell.verdict in ("INCONCLUSIVE", "UNSUPPORTED", "ERROR") for cell in asked)
    return "inconclusive" if unknown or not row.cells else "missed"
