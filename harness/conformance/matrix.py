"""The kill matrix as a document: a row a fault, a cell a case, and the rates that follow from them.

Every cell remembers the digest of its case and every row that of its fault, so a matrix can be drawn in parts: what was
found with another version of either is stale, and is drawn again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MATRIX_SCHEMA_VERSION = 2
CONFIDENCE = 0.95

FaultVerdict = Literal["killed", "missed", "inconclusive", "no case", "not started", "unfinished"]
Settings = dict[str, Any]


class MatrixError(ValueError):
    """A file that is no kill matrix of this version.  The message names it."""


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cell(Document):
    """One case against one fault."""

    case: str
    level: str
    verdict: str
    reason: str
    seconds: float
    digest: str  # of the case, see ``digests``
    effort: float
    hooks: bool = False  # the case needs the engine's debug endpoints
    claimed: bool = False  # the case says that it kills this fault


class Row(Document):
    """One fault, one variant, or the engine as it is under one set of settings."""

    id: str
    title: str
    source: str
    kind: str
    settings: Settings = Field(default_factory=dict)  # of the server, where they are not the usual ones
    digest: str = ""  # of the fault
    verdict: FaultVerdict
    reason: str = ""
    cells: list[Cell] = Field(default_factory=list)
    fired: int | None = None  # strikes that the server counted in the last go, where it tells
    drawn: str = ""  # when, ISO 8601, UTC
    seconds: float = 0.0  # all goes together

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
    engine: str
    model: str
    clean: list[Row] = Field(default_factory=list)
    faults: list[Row] = Field(default_factory=list)
    benign: list[Row] = Field(default_factory=list)
    kill_rate: Bound = Bound(hits=0, trials=0, bound=None)
    kill_rate_without_hooks: Bound = Bound(hits=0, trials=0, bound=None)
    false_alarms: Bound = Bound(hits=0, trials=0, bound=None)

    def row(self, kind: str, id: str) -> Row | None:
        rows = self.faults if kind == "fault" else self.benign
        return next((row for row in rows if row.id == id), None)

    def clean_row(self, settings: Settings) -> Row | None:
        return next((row for row in self.clean if row.settings == settings), None)

    def put(self, row: Row, order: Callable[[str], int]) -> None:
        """Add ``row`` or replace its like; rows stand in ``order``, the place of an id in the catalogue."""
        if row.kind == "clean":
            self.clean = [one for one in self.clean if one.settings != row.settings] + [row]
            return
        name = "faults" if row.kind == "fault" else "benign"
        rows = [one for one in getattr(self, name) if one.id != row.id] + [row]
        setattr(self, name, sorted(rows, key=lambda one: order(one.id)))

    def count(self) -> None:
        """Bring the rates up to date."""
        judged = [row for row in self.faults if row.verdict not in ("not started", "unfinished")]
        alarms = [cell for row in self.benign for cell in row.cells]
        killed = sum(row.verdict == "killed" for row in judged)
        without = sum(row.killed_without_hooks for row in judged)
        wrong = sum(cell.verdict == "FAIL" for cell in alarms)
        self.kill_rate = Bound(hits=killed, trials=len(judged), bound=lower_bound(killed, len(judged)))
        self.kill_rate_without_hooks = Bound(hits=without, trials=len(judged), bound=lower_bound(without, len(judged)))
        self.false_alarms = Bound(hits=wrong, trials=len(alarms), bound=upper_bound(wrong, len(alarms)))

    def excluded(self) -> dict[str, str]:
        """Cases that fail on the engine as it is, and why: they kill nothing there."""
        return {
            f"{cell.case}{f' with {row.settings}' if row.settings else ''}": cell.reason
            for row in self.clean
            for cell in row.cells
            if cell.verdict == "FAIL"
        }


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


class MatrixFile:
    """A matrix on disk that several proofs may add to at once: every change is read, merged and written under a lock."""

    def __init__(self, path: Path, order: Callable[[str], int], empty: KillMatrix) -> None:
        """``empty`` stands in for a file that is not there yet."""
        self.path = path
        self._order = order
        self._empty = empty

    def read(self) -> KillMatrix:
        """What is there.  Raises MatrixError when it is no matrix of this version, model and engine."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return self._empty.model_copy(deep=True)
        try:
            found = KillMatrix.model_validate_json(text)
        except ValidationError as error:
            raise MatrixError(
                f"{self.path} is no kill matrix of schema version {MATRIX_SCHEMA_VERSION}; "
                f"name another --out, or move the file away ({error.error_count()} fields do not fit)"
            ) from None
        for name in ("schema_version", "engine", "model"):
            if getattr(found, name) != getattr(self._empty, name):
                raise MatrixError(
                    f"{self.path} holds a matrix of {name} {getattr(found, name)!r}, not {getattr(self._empty, name)!r}; "
                    "name another --out"
                )
        return found

    def put(self, *rows: Row) -> KillMatrix:
        """Add or replace rows; the matrix as it then is."""
        with locked(self.path.with_suffix(".lock")):
            matrix = self.read()
            for row in rows:
                matrix.put(row, self._order)
            matrix.count()
            part = self.path.with_suffix(".part")
            part.write_text(matrix.model_dump_json(indent=1) + "\n", encoding="utf-8")
            os.replace(part, self.path)
        return matrix


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among the processes that ask for ``path``."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def idle_musts(matrix: KillMatrix, musts: list[str]) -> list[str]:
    """Those of ``musts`` that killed no fault of the matrix."""
    killers = {killer for row in matrix.faults for killer in row.killers}
    return [case for case in musts if case not in killers]
