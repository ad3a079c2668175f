"""The tables of ``pagedbench compare``: one row a metric with base, new, change, interval and n; Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports.changes import CONFIDENCE, Change, bases, changes
from reports.comparability import differences
from reports.dataset import Dataset, Engine, Group
from reports.export import inert
from reports.markdown import MAX_BYTES, escape
from reports.verdict import Verdict, plain
from reports.words import listing, plural

SCHEMA_VERSION = 1
NOTE = (
    "Change: Hodges-Lehmann estimate over the repeats; interval: exact Mann-Whitney, 95 %; it takes 4 repeats on both "
    "sides. Would see: the smallest change that 4 of 5 such comparisons would have shown. Nothing is corrected for the "
    "number of rows; to decide, use pagedbench gate."
)


@dataclass(frozen=True)
class Section:
    """All changes of one pair of engines in one group."""

    base: Engine
    new: Engine
    group: Group
    rows: list[Change]

    @property
    def title(self) -> str:
        return f"{self.new.label} against {self.base.label}, {self.group.title}"


def sections(data: Dataset, base: str | None = None) -> list[Section]:
    """One section a pair and group in which both ran."""
    found = []
    for pair in bases(data, base):
        for group in data.groups:
            rows = changes(data, group, pair)
            if rows:
                found.append(Section(*pair, group, rows))
    return found


def missing(data: Dataset, base: str | None = None) -> list[str]:
    """A sentence for each pair that has nothing in common."""
    found = [
        f"Run {run.run.manifest.run_id} holds no cells: nothing was measured in it."
        for run in data.runs
        if not run.run.manifest.cells
    ]
    for first, second in bases(data, base):
        if not any(first.label in group.cells and second.label in group.cells for group in data.groups):
            found.append(f"{second.label} and {first.label} ran no workload at the same load, so nothing is compared.")
    if len(data.engines) == 1:
        found.append("There is one engine only, so nothing is compared; name a second run.")
    return found


def summary(found: Sequence[Section]) -> str:
    """The whole comparison in one sentence, certain changes only."""
    rows = [row for section in found for row in section.rows]
    if not rows:
        return "Nothing could be compared."
    kinds = [row.verdict for row in rows]
    if set(kinds) <= {"too few repeats", "not measured", "INVALID"}:
        if "too few repeats" not in kinds:
            return "No metric could be compared: " + listing(sorted({f"{kinds.count(k)} {k}" for k in kinds})) + "."
        return "Too few repeats to call any change better or worse: 4 on both sides are needed."
    told = [
        f"{kinds.count(word)} {word}" for word in ("better", "worse", "changed", "no change shown") if word in kinds
    ]
    rest = sum(kinds.count(word) for word in ("too few repeats", "not measured", "INVALID"))
    without = f"; {plural(rest, 'row')} without a judgement" if rest else ""
    return f"Of {plural(len(rows), 'comparison')}: {listing(told)}{without}."


def cells_of(row: Change) -> list[str]:
    """One row as texts, in the order of ``COLUMNS``."""
    unit = f", {row.metric.unit}" if row.metric.unit == "ms" else ""
    a, b = row.metric.show(row.base_values.middle), row.metric.show(row.new_values.middle)
    return [row.metric.label + unit, a, b, row.change_text, row.interval_text, row.n, row.detectable_text, row.verdict]


COLUMNS = ["metric", "base", "new", "change", "95 % interval", "n", "would see", "verdict"]


def to_markdown(data: Dataset, verdict: Verdict, base: str | None = None) -> str:
    """The comparison as Markdown for a job summary; at most 20 kB, and it says when rows were cut."""
    found = sections(data, base)
    lines = [f"## {escape(summary(found))}", "", f"**{verdict.badge}** ({escape(verdict.badge_text)})", ""]
    lines += [f"- Not like for like: {escape(sentence)}" for sentence in verdict.differences]
    lines += [f"- {escape(sentence)}" for sentence in missing(data, base)]
    size = sum(len(line.encode()) + 1 for line in lines)
    for i, section in enumerate(found):
        part = [
            "",
            f"### {escape(section.title)}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---|---:|---:|---:|---:|---:|---:|---|",
        ]
        for row in section.rows:
            texts = [escape(text) for text in cells_of(row)]
            if row.verdict in ("better", "worse", "changed"):
                texts[3], texts[-1] = f"**{texts[3]}**", f"**{texts[-1]}**"
            part.append(f"| {' | '.join(texts)} |")
        size += sum(len(line.encode()) + 1 for line in part)
        if size > MAX_BYTES - 600:
            lines += ["", f"{plural(len(found) - i, 'more table')} in compare.csv and compare.json."]
            break
        lines += part
    return "\n".join([*lines, "", escape(NOTE)]) + "\n"


def record(row: Change) -> dict[str, Any]:
    """One row as plain data; what is not known is null."""
    return {
        "workload": row.group.workload,
        "load_mode": row.group.load.mode,
        "concurrency": row.group.load.concurrency,
        "rate": row.group.load.rate,
        "metric": row.metric.path,
        "unit": row.metric.unit,
        "better": row.metric.better,
        "base_engine": row.base.label,
        "new_engine": row.new.label,
        "base": _finite(row.base_values.middle),
        "new": _finite(row.new_values.middle),
        "delta": _finite(row.delta),
        "change": _finite(row.change),
        "low": _finite(row.low),
        "high": _finite(row.high),
        "n_base": len(row.base_values.values),
        "n_new": len(row.new_values.values),
        "detectable": _finite(row.detectable),
        "verdict": row.verdict,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def to_csv(data: Dataset, base: str | None = None) -> str:
    """One row a metric, pair and group."""
    records = [record(row) for section in sections(data, base) for row in section.rows]
    out = io.StringIO(newline="")
    columns = list(records[0]) if records else ["workload", "metric", "base_engine", "new_engine", "verdict"]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: inert(value) for key, value in one.items()} for one in records)
    return out.getvalue()


def to_json(data: Dataset, verdict: Verdict, base: str | None = None) -> str:
    """The comparison as one versioned JSON document."""
    found = sections(data, base)
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "pagedbench.compare",
        "confidence": CONFIDENCE,
        "runs": [run.run.manifest.run_id for run in data.runs],
        "summary": summary(found),
        "headline": plain(verdict.headline),
        "validity": verdict.badge,
        "validity_detail": verdict.badge_text,
        "differences": differences(data),
        "not_compared": missing(data, base),
        "changes": [record(row) for section in found for row in section.rows],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
