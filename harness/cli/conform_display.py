"""What ``pagedbench conform`` shows: a tree of cases with their verdicts as they come, then a summary."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from harness.conformance.case import FAMILIES, Case
from harness.conformance.runner import Watcher
from harness.results.conformance import CaseResult, SuiteResult

STYLES = {
    "PASS": "green",
    "FAIL": "bold red",
    "NON-STRICT": "yellow",
    "UNSUPPORTED": "dim",
    "INCONCLUSIVE": "magenta",
    "ERROR": "bold red",
}


class Tree(Watcher):
    """Prints families and cases to stderr; on a terminal the running case is shown on the last line."""

    def __init__(self, name: str) -> None:
        self._console = Console(file=sys.stderr, highlight=False, width=None if sys.stderr.isatty() else 160)
        self._name = name
        self._family = ""
        self._status = self._console.status("") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()

    def begin(self, case: Case, number: int, total: int) -> None:
        if case.family != self._family:
            self._family = case.family
            self._console.print(Text(f"{self._name}  {FAMILIES[case.family]}", style="bold"))
        if self._status is not None:
            self._status.update(f"{number}/{total}  {case.id}  {case.title}")

    def end(self, case: Case, result: CaseResult) -> None:
        line = Text("  ")
        line.append(f"{result.id:<8}")
        line.append(f"{result.verdict:<13}", style=STYLES[result.verdict])
        line.append(f"{result.level:<7}{result.seconds:6.1f} s  {result.title}")
        self._console.print(line, no_wrap=True, overflow="ellipsis")
        if result.verdict not in ("PASS", "UNSUPPORTED"):
            self._console.print(Text(f"             {result.reason}", style="dim"))

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()


def watcher_for(name: str) -> Tree:
    return Tree(name)


def print_list(cases: Sequence[Case], *, as_json: bool) -> None:
    """The catalogue: a tree, or JSON."""
    if as_json:
        entries = [
            {
                "id": case.id,
                "level": case.level,
                "title": case.title,
                "source": case.source,
                "needs": list(case.needs),
                "oracle": case.oracle,
                "evidence": case.evidence,
                "kills": list(case.kills),
                "structural": case.structural,
                "soak": case.soak,
            }
            for case in cases
        ]
        print(json.dumps({"schema_version": 1, "cases": entries}, indent=2))
        return
    family = ""
    for case in cases:
        if case.family != family:
            family = case.family
            print(f"{family}  {FAMILIES[family]}")
        print(f"  {case.id:<7} {case.level:<7} {case.title}")
    print(f"{len(cases)} cases")


def print_summary(result: SuiteResult) -> None:
    """Verdicts counted, and the failures in words, on stdout."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in result.counts().items() if count)
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"{result.engine.name}: {counts or 'no case was run'} in {result.seconds:.0f} s", style="bold")
    if result.status != "complete":
        console.print(f"  {result.status}: {result.status_reason}", style="bold red")
    for case in result.results:
        if case.verdict in ("FAIL", "ERROR"):
            console.print(Text(f"  {case.id} {case.verdict} ({case.level}) {case.title}: {case.reason}"))
            console.print(Text(f"    {case.replay}", style="dim"))
    for note in result.notes:
        console.print(Text(f"  note: {note}"))
