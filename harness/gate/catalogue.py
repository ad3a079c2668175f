"""The metrics that a gate knows: where each is found in a cell's summary, which way is worse, and its default limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from harness.results.schema import CellSummary, Distribution

# A p99 of fewer requests than this is nearly noise: with 5000 its 95 % interval runs from p98.7 to p99.3.
P99_SAMPLES = 5000

Reading = tuple[float | None, int | None]  # value, samples behind it (None: not a percentile)


@dataclass(frozen=True, slots=True)
class Metric:
    """``limit``: the default; a change for the worse beyond it may fail a gate."""

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower"]
    kind: Literal["timing", "count"]
    limit: float
    read: Callable[[CellSummary], Reading]
    min_samples: int = 0


def _field(name: str) -> Callable[[CellSummary], Reading]:
    return lambda summary: (finite(getattr(summary, name)), None)


def _percentile(field: str, q: str) -> Callable[[CellSummary], Reading]:
    def read(summary: CellSummary) -> Reading:
        found: Distribution = getattr(summary, field)
        return finite(getattr(found, q)), found.n

    return read


def _ttft(q: str) -> Callable[[CellSummary], Reading]:
    """Schedule-inclusive TTFT; in a closed loop nothing is planned, and the moment a slot was granted takes its place."""

    def read(summary: CellSummary) -> Reading:
        found = summary.ttft_schedule if summary.load.mode != "closed" else summary.ttft_queue
        return finite(getattr(found, q)), found.n

    return read


def finite(value: float | None) -> float | None:
    """``value``, or None where it is not a number."""
    return None if value is None or not math.isfinite(value) else float(value)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("output_tokens_per_s", "output tokens/s", "tokens/s", "higher", "timing", 0.02,
               _field("output_tokens_per_s")),
        Metric("ttft_p50", "TTFT p50", "ms", "lower", "timing", 0.05, _ttft("p50")),
        Metric("ttft_p90", "TTFT p90", "ms", "lower", "timing", 0.05, _ttft("p90")),
        Metric("itl_p50", "ITL p50", "ms", "lower", "timing", 0.02, _percentile("itl", "p50")),
        Metric("itl_p90", "ITL p90", "ms", "lower", "timing", 0.03, _percentile("itl", "p90")),
        Metric("kv_peak_tokens", "peak KV held", "token slots", "lower", "count", 0.02, _field("kv_peak_tokens")),
        Metric("device_used_bytes", "peak device memory", "bytes", "lower", "count", 0.005,
               _field("device_used_bytes")),
        Metric("server_rss_bytes", "peak server RSS", "bytes", "lower", "count", 0.02, _field("server_rss_bytes")),
        Metric("ttft_p99", "TTFT p99", "ms", "lower", "timing", 0.10, _ttft("p99"), P99_SAMPLES),
        Metric("itl_p99", "ITL p99", "ms", "lower", "timing", 0.10, _percentile("itl", "p99"), P99_SAMPLES),
        Metric("tpot_p50", "TPOT p50", "ms", "lower", "timing", 0.02, _percentile("tpot", "p50")),
        Metric("tpot_p90", "TPOT p90", "ms", "lower", "timing", 0.03, _percentile("tpot", "p90")),
        Metric("e2e_p50", "E2E p50", "ms", "lower", "timing", 0.03, _percentile("e2e", "p50")),
        Metric("e2e_p90", "E2E p90", "ms", "lower", "timing", 0.05, _percentile("e2e", "p90")),
        Metric("request_rate", "requests/s", "requests/s", "higher", "timing", 0.02, _field("request_rate")),
        Metric("total_tokens_per_s", "total tokens/s", "tokens/s", "higher", "timing", 0.02,
               _field("total_tokens_per_s")),
        Metric("goodput", "goodput", "requests/s", "higher", "timing", 0.03, _field("goodput")),
        Metric("preemptions", "preemptions", "1", "lower", "count", 0.0, _field("preemptions")),
        Metric("kv_internal_fragmentation", "internal fragmentation", "share", "lower", "count", 0.02,
               _field("kv_internal_fragmentation")),
        Metric("tokens_held_per_gib", "tokens held per GiB", "tokens/GiB", "higher", "count", 0.02,
               _field("tokens_held_per_gib")),
    )
}  # fmt: skip

# The default gate; memory is the first of these two that the baseline measures.
DEFAULT_TIMING = ("output_tokens_per_s", "ttft_p50", "ttft_p90", "itl_p50", "itl_p90")
DEFAULT_MEMORY = ("kv_peak_tokens", "device_used_bytes")
