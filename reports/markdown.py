"""The headline and the comparison as Markdown, fit for a CI job summary."""

from __future__ import annotations

import re

from reports import tables
from reports.dataset import Dataset
from reports.verdict import Phrase, Verdict

MAX_BYTES = 20_000
_SPACE = re.compile(r"\s+")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$-])")


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no table cell broken."""
    return _SPECIAL.sub(r"\\\1", _SPACE.sub(" ", text))


def to_markdown(data: Dataset, verdict: Verdict) -> str:
    """Verdict, reasons, differences and the table; rows beyond 20 kB are cut, and it says so."""
    lines = [f"## {_sentence(verdict.headline)}", "", f"**{verdict.badge}** ({escape(verdict.badge_text)})", ""]
    lines += [f"- {_sentence(point)}" for point in verdict.points]
    lines += [f"- Not like for like: {escape(sentence)}" for sentence in verdict.differences]
    for reason in verdict.reasons:
        cell = reason.cell
        where = f"{cell.engine.label}, {cell.info.workload.name}, repeat {cell.info.repeat}"
        lines.append(f"- {reason.validity}: {escape(where)}: {escape(reason.text)}")
    shown = tables.metrics_shown(data)
    names = ["workload and load", "engine", "validity", "ok / sent"]
    names += [f"{m.label}, {m.unit}" if m.unit == "ms" else m.label for m in shown]
    head = [f"| {' | '.join(escape(name) for name in names)} |", f"|{'|'.join(['---'] * 4 + ['---:'] * len(shown))}|"]
    table: list[str] = []
    for block in tables.comparison(data):
        for row in block.rows:
            values = [f"{v.text} ({v.range})" if v.range else v.text for v in row.values]
            told = [block.group.title, row.engine.label, row.validity or "not judged", row.served]
            table.append(f"| {' | '.join([*(escape(c) for c in told), *values])} |")
    lines += ["", *head]
    size = sum(len(line.encode()) + 1 for line in lines)
    for i, line in enumerate(table):
        size += len(line.encode()) + 1
        if size > MAX_BYTES - 100:
            lines += ["", f"{len(table) - i} more rows are in report.html and report.csv."]
            break
        lines.append(line)
    return "\n".join(lines) + "\n"


def _sentence(sentence: Phrase) -> str:
    return "".join(f"**{escape(part.text)}**" if part.is_name else escape(part.text) for part in sentence)
