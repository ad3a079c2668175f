"""The tables of the page as plain rows: comparison, the arithmetic of the waste, errors, the client's self-check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from harness.results.schema import CellSummary
from reports.columns import Floats, latency
from reports.correctness import Correctness, Judged, answers_of, judged_answers
from reports.dataset import Cell, Dataset, Engine, Group
from reports.metrics import RUNNING, TABLE, Metric
from reports.style import LEDGER
from reports.words import NULL_TEXT, Spread, count, mean_count, number, percent

WASTE_TERMS = ("reserved", "internal", "external")  # in the order of the sum that defines KV waste
ERROR_TEXT = 160  # characters of an error message that are shown
NS_PER_MS = 1e6


@dataclass(frozen=True)
class Value:
    """One entry of a table: the median of the repeats, their range where there are several."""

    text: str
    range: str = ""

    @property
    def is_null(self) -> bool:
        return self.text == NULL_TEXT


@dataclass(frozen=True)
class Row:
    """One engine in one group."""

    engine: Engine
    validity: str  # the worst of the repeats, "" when nothing was judged
    reasons: list[str]
    served: str
    values: list[Value]
    answers: Correctness | None = None  # of the loaded run, where they were judged


@dataclass(frozen=True)
class Block:
    """The rows of one group."""

    group: Group
    rows: list[Row]


def value(spread: Spread, metric: Metric) -> Value:
    """A spread as text."""
    low, high = metric.show(spread.low), metric.show(spread.high)
    return Value(metric.show(spread.middle), f"{low.removesuffix(' %')}–{high}" if low != high else "")


def metrics_shown(data: Dataset) -> list[Metric]:
    """The metrics of the comparison; a column that no engine fills in any cell is left away."""
    labels = [engine.label for engine in data.engines]
    filled = [m for m in TABLE if any(m.spread(g, label).values for g in data.groups for label in labels)]
    return filled or TABLE


def comparison(data: Dataset) -> list[Block]:
    """Engines by metrics, one block a workload and load level."""
    shown, judged = metrics_shown(data), judged_answers(data)
    return [
        Block(group, [_row(group, engine, shown, judged) for engine in data.engines if engine.label in group.cells])
        for group in data.groups
    ]


def _row(group: Group, engine: Engine, shown: list[Metric], judged: Judged) -> Row:
    cells = group.cells[engine.label]
    summaries = [cell.summary for cell in cells if cell.summary is not None]
    order = ("INVALID", "SUSPECT", "VALID")
    validity = min((s.validity for s in summaries), key=order.index, default="")
    reasons = list(dict.fromkeys(reason for s in summaries if s.validity != "VALID" for reason in s.reasons))
    values = [value(metric.spread(group, engine.label), metric) for metric in shown]
    return Row(engine, validity, reasons, _served(cells, summaries), values, answers_of(cells, judged))


def _served(cells: list[Cell], summaries: list[CellSummary]) -> str:
    """Requests that succeeded, of those that were sent; counted in the table where no summary exists."""
    if summaries:
        return f"{sum(s.requests_ok for s in summaries):,} / {sum(s.requests_sent for s in summaries):,}"
    ok = [cell.tables.requests.rows(cell.info.cell_id, ["ok"])["ok"].astype(bool) for cell in cells]
    return f"{sum(int(o.sum()) for o in ok):,} / {sum(o.size for o in ok):,}"


def mean_ledger(group: Group, label: str) -> dict[str, float] | None:
    """Mean share of the pool per ledger word over the valid repeats of an engine; null when it keeps no ledger."""
    sums = [cell.summary.kv_waste_sum for cell in group.valid(label) if cell.summary is not None]
    sums = [shares for shares in sums if all(word.name in shares for word in LEDGER)]
    if not sums:
        return None
    return {word.name: sum(shares[word.name] for shares in sums) / len(sums) for word in LEDGER}


@dataclass(frozen=True)
class WasteRow:
    """The ledger of one engine in one group, and its waste as a sum that a reader can check."""

    group: Group
    engine: Engine
    pool: str
    shares: list[str]
    formula: str
    waste: str
    tail: str  # what half-filled last blocks alone would come to, "" where that does not apply


def waste_rows(data: Dataset) -> list[WasteRow]:
    """One row for each engine and group with a ledger."""
    rows = []
    for group in data.groups:
        for engine in data.engines:
            shares = mean_ledger(group, engine.label)
            if shares is None:
                continue
            pool = Spread(tuple(group.values(engine.label, lambda cell: cell.kv_reserved))).middle
            waste = Spread(tuple(group.values(engine.label, lambda cell: cell.kv_waste))).middle
            held = [shares[word] for word in WASTE_TERMS]
            used = 1 - shares["cached"] - shares["free"]
            terms = " + ".join(_points(share) for share in held)
            formula = f"({terms}) / (100 - {_points(shares['cached'])} - {_points(shares['free'])})"
            if used > 0:
                formula += f" = {_points(sum(held))} / {_points(used)}"
            texts = [_points(shares[word.name]) for word in LEDGER]
            tail = _tail(group, engine.label, shares, pool)
            rows.append(WasteRow(group, engine, count(pool), texts, formula, percent(waste), tail))
    return rows


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _tail(group: Group, label: str, shares: dict[str, float], pool: float | None) -> str:
    """What the last, half-filled block of every running request comes to when nothing else is wasted."""
    running = RUNNING.spread(group, label).middle
    block = _block_size(group.valid(label))
    used = 1 - shares["cached"] - shares["free"]
    if (
        not pool
        or not running
        or not block
        or block < 2
        or used <= 0
        or shares["reserved"] > 0
        or shares["external"] > 0
    ):
        return ""
    slots = (block - 1) / 2 * running
    held = used * pool
    sum_of_tails = f"({block:.0f} - 1) / 2 × {mean_count(running)} requests = {number(slots)} slots"
    return f"{sum_of_tails}, of {count(round(held))} held = {percent(slots / held)}"


def _block_size(cells: Iterable[Cell]) -> float | None:
    for cell in cells:
        rows = cell.tables.metrics.rows(cell.info.cell_id, ("name", "value"))
        found = rows["value"][rows["name"] == "kv_block_size"].astype(np.float64)
        found = found[np.isfinite(found)]
        if found.size:
            return float(found[-1])
    return None


@dataclass(frozen=True)
class ErrorRow:
    """One class of failure in one cell."""

    cell: Cell
    name: str
    n: int
    example: str


def error_rows(data: Dataset) -> list[ErrorRow]:
    """Failures by class, with the first message of each."""
    rows = []
    for cell in data.cells:
        if cell.summary is not None and cell.summary.requests_failed == 0:
            continue
        table = cell.tables.requests.rows(cell.info.cell_id, ("ok", "error_class", "error"))
        failed = ~table["ok"].astype(bool)
        classes = np.array([str(c) if c else "unclassified" for c in table["error_class"][failed]], dtype=object)
        messages = table["error"][failed]
        for name in sorted(set(classes)):
            first = next((str(m) for m in messages[classes == name] if m), "")
            example = first if len(first) <= ERROR_TEXT else f"{first[:ERROR_TEXT]} ..."
            rows.append(ErrorRow(cell, name, int((classes == name).sum()), example))
    return rows


@dataclass(frozen=True)
class DeliveredRow:
    """The load that was asked for and the load that the engine really got, in one cell."""

    cell: Cell
    unit: str
    asked: str
    delivered: str
    share: str
    sent: str


def delivered_rows(data: Dataset) -> list[DeliveredRow]:
    """Requests in flight or arrivals a second, asked and delivered, between the first and the last request sent."""
    return [_delivered(cell) for cell in data.cells]


def _delivered(cell: Cell) -> DeliveredRow:
    rows = cell.tables.requests.rows(cell.info.cell_id, ("t_sched", "t_send", "t_done", "warmup"))
    sched, send, done = (rows[name].astype(np.float64) for name in ("t_sched", "t_send", "t_done"))
    sent = np.isfinite(send) & ~rows["warmup"].astype(bool)
    first, last = (send[sent].min(), send[sent].max()) if sent.any() else (0.0, 0.0)
    load = cell.info.load
    unit = "requests in flight" if load.mode == "closed" else "requests/s"
    asked: float | None = load.concurrency if load.mode == "closed" else load.rate
    found: float | None = None
    if last > first and load.mode == "closed":
        whole = sent & np.isfinite(done)
        inside = np.clip(done[whole], first, last) - np.clip(send[whole], first, last)
        found = float(inside.sum() / (last - first))
    elif last > first:
        found = float((sent.sum() - 1) / (last - first) * 1e9)
        planned = sched[sent & np.isfinite(sched)]
        if planned.size > 1 and planned.max() > planned.min():
            asked = float((planned.size - 1) / (planned.max() - planned.min()) * 1e9)
    share = percent(found / asked) if found is not None and asked else NULL_TEXT
    return DeliveredRow(cell, unit, number(asked), number(found), share, f"{int(sent.sum()):,}")


@dataclass(frozen=True)
class ClientRow:
    """What the client measured of itself in one cell, in milliseconds and per cent."""

    cell: Cell
    lag_p99: str
    lag_max: str
    late_p50: str
    late_p99: str
    late_max: str
    late_from: str
    cpu: str


def client_rows(data: Dataset) -> list[ClientRow]:
    """Loop lag, how late requests left, CPU; one row a cell."""
    return [_client(cell) for cell in data.cells]


def _client(cell: Cell) -> ClientRow:
    system = cell.tables.system.rows(cell.info.cell_id, ("name", "value"))
    lag = system["value"][system["name"] == "loop_lag_ns"].astype(np.float64)
    lag = lag[np.isfinite(lag)] / NS_PER_MS
    requests = cell.tables.requests.rows(cell.info.cell_id, ("t_sched", "t_ready", "t_send", "ok", "warmup"))
    origin = "plan" if np.isfinite(requests["t_sched"].astype(np.float64)).any() else "slot"
    late = latency(requests, "t_sched" if origin == "plan" else "t_ready", "t_send") / NS_PER_MS
    summary = cell.summary
    return ClientRow(
        cell,
        number(summary.client_lag_ms_p99) if summary else _at(lag, 99),
        _at(lag, 100),
        _at(late, 50),
        _at(late, 99),
        _at(late, 100),
        origin,
        f"{number(summary.client_cpu_percent)}" if summary else NULL_TEXT,
    )


def _at(values: Floats, percentile: float) -> str:
    if values.size == 0 or (percentile == 99 and values.size < 100):
        return NULL_TEXT
    return number(float(np.percentile(values, percentile)))
