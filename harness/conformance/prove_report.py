"""The kill matrix as Markdown: the rates first, then fault by fault what killed it, what is missed and why."""

from __future__ import annotations

from collections.abc import Mapping

from harness.conformance.cases import all_cases
from harness.conformance.digests import digest_of
from harness.conformance.matrix import Bound, KillMatrix, Row, idle_musts


def markdown(matrix: KillMatrix, digests: Mapping[str, str]) -> str:
    """``digests``: of the catalogue's entries as they are now, by id; rows drawn with others are marked."""
    rows = [*matrix.faults, *matrix.benign]
    days = sorted(row.drawn for row in rows if row.drawn)
    efforts = sorted({cell.effort for row in rows for cell in row.cells})
    lines = [
        f"# Kill matrix: {matrix.engine}, model {matrix.model}",
        "",
        f"Drawn {days[0] if days else '-'} to {days[-1] if days else '-'}, {sum(row.seconds for row in rows):.0f} s of work, "
        f"sample sizes at {' and '.join(f'{effort:g}' for effort in efforts) or '-'} of the documented ones, "
        f"pagedbench {matrix.tool_version}.",
        "",
        "| | | |",
        "|---|---|---|",
        _rate("faults killed", matrix.kill_rate, "at least"),
        _rate("by a case that needs no engine hooks", matrix.kill_rate_without_hooks, "at least"),
        _rate("false alarms, of case executions on benign variants", matrix.false_alarms, "at most"),
        "",
        "A fault is killed if a case fails with it that does not fail on the engine as it is. Bounds are one-sided exact "
        "(Clopper-Pearson) ones; they hold for faults drawn like these, not for all faults that there are.",
    ]
    excluded = matrix.excluded()
    if excluded:
        lines += ["", "Not counted, because they fail without any fault, too:", ""]
        lines += [f"- {case}: {reason}" for case, reason in excluded.items()]
    idle = idle_musts(matrix, [case.id for case in all_cases().values() if case.level == "MUST"])
    if idle:
        lines += ["", f"MUST cases that killed nothing here: {', '.join(idle)}."]
    stale = [row.id for row in rows if is_stale(row, digests)]
    if stale:
        lines += ["", f"Drawn with an older version of the fault or of a case: {', '.join(stale)}."]
    lines += [
        "",
        "## Faults",
        "",
        "| fault | what it does | seen with | result | killed by | strikes | s |",
        "|---|---|---|---|---|--:|--:|",
    ]
    lines += [_fault(row) for row in matrix.faults]
    if matrix.benign:
        lines += [
            "",
            "## Benign variants",
            "",
            "| variant | what it does | alarms | cases | s |",
            "|---|---|---|--:|--:|",
        ]
        lines += [
            f"| {row.id} | {row.title} | {_alarms(row)} | {len(row.cells)} | {row.seconds:.0f} |"
            for row in matrix.benign
        ]
    return "\n".join(lines) + "\n"


def _rate(label: str, bound: Bound, side: str) -> str:
    share = f"{100 * bound.hits / bound.trials:.1f} %" if bound.trials else "-"
    limit = "" if bound.bound is None else f"{side} {100 * bound.bound:.1f} % ({100 * bound.confidence:.0f} %)"
    return f"| {label} | {bound.hits} of {bound.trials}, {share} | {limit} |"


def is_stale(row: Row, digests: Mapping[str, str]) -> bool:
    """Whether the fault, or a case that was run on it, has changed since."""
    known = all_cases()
    if row.digest != digests.get(row.id):
        return True
    return any(cell.case not in known or cell.digest != digest_of(known[cell.case]) for cell in row.cells)


def _fault(row: Row) -> str:
    killers = " ".join(row.killers[:6]) + (" ..." if len(row.killers) > 6 else "")
    reason = f" ({row.reason})" if row.reason else ""
    fired = "" if row.fired is None else str(row.fired)
    settings = " ".join(f"{name}={value}" for name, value in row.settings.items())
    return f"| {row.id} | {row.title} | {settings} | {row.verdict}{reason} | {killers} | {fired} | {row.seconds:.0f} |"


def _alarms(row: Row) -> str:
    return " ".join(row.killers) or (row.reason if row.verdict == "not started" else "none")
