"""What the validity rules look at, measured from the tables of one cell.  None where it cannot be told."""

from __future__ import annotations

import numpy as np

from harness.results.cells import CellData, in_flight
from harness.results.schema import CellSummary
from harness.results.window import drain_start

NS_PER_MS = 1e6
# Client lag below this moves no reported time by more than a display digit.
LAG_FLOOR_MS = 5.0
SCRAPE_GAP_NS = 1_000_000_000
REFUSED_SHARE = 0.10  # as the rule on failed requests has it
LATE_MS = 10.0  # the suspect threshold of late sends
# NVML's reasons for lower clocks that a benchmark does not mean: slowdown by hardware, heat or the power brake.
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80


def measures(summary: CellSummary, data: CellData, window: tuple[int, int] | None) -> dict[str, float | None]:
    """What the validity rules look at; None where it cannot be told."""
    info, ok = data.info, data.ok & data.measured
    schedule = info.workload.parameters.get("schedule", {})
    answered = summary.requests_ok + summary.requests_failed
    cancelled = summary.errors.get("cancelled", 0)
    output, planned = data.column("output_tokens")[ok], data.column("planned_output_tokens")[ok]
    prompt, planned_prompt = data.column("prompt_tokens")[ok], data.column("planned_prompt_tokens")[ok]
    known = ~np.isnan(prompt)
    result: dict[str, float | None] = {
        "no_success": float(summary.requests_ok == 0),
        "failed_to_finish": float(info.status == "failed"),
        "interrupted": float(info.status in ("interrupted", "running", "killed")),
        "ran_dry": float(bool(schedule.get("ran_dry"))),
        "error_share": (summary.requests_failed - cancelled) / answered if answered else None,
        "client_cpu_percent": summary.client_cpu_percent,
        "lag_ms_p99": summary.client_lag_ms_p99,
        "length_mismatch": float((output != planned).mean()) if ok.any() else None,
        "counted_by_chunks": _share(data.requests["token_source"].to_pylist(), ok, "chunks"),
        "prompt_mismatch": None,
        "unmeant_prefix_hits": None,
    }
    if known.any() and schedule.get("exact"):
        result["prompt_mismatch"] = abs(float(prompt[known].sum() / planned_prompt[known].sum()) - 1)
    if summary.prefix_hit_rate is not None and "shared_tokens_share" in schedule:
        result["unmeant_prefix_hits"] = max(0.0, summary.prefix_hit_rate - float(schedule["shared_tokens_share"]))
        if info.workload.parameters.get("hit_rate"):
            result["missed_prefix_hits"] = max(0.0, float(schedule["shared_tokens_share"]) - summary.prefix_hit_rate)
    shortest = [time.p50 for time in (summary.ttft, summary.itl) if time.p50]
    is_own_clock = summary.kernel_stamped is None or summary.kernel_stamped < 1
    if is_own_clock and summary.client_lag_ms_p99 is not None and summary.client_lag_ms_p99 > LAG_FLOOR_MS and shortest:
        result["lag_share"] = summary.client_lag_ms_p99 / min(shortest)
    result["blurred_chunks"] = summary.blurred_chunks
    steps = data.telemetry("client", "clock_steps")
    result["clock_steps"] = None if steps is None else float(steps.v.max())
    if window is not None:
        result["throttled_share"] = throttled_share(data, window)
        result["foreign_processes"] = foreign_processes(data, window)
        result["foreign_cpu"] = machine_share(data, "foreign_cpu_percent", window)
        result["stolen_cpu"] = machine_share(data, "stolen_cpu_percent", window)
        result |= delivery_measures(data, window)
        if (result["error_share"] or 0.0) > REFUSED_SHARE:
            # Requests that the engine fails at once leave its slots empty, whatever the client does.
            result.pop("concurrency_shortfall", None)
        result["telemetry_missing"] = telemetry_missing(data, window)
    return result


def delivery_measures(data: CellData, window: tuple[int, int]) -> dict[str, float | None]:
    """Whether the load was delivered as asked."""
    result: dict[str, float | None] = {}
    send, planned = data.column("t_send"), data.column("t_sched")
    timed = data.measured & ~np.isnan(send) & ~np.isnan(planned)
    if timed.any():
        late = send[timed] - planned[timed]
        result["lateness_ms_p99"] = float(np.percentile(late, 99)) / NS_PER_MS
        over = planned[timed][late > LATE_MS * NS_PER_MS]
        result["late_from_s"] = float(over.min() - planned[timed].min()) / 1e9 if over.size else None
        asked, got = np.ptp(planned[timed]), np.ptp(send[timed])
        result["rate_shortfall"] = max(0.0, 1 - asked / got) if timed.sum() > 1 and got > 0 else None
    concurrency = data.info.load.concurrency
    thinks = bool(data.info.workload.parameters.get("think_s"))
    if concurrency is not None and not thinks and drain_start(data) is not None:
        t, n = in_flight(data)
        edges = np.clip(np.append(t, window[1]), window[0], window[1])
        mean = float((n * np.diff(edges)).sum() / (window[1] - window[0]))
        result["concurrency_shortfall"] = max(0.0, 1 - mean / concurrency)
    return result


def throttled_share(data: CellData, window: tuple[int, int]) -> float | None:
    """Share of the samples in the window in which a device's clocks were held down; the worst device."""
    shares = []
    for series in data.by_label("nvml", "throttle_reasons").values():
        inside = series.within(*window).v
        if inside.size:
            shares.append(float(((inside.astype(np.int64) & THROTTLED) != 0).mean()))
    return max(shares, default=None)


def foreign_processes(data: CellData, window: tuple[int, int]) -> float | None:
    """The most processes of others on a device that the engine used; None where they cannot be told apart."""
    seen = [series.maximum(*window) for series in data.by_label("nvml", "foreign_processes").values()]
    return max((number for number in seen if number is not None), default=None)


def machine_share(data: CellData, name: str, window: tuple[int, int]) -> float | None:
    """Mean over the window of a percentage of the machine, as a share; None where it was not sampled."""
    series = data.telemetry("machine", name)
    mean = None if series is None else series.mean(*window)
    return None if mean is None else mean / 100


def telemetry_missing(data: CellData, window: tuple[int, int]) -> float | None:
    """Share of the window that lies more than a second away from the last sample; None without any telemetry."""
    t = np.unique(data.metrics["t"].to_numpy())
    if t.size == 0:
        return None
    inside = t[(t >= window[0]) & (t <= window[1])]
    gaps = np.diff(np.concatenate(([window[0]], inside, [window[1]])))
    return float(np.maximum(0, gaps - SCRAPE_GAP_NS).sum() / (window[1] - window[0]))


def _share(values: list[object], mask: np.ndarray, wanted: object) -> float | None:
    kept = [value for value, keep in zip(values, mask, strict=True) if keep]
    return sum(value == wanted for value in kept) / len(kept) if kept else None
