"""The gate as Markdown for a CI job summary: the verdict, the metrics, what was void.  At most 20 kB."""

from __future__ import annotations

from harness.results.gate import GateRecord
from reports.gate_words import arm_words, result_of, rows, settings_that_differ

MAX_BYTES = 20_000
MAX_ROWS = 60
MAX_REASONS = 20


def gate_markdown(record: GateRecord) -> str:
    """The whole text."""
    result = result_of(record)
    lines = [f"## pagedbench gate: {result.verdict}", "", escape(result.headline), ""]
    lines += [f"> **Note:** {escape(warning)}" for warning in result.warnings[:MAX_REASONS]]
    if result.warnings:
        lines.append("")
    lines += [
        "| metric | baseline | candidate | change | 95 % interval | limit | at most worse by | would have seen | verdict |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    shown = rows(result)
    lines += ["| " + " | ".join(escape(cell) for cell in (*row[:8], row.verdict)) + " |" for row in shown[:MAX_ROWS]]
    if len(shown) > MAX_ROWS:
        lines.append(f"| … {len(shown) - MAX_ROWS} more in the JSON | | | | | | | | |")
    lines += ["", "**Correctness**", ""]
    lines += [f"- {part.verdict}: {escape(part.name)}: {escape(part.detail)}" for part in result.verified]
    if result.reasons:
        lines += ["", "**Why**", "", *(f"- {escape(reason)}" for reason in result.reasons[:MAX_REASONS])]
        if len(result.reasons) > MAX_REASONS:
            lines.append(f"- … {len(result.reasons) - MAX_REASONS} more in the JSON")
    lines += [
        "",
        f"{result.pairs_used} pairs judged of {result.pairs_planned} planned, {result.attempts_void} attempts void.  ",
        f"Baseline: {escape(arm_words(record.baseline))}  ",
        f"Candidate: {escape(arm_words(record.candidate))}",
    ]
    different = settings_that_differ(record)[:MAX_REASONS]
    lines += ["", *(f"- {escape(name)}: {escape(a)} → {escape(b)}" for name, a, b in different)] if different else []
    text = "\n".join(lines) + "\n"
    return text if len(text.encode()) <= MAX_BYTES else _cut(text)


def escape(text: str) -> str:
    """Text that cannot break a table or start markup; long ones are cut."""
    flat = " ".join(text.split())
    flat = flat if len(flat) <= 300 else flat[:299] + "…"
    for character in "\\`*_|<>[]":
        flat = flat.replace(character, f"&#{ord(character)};")
    return flat


def _cut(text: str) -> str:
    note = "\n… cut at 20 kB; the JSON holds everything.\n"
    kept = text.encode()[: MAX_BYTES - len(note.encode())].decode(errors="ignore")
    return kept.rpartition("\n")[0] + note
