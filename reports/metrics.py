"""The metrics a reader compares, each declared once: label, unit, direction, how it is read and how it is printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from harness.results.schema import CellSummary
from reports.dataset import Group
from reports.words import Spread, count, number, percent

Direction = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a cell.  ``path`` is its attribute path in ``CellSummary``; ``show`` prints it without its unit."""

    path: str
    label: str
    unit: str
    better: Direction
    show: Callable[[float | None], str] = number
    family: str = ""

    def read(self, summary: CellSummary) -> float | None:
        """The value in a cell's summary, null when it was not measured."""
        value = attrgetter(self.path)(summary)
        return None if value is None else float(value)

    def spread(self, group: Group, label: str) -> Spread:
        """The value over the valid repeats of one engine in one group."""
        return Spread(tuple(group.values(label, self.read)))


RUNNING = Metric("running_mean", "Requests at once", "", "higher", count, "Load")
THROUGHPUT = Metric("output_tokens_per_s", "Output tokens/s", "tokens/s", "higher", number, "Throughput")
TTFT = Metric("ttft.p50", "TTFT p50", "ms", "lower", number, "TTFT, ms")
ITL = Metric("itl.p50", "ITL p50", "ms", "lower", number, "ITL, ms")
UTILISATION = Metric("kv_utilisation", "KV utilisation", "", "higher", percent, "KV memory")
WASTE = Metric("kv_waste", "KV waste", "", "lower", percent, "KV memory")

HEADLINES = [RUNNING, THROUGHPUT, TTFT, ITL, UTILISATION, WASTE]

TABLE = [
    RUNNING,
    Metric("running_max", "peak", "", "higher", count, "Load"),
    THROUGHPUT,
    Metric("request_rate", "requests/s", "requests/s", "higher", number, "Throughput"),
    Metric("goodput", "goodput/s", "requests/s", "higher", number, "Throughput"),
    TTFT,
    Metric("ttft.p90", "p90", "ms", "lower", number, "TTFT, ms"),
    Metric("ttft.p99", "p99", "ms", "lower", number, "TTFT, ms"),
    ITL,
    Metric("itl.p90", "p90", "ms", "lower", number, "ITL, ms"),
    Metric("itl.p99", "p99", "ms", "lower", number, "ITL, ms"),
    Metric("e2e.p50", "E2E p50", "ms", "lower", number, "E2E, ms"),
    UTILISATION,
    WASTE,
    Metric("preemptions", "preempted", "", "lower", count, "KV memory"),
    Metric("prefix_hit_rate", "prefix hits", "", "neither", percent, "KV memory"),
]
