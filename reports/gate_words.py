"""Numbers of a gate's record as text: shared by its page, its Markdown and its JUnit file."""

from __future__ import annotations

from typing import NamedTuple

from harness.results.gate import ArmInfo, GateRecord, GateResult, RuleResult

NONE = "–"


class Row(NamedTuple):
    """One metric as the tables show it."""

    metric: str
    baseline: str
    candidate: str
    change: str
    interval: str
    limit: str
    bound: str
    detectable: str
    verdict: str
    reason: str


def result_of(record: GateRecord) -> GateResult:
    """The judgement of a record.  Raises ValueError for one that was not judged."""
    if record.result is None:
        raise ValueError("this gate record holds no result; judge it with pagedbench gate --replay")
    return record.result


def rows(result: GateResult) -> list[Row]:
    return [_row(rule) for rule in result.rules]


def _row(found: RuleResult) -> Row:
    spec = found.rule
    interval = NONE
    if found.low is not None and found.high is not None:
        interval = f"{percent(found.low)} … {percent(found.high)}"
        if found.method == "exact":
            interval += " (range)"
    return Row(
        metric=spec.label,
        baseline=quantity(found.baseline_median, spec.unit),
        candidate=quantity(found.candidate_median, spec.unit),
        change=percent(found.change),
        interval=interval,
        limit=f"{100 * spec.limit:g} %",
        bound=percent(found.bound),
        detectable=NONE if found.smallest_detectable is None else f"{100 * found.smallest_detectable:.1f} %",
        verdict=found.verdict,
        reason=found.reason,
    )


def percent(share: float | None) -> str:
    if share is None:
        return NONE
    text = f"{100 * share:+.1f} %"
    return "0.0 %" if text in ("+0.0 %", "-0.0 %") else text.replace("-", "−")


def quantity(value: float | None, unit: str) -> str:
    """Four significant digits, with bytes as MiB."""
    if value is None:
        return NONE
    if unit == "bytes":
        return f"{value / 2**20:.1f} MiB"
    return f"{value:.0f} {unit}" if value >= 1000 else f"{value:.4g} {unit}"


def arm_words(info: ArmInfo) -> str:
    """One line about a build."""
    facts = info.facts
    parts = [str(facts[name]) for name in ("engine", "version", "model", "dtype") if facts.get(name)]
    return info.where + (f" ({', '.join(parts)})" if parts else "")


def settings_that_differ(record: GateRecord) -> list[tuple[str, str, str]]:
    """Settings in which the two builds differ: name, baseline, candidate."""
    a, b = (dict(info.facts.get("settings") or {}) for info in (record.baseline, record.candidate))
    return [
        (name, str(a.get(name, NONE)), str(b.get(name, NONE)))
        for name in sorted({*a, *b})
        if a.get(name) != b.get(name)
    ]
