"""The metrics a reader compares, each declared once: label, unit, direction, how it is read and how it is printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from harness.results.schema import CellSummary
from reports.dataset import Group
from reports.words import Spread, count, mean_count, number, percent

Direction = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a cell.  ``path`` is its attribute path in ``CellSummary``; ``show`` prints it without its unit."""

    path: str
    label: str
    unit: str
    better: Direction
    show: Callable[[float | None], str]
    family: str  # heading of its columns in the comparison
    short: str  # its own column there

    def read(self, summary: CellSummary) -> float | None:
        """The value in a cell's summary, null when it was not measured."""
        value = attrgetter(self.path)(summary)
        return None if value is None else float(value)

    def spread(self, group: Group, label: str) -> Spread:
        """The value over the valid repeats of one engine in one group."""
        return Spread(tuple(group.values(label, self.read)))


RUNNING = Metric("running_mean", "Requests at once", "", "higher", mean_count, "Requests at once", "mean")
THROUGHPUT = Metric("output_tokens_per_s", "Output tokens/s", "tokens/s", "higher", number, "Per second", "tokens out")
TTFT = Metric("ttft.p50", "TTFT p50", "ms", "lower", number, "TTFT, ms", "p50")
ITL = Metric("itl.p50", "ITL p50", "ms", "lower", number, "ITL, ms", "p50")
UTILISATION = Metric("kv_utilisation", "KV utilisation", "", "higher", percent, "KV memory", "utilisation")
WASTE = Metric("kv_waste", "KV waste", "", "lower", percent, "KV memory", "waste")

HELD = Metric("tokens_held_per_gib", "Tokens held per GiB", "", "higher", count, "KV memory", "tokens/GiB")
PER_GIB = Metric(
    "output_tokens_per_s_per_gib", "Output tokens/s per GiB", "tokens/s", "higher", number, "KV memory", "tok/s/GiB"
)
# Percentiles of a latency for curves over the load, the most telling first.
TTFT_CHOICES = (Metric("ttft.p90", "TTFT p90", "ms", "lower", number, "TTFT, ms", "p90"), TTFT)
TPOT_CHOICES = (
    Metric("tpot.p90", "TPOT p90", "ms", "lower", number, "TPOT, ms", "p90"),
    Metric("tpot.p50", "TPOT p50", "ms", "lower", number, "TPOT, ms", "p50"),
)

HEADLINES = [RUNNING, THROUGHPUT, TTFT, ITL, UTILISATION, WASTE]

TABLE = [
    RUNNING,
    Metric("running_max", "Requests at once, peak", "", "higher", count, "Requests at once", "peak"),
    THROUGHPUT,
    Metric("request_rate", "Requests/s", "requests/s", "higher", number, "Per second", "requests"),
    Metric("goodput", "Goodput", "requests/s", "higher", number, "Per second", "goodput"),
    TTFT,
    Metric("ttft.p90", "TTFT p90", "ms", "lower", number, "TTFT, ms", "p90"),
    Metric("ttft.p99", "TTFT p99", "ms", "lower", number, "TTFT, ms", "p99"),
    ITL,
    Metric("itl.p90", "ITL p90", "ms", "lower", number, "ITL, ms", "p90"),
    Metric("itl.p99", "ITL p99", "ms", "lower", number, "ITL, ms", "p99"),
    Metric("e2e.p50", "E2E p50", "ms", "lower", number, "E2E, ms", "p50"),
    UTILISATION,
    WASTE,
    Metric("preemptions", "Preemptions", "", "lower", count, "KV memory", "preempted"),
    Metric("prefix_hit_rate", "Prefix hits", "", "neither", percent, "KV memory", "hits"),
]
