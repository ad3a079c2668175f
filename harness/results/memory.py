"""KV memory over the measured window: who held the slots, how many were wasted, what a GiB was worth.

``kv_waste`` follows the PagedAttention paper: slots kept for tokens that will still come, slots that no token will
use and slots that the policy cannot give out, as a share of the slots in use (pool - cached - free).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from harness.results.series import Series

GIB = float(1 << 30)
LEDGER_WORDS = ("token_states", "reserved", "internal", "external", "cached", "free")
WASTED_WORDS = ("reserved", "internal", "external")


class MemoryNumbers(TypedDict, total=False):
    """The fields of CellSummary that this page fills."""

    running_mean: float | None
    running_max: float | None
    preemptions: float | None
    kv_reserved: float | None
    kv_utilisation: float | None
    kv_utilisation_peak: float | None
    kv_peak_tokens: float | None
    kv_internal_fragmentation: float | None
    kv_waste: float | None
    kv_waste_sum: dict[str, float]
    tokens_held_per_gib: float | None
    output_tokens_per_s_per_gib: float | None


def memory_numbers(
    series: Mapping[str, Series],
    window: tuple[int, int],
    whole: tuple[int, int],
    output_tokens_per_s: float | None,
) -> MemoryNumbers:
    """What the engine's gauges say.  ``series`` maps METRIC_NAMES to samples; gauges are averaged over ``window`` and
    counters over the ``whole`` cell, both in ns."""

    def mean(name: str) -> float | None:
        return series[name].mean(*window) if name in series else None

    reserved, allocated, live = mean("kv_slots_reserved"), mean("kv_slots_allocated"), mean("kv_slots_live")
    pool_bytes = mean("kv_pool_bytes")
    held = mean("kv_slots_logical")
    return MemoryNumbers(
        running_mean=mean("requests_running"),
        running_max=series["requests_running"].maximum(*window) if "requests_running" in series else None,
        preemptions=series["preemptions_total"].increase(*whole) if "preemptions_total" in series else None,
        kv_reserved=reserved,
        kv_utilisation=_ratio(live, reserved),
        kv_utilisation_peak=_ratio(
            series["kv_slots_live"].maximum(*window) if "kv_slots_live" in series else None, reserved
        ),
        kv_peak_tokens=peak_tokens(series, window),
        kv_internal_fragmentation=_ratio(None if allocated is None or live is None else allocated - live, allocated),
        kv_waste_sum=(shares := ledger_shares(series, window)),
        kv_waste=waste(shares),
        tokens_held_per_gib=_per_gib(live if held is None else held, pool_bytes),
        output_tokens_per_s_per_gib=_per_gib(output_tokens_per_s, pool_bytes),
    )


def peak_tokens(series: Mapping[str, Series], window: tuple[int, int]) -> float | None:
    """Slots that requests held at the peak: counted where the engine counts them, else its usage times its pool."""
    if "kv_slots_allocated" in series:
        return series["kv_slots_allocated"].maximum(*window)
    if "kv_usage" not in series or "kv_slots_reserved" not in series:
        return None
    usage, pool = series["kv_usage"].maximum(*window), series["kv_slots_reserved"].maximum(*window)
    return usage * pool if usage is not None and pool is not None else None


def ledger_shares(series: Mapping[str, Series], window: tuple[int, int]) -> dict[str, float]:
    """Mean share of the pool per ledger word; empty unless the engine keeps the whole ledger."""
    means: dict[str, float] = {}
    for word in LEDGER_WORDS:
        samples = series.get(f"ledger_{word}")
        value = None if samples is None else samples.mean(*window)
        if value is None:
            return {}
        means[word] = value
    pool = sum(means.values())
    return {word: value / pool for word, value in means.items()} if pool > 0 else {}


def waste(shares: Mapping[str, float]) -> float | None:
    """Wasted share of the slots in use, or None when no slot was in use or nothing is known."""
    if not shares:
        return None
    in_use = 1.0 - shares["cached"] - shares["free"]
    return sum(shares[word] for word in WASTED_WORDS) / in_use if in_use > 1e-12 else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _per_gib(value: float | None, size: float | None) -> float | None:
    return value / (size / GIB) if value is not None and size else None
