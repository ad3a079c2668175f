"""The kill matrix as Markdown: the rates first, then fault by fault what killed it, what is missed and why."""

from __future__ import annotations

from harness.conformance.prove import Bound, KillMatrix, Row, idle_musts


def markdown(matrix: KillMatrix) -> str:
    lines = [
        f"# Kill matrix: {matrix.engine}, model {matrix.model}",
        "",
        f"{matrix.started}, {matrix.seconds:.0f} s, pagedbench {matrix.tool_version}.",
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
    if matrix.excluded:
        lines += ["", "Left out, because they fail without any fault, too:", ""]
        lines += [f"- {case}: {reason}" for case, reason in matrix.excluded.items()]
    idle = idle_musts(matrix)
    if idle:
        lines += ["", f"MUST cases that ran and killed nothing: {', '.join(idle)}."]
    lines += [
        "",
        "## Faults",
        "",
        "| fault | what it does | result | killed by | strikes | s |",
        "|---|---|---|---|--:|--:|",
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


def _fault(row: Row) -> str:
    killers = " ".join(row.killers[:6]) + (" ..." if len(row.killers) > 6 else "")
    reason = f" ({row.reason})" if row.reason else ""
    fired = "" if row.fired is None else str(row.fired)
    return f"| {row.id} | {row.title} | {row.verdict}{reason} | {killers} | {fired} | {row.seconds:.0f} |"


def _alarms(row: Row) -> str:
    return " ".join(row.killers) or (row.reason if row.verdict == "not started" else "none")
