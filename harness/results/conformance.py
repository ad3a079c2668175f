"""What a conformance run leaves: one versioned JSON document for an engine, read by every report and by the kill matrix.

::

    SuiteResult
      engine     who was asked (EngineInfo) and what its probe found (features)
      results    one CaseResult a case: verdict, reason, evidence, oracle rungs, the exchanges that matter
      exit_code  of the contract: 0 pass, 1 a MUST failed, 2 inconclusive, 3 unreachable, 4 harness error
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.results.schema import EngineInfo

CONFORMANCE_SCHEMA_VERSION = 1

Verdict = Literal["PASS", "FAIL", "NON-STRICT", "UNSUPPORTED", "INCONCLUSIVE", "ERROR"]
Level = Literal["MUST", "SHOULD", "INFO"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
# ``lost``: the engine stopped answering, so the cases after that were not run and are not listed.
Status = Literal["complete", "interrupted", "lost"]

VERDICT_MEANINGS: dict[Verdict, str] = {
    "PASS": "the property was exercised and held",
    "FAIL": "the property was exercised and broken",
    "NON-STRICT": "an allowed deviation from the strict form, named in the reason",
    "UNSUPPORTED": "the engine does not offer what the case needs, as the probe found",
    "INCONCLUSIVE": "the case ran, but what it is about did not happen: nothing is known",
    "ERROR": "the suite itself failed on this case",
}


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ExchangeRecord(Document):
    """One HTTP call as it went over the wire; long bodies are cut and say so."""

    method: str
    path: str
    sent: str | None = None
    status: int | None = None  # None: no HTTP answer came
    received: str = ""
    error: str | None = None
    seconds: float = 0.0
    note: str = ""


class CaseResult(Document):
    """One case against one engine."""

    id: str
    family: str
    level: Level
    title: str
    source: str
    needs: list[str] = Field(default_factory=list)
    oracle: str  # the oracle that the case is written for
    rungs: list[str] = Field(default_factory=list)  # the ones it stood on in this run
    evidence_rule: str = ""
    kills: list[str] = Field(default_factory=list)
    verdict: Verdict
    reason: str
    evidence: dict[str, Any] = Field(default_factory=dict)
    exchanges: list[ExchangeRecord] = Field(default_factory=list)
    seconds: float = 0.0
    replay: str = ""  # one command that runs this case again


class SuiteResult(Document):
    """A conformance run."""

    schema_version: int = CONFORMANCE_SCHEMA_VERSION
    tool_version: str
    started: str  # ISO 8601, UTC
    seconds: float
    status: Status = "complete"
    status_reason: str = ""
    engine: EngineInfo
    features: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    results: list[CaseResult] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    exit_code: int = 0

    def counts(self) -> dict[Verdict, int]:
        """Cases by verdict, every verdict listed."""
        found = Counter(result.verdict for result in self.results)
        return {verdict: found[verdict] for verdict in VERDICTS}


def verify_file(engine: str) -> str:
    """Name of the document in a run directory that holds what ``pagedbench run --verify`` found of an engine."""
    return f"verify-{engine}.json"


def answers_case(cell_id: str) -> str:
    """Id under which that document holds the finding of one cell."""
    return f"RUN.{cell_id}"


def suites_in(run: Path, kind: Literal["conformance", "verify"]) -> list[SuiteResult]:
    """Results that lie in a run directory (``conform --out RUN``, ``run --verify``); unreadable ones are left out."""
    found = []
    for file in sorted(run.glob(f"{kind}-*.json")):
        try:
            found.append(SuiteResult.model_validate_json(file.read_bytes()))
        except (OSError, ValidationError):
            continue
    return found


def exit_code_of(results: Iterable[CaseResult], status: Status = "complete", *, strict: bool = False) -> int:
    """The contract: a failed MUST (with ``strict`` also a SHOULD) beats an error of the suite, which beats inconclusive.

    An engine that was lost counts as a failure when a case had failed before, else as unreachable (3).
    """
    counted = ("MUST", "SHOULD") if strict else ("MUST",)
    verdicts = [(result.verdict, result.level) for result in results]
    if any(verdict == "FAIL" and level in counted for verdict, level in verdicts):
        return 1
    if status == "lost":
        return 3
    if any(verdict == "ERROR" for verdict, _ in verdicts):
        return 4
    if status == "interrupted" or any(verdict == "INCONCLUSIVE" for verdict, _ in verdicts):
        return 2
    return 0
