"""The gate's record: one JSON document with everything that decided, so that it can be judged again bit for bit.

Raw pairs and thresholds are the truth; ``result`` is computed from them alone (``harness.gate.judge``), and every view
(HTML, Markdown, JUnit) is computed from the document.  Shares are fractions: 0.02 is 2 %.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from harness.results.schema import Strict

GATE_SCHEMA_VERSION = 1

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
RuleVerdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "SKIPPED"]
Arm = Literal["baseline", "candidate"]
EXIT_CODES: dict[Verdict, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}


class RuleSpec(Strict):
    """One metric with its limit, as it was resolved from the thresholds."""

    metric: str
    cell: str = ""  # workload and load, "chat.c4"
    label: str  # for people; names the cell where there are several
    unit: str
    better: Literal["higher", "lower"]
    kind: Literal["timing", "count"]
    limit: float = Field(ge=0)
    min_samples: int = 0  # samples in each run below which the metric is shown but not judged
    if_missing: Literal["fail", "skip"] = "fail"

    @property
    def key(self) -> str:
        return f"{self.cell}/{self.metric}" if self.cell else self.metric


class JudgeSpec(Strict):
    """How pairs become a verdict."""

    looks: list[int]  # planned numbers of pairs
    fail_rate: float = 0.01
    pass_rate: float = 0.05
    max_void_share: float = 0.20
    answers: Literal["identical", "report"] = "identical"
    rules: list[RuleSpec]


class RunSample(Strict):
    """What one run of one build came to.  ``values`` and ``samples`` are keyed like the rules; null: not measured."""

    arm: Arm
    source: str
    run_id: str | None = None
    started_ns: int | None = None  # since the epoch
    values: dict[str, float | None] = Field(default_factory=dict)
    samples: dict[str, int] = Field(default_factory=dict)  # requests or gaps behind a percentile
    void: list[str] = Field(default_factory=list)  # why the run does not count; empty: it does
    broken: list[str] = Field(default_factory=list)  # the part of ``void`` that is the engine's own doing
    answers: dict[str, str] = Field(default_factory=dict)  # request -> digest of its text
    digests: dict[str, str] = Field(default_factory=dict)  # cell -> digest of what was asked
    notes: list[str] = Field(default_factory=list)


class PairRecord(Strict):
    """Two runs side by side.  ``attempt`` counts from 0; a void pair is repeated at most twice."""

    index: int
    order: Literal["AB", "BA"]
    attempt: int = 0
    baseline: RunSample
    candidate: RunSample

    @property
    def is_void(self) -> bool:
        return bool(self.baseline.void or self.candidate.void)


class ArmInfo(Strict):
    """Who was measured."""

    where: str
    facts: dict[str, Any] = Field(default_factory=dict)  # engine, version, model, dtype, flags, GPU, driver, machine


class VerifiedPart(Strict):
    """One check of the candidate's correctness, with what it looked at."""

    name: str
    verdict: Literal["PASS", "FAIL", "NOT DECIDED"]
    detail: str


class RuleResult(Strict):
    """One metric's verdict.

    ``change``, ``low``, ``high``: candidate / baseline - 1 as measured, so that +0.03 on tokens/s is an improvement.
    ``worse_by``, ``bound``, ``smallest_detectable``: turned so that more is worse.
    """

    rule: RuleSpec
    verdict: RuleVerdict
    reason: str
    method: Literal["wilcoxon", "exact", "none"]
    pairs: int
    baseline_median: float | None = None
    candidate_median: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    worse_by: float | None = None
    bound: float | None = None
    p: float | None = None
    level: float | None = None
    smallest_detectable: float | None = None
    baseline_cv: float | None = None  # run to run, within the baseline


class LookResult(Strict):
    pairs: int
    verdict: Verdict
    note: str


class GateResult(Strict):
    """The judgement.  ``exit_code`` is the command's."""

    verdict: Verdict
    exit_code: int
    headline: str
    reasons: list[str]
    warnings: list[str] = Field(default_factory=list)
    pairs_planned: int
    pairs_used: int
    pairs_void: int
    attempts_void: int
    looks: list[LookResult]
    rules: list[RuleResult]
    verified: list[VerifiedPart]


class GateRecord(Strict):
    """The whole document."""

    document: Literal["pagedbench-gate"] = "pagedbench-gate"
    schema_version: int = GATE_SCHEMA_VERSION
    tool_version: str
    created_utc: str
    mode: Literal["driven", "recorded", "pytest-benchmark"]
    seed: int | None = None
    command: list[str] = Field(default_factory=list)
    baseline: ArmInfo
    candidate: ArmInfo
    workload: dict[str, Any] = Field(default_factory=dict)
    spec: JudgeSpec
    pairs: list[PairRecord]  # in the order in which they were made, void attempts included
    checks: list[VerifiedPart] = Field(default_factory=list)  # made outside the pairs (conformance)
    warnings: list[str] = Field(default_factory=list)
    is_interrupted: bool = False
    result: GateResult | None = None


class HistoryMetric(Strict):
    """One metric of one gate.  ``pair_spread``: standard deviation of the pairs' log ratios."""

    label: str
    unit: str
    better: Literal["higher", "lower"]
    baseline: float | None = None
    candidate: float | None = None
    change: float | None = None
    verdict: RuleVerdict
    pair_spread: float | None = None


class HistoryEntry(Strict):
    """One gate in a history: small enough to keep thousands."""

    document: Literal["pagedbench-gate-history"] = "pagedbench-gate-history"
    schema_version: int = GATE_SCHEMA_VERSION
    gate: str  # first digits of the record's digest
    created_utc: str
    label: str
    verdict: Verdict
    pairs: int
    metrics: dict[str, HistoryMetric]


class TrendPoint(Strict):
    """The candidate's median in one gate."""

    label: str
    created_utc: str
    value: float
    verdict: RuleVerdict


class TrendStep(Strict):
    """A change point: from ``index`` on the level is another, by ``share`` (as measured)."""

    index: int
    label: str
    created_utc: str
    share: float


class Trend(Strict):
    """One metric over a history.  ``pairs_needed``: to find twice the limit; null: more than 200, or nothing known."""

    key: str
    label: str
    unit: str
    better: Literal["higher", "lower"]
    limit: float
    points: list[TrendPoint]
    steps: list[TrendStep]
    pair_spread: float | None
    pairs_needed: int | None
