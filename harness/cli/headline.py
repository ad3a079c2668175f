"""The headline numbers of a run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.table import Table

from harness.results.schema import CellSummary

Cell = Callable[[CellSummary], str]


def number(value: float | None, pattern: str) -> str:
    """A value that is there, or a dash: a missing number is never shown as 0."""
    return "-" if value is None else pattern.format(value)


def load_text(cell: CellSummary) -> str:
    load = cell.load
    if load.mode == "closed":
        return f"{load.concurrency} at once"
    return f"{load.rate:g} req/s" if load.rate is not None else load.mode


COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("engine", lambda c: c.engine),
    ("workload", lambda c: c.workload),
    ("load", load_text),
    ("valid", lambda c: c.validity),
    ("ok/sent", lambda c: f"{c.requests_ok}/{c.requests_sent}"),
    ("out tok/s", lambda c: number(c.output_tokens_per_s, "{:.1f}")),
    ("TTFT p50 ms", lambda c: "-" if c.validity == "INVALID" else number(c.ttft.p50, "{:.0f}")),
    ("ITL p50 ms", lambda c: "-" if c.validity == "INVALID" else number(c.itl.p50, "{:.1f}")),
    ("running max", lambda c: number(c.running_max, "{:.0f}")),
    ("KV used", lambda c: number(c.kv_utilisation, "{:.1%}")),
    ("KV waste", lambda c: number(c.kv_waste, "{:.1%}")),
)


def headline_table(cells: list[CellSummary]) -> Table:
    """One row a cell.  Latencies of an INVALID cell are not shown."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, (title, _) in enumerate(COLUMNS):
        table.add_column(title, justify="left" if index < 4 else "right", no_wrap=True)
    for cell in cells:
        table.add_row(*(render(cell) for _, render in COLUMNS))
    return table


def reasons(cells: list[CellSummary]) -> list[str]:
    """Why cells are not VALID, a line each."""
    return [f"{c.validity} {c.cell_id}: {reason}" for c in cells if c.validity != "VALID" for reason in c.reasons]
