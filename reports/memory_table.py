"""What KV memory brought and what it cost, beside the ledger: per GiB, sharing, preemptions, energy."""

from __future__ import annotations

from dataclasses import dataclass

from reports import tables
from reports.dataset import Dataset, Engine, Group
from reports.metrics import HELD, PER_GIB, Metric
from reports.words import byte_size, count, listing, number, percent


def factor_of(value: float | None) -> str:
    """A sharing factor with two decimals."""
    return number(value) if value is None else f"{value:.2f}"


FIELDS: list[tuple[str, list[Metric]]] = [
    (
        "Worth",
        [
            HELD,
            PER_GIB,
            Metric("kv_sharing", "Sharing factor", "", "neither", factor_of, "Worth", "sharing"),
            Metric("kv_utilisation_peak", "Utilisation, peak", "", "neither", percent, "Worth", "peak use"),
            Metric("client_live_mean", "Tokens held, by the client", "", "neither", count, "Worth", "held (client)"),
        ],
    ),
    (
        "Preemption",
        [
            Metric("preemptions", "Preemptions", "", "lower", count, "Preemption", "times"),
            Metric("recomputed_tokens", "Tokens computed again", "", "lower", count, "Preemption", "recomputed"),
            Metric("stalls", "Stalls of streams", "", "lower", count, "Preemption", "stalls"),
            Metric("stall_s", "Seconds lost in stalls", "s", "lower", number, "Preemption", "lost, s"),
            Metric("kv_left_over", "Slots held after the end", "", "lower", count, "Preemption", "left over"),
        ],
    ),
    (
        "Energy",
        [
            Metric("energy_j", "Energy of the devices", "J", "lower", number, "Energy", "J"),
            Metric("energy_j_per_output_token", "Energy per output token", "J", "lower", number, "Energy", "J/token"),
        ],
    ),
    (
        "Whole process",
        [
            Metric("server_rss_bytes", "Memory of the server, peak", "", "lower", byte_size, "Whole process", "host"),
            Metric(
                "device_used_bytes", "Memory of the device, peak", "", "lower", byte_size, "Whole process", "device"
            ),
        ],
    ),
]


@dataclass(frozen=True)
class MemoryRow:
    """One engine in one group; ``is_void`` when no repeat of it may be believed."""

    group: Group
    engine: Engine
    values: list[tables.Value]
    is_void: bool


@dataclass(frozen=True)
class MemoryTable:
    """``families`` are the headings over the columns ``metrics``; ``missing`` says what no engine told."""

    families: list[tuple[str, int]]
    metrics: list[Metric]
    rows: list[MemoryRow]
    missing: str


def memory_table(data: Dataset) -> MemoryTable:
    """The table of the whole report; columns that no cell fills are left away and named."""
    labels = [engine.label for engine in data.engines]

    def told(metric: Metric) -> bool:
        return any(metric.spread(group, label).values for group in data.groups for label in labels)

    kept = [(name, [metric for metric in metrics if told(metric)]) for name, metrics in FIELDS]
    metrics = [metric for _, members in kept for metric in members]
    absent = [metric.label.lower() for _, members in FIELDS for metric in members if not told(metric)]
    rows = [
        MemoryRow(
            group,
            engine,
            [tables.value(metric.spread(group, engine.label), metric) for metric in metrics],
            not group.valid(engine.label),
        )
        for group in data.groups
        for engine in data.engines
        if engine.label in group.cells
    ]
    missing = f"Not measured in any cell: {listing(absent)}." if absent else ""
    return MemoryTable([(name, len(members)) for name, members in kept if members], metrics, rows, missing)
