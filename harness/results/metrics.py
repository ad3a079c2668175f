"""From tables to numbers: one CellSummary a cell, by the words of the schema.  numpy and pyarrow only.

A percentile is given only where at least two samples lie beyond it, n (1 - q) >= 2: p50 from 4 samples on, p90 from 20,
p95 from 40, p99 from 200.

Rates are counted over the measured window (``window.py``), which in cells long enough to tell (100 stretches of a quarter
of a second) begins where MSER-5 finds throughput steady (``steady.py``).  Tokens are counted in it by the arrival of
their chunks, so that numerator and denominator speak of the same time.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.results.cells import CellData, in_flight
from harness.results.client_memory import fill_client_memory, fill_cost
from harness.results.measures import measures
from harness.results.memory import memory_numbers
from harness.results.reader import Run
from harness.results.schema import CellInfo, CellSummary, Distribution, RunManifest, Summary
from harness.results.series import Floats
from harness.results.slo import meets_slo
from harness.results.validity import Measures, judge
from harness.results.window import measured_window, steady_window

MIN_BEYOND = 2
NS_PER_MS = 1e6
NS_PER_S = 1e9


def summarise(run: Run) -> Summary:
    """The summary of a whole run."""
    summaries: list[CellSummary] = []
    outputs: dict[str, pa.Table] = {}
    for cell in run.manifest.cells:  # one cell in memory at a time: a run may hold millions of chunks
        data = CellData.of(run, cell)
        summaries.append(summarise_cell(data, run.manifest))
        outputs[cell.cell_id] = _outputs(data)
    for summary, cell in zip(summaries, run.manifest.cells, strict=True):
        summary.tokens_identical_to.update(identical_outputs(cell, run.manifest.cells, outputs))
    return Summary(run_id=run.manifest.run_id, cells=summaries, searches=run.manifest.searches)


def distribution(values: Floats) -> Distribution:
    """Mean, maximum and the percentiles that this many samples support.  NaN counts as no sample."""
    values = values[~np.isnan(values)]
    n = int(values.size)
    if n == 0:
        return Distribution(n=0)

    def percentile(q: float) -> float | None:
        return float(np.percentile(values, q)) if n * (100 - q) / 100 >= MIN_BEYOND - 1e-9 else None

    return Distribution(
        n=n,
        mean=float(values.mean()),
        p50=percentile(50),
        p90=percentile(90),
        p95=percentile(95),
        p99=percentile(99),
        max=float(values.max()),
    )


def summarise_cell(data: CellData, manifest: RunManifest) -> CellSummary:
    """The numbers of one cell, and whether they may be believed."""
    return numbers_and_measures(data, manifest)[0]


def numbers_and_measures(data: CellData, manifest: RunManifest) -> tuple[CellSummary, Measures]:
    """The summary of one cell, and what its validity was judged by."""
    info = data.info
    loaded = measured_window(data)
    window = steady_window(data, loaded)
    ok = data.ok & data.measured
    send, first, last, done = (data.column(name) for name in ("t_send", "t_first", "t_last", "t_done"))
    output = data.column("output_tokens")

    def since(name: str, end: Floats) -> Floats:
        return ((end - data.column(name)) / NS_PER_MS)[ok]

    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(output > 1, (last - first) / (output - 1) / NS_PER_MS, np.nan)
    summary = CellSummary(
        cell_id=info.cell_id,
        engine=info.engine,
        workload=info.workload.name,
        load=info.load,
        repeat=info.repeat,
        validity="VALID",
        requests_sent=int((data.measured & ~np.isnan(send)).sum()),
        requests_ok=int(ok.sum()),
        requests_failed=int((data.measured & ~data.ok).sum()),
        errors=errors(data),
        prompt_tokens=_total(data.column("prompt_tokens")[ok]),
        output_tokens=_total(output[ok]),
        cached_tokens=_total(data.column("cached_tokens")[ok]),
        ttft=distribution(since("t_send", first)),
        ttft_queue=distribution(since("t_ready", first)),
        ttft_schedule=distribution(since("t_sched", first)),
        itl=distribution(gaps_ms(data, ok)),
        tpot=distribution(tpot[ok]),
        e2e=distribution(since("t_send", done)),
    )
    stamps = [stamp for stamp, good in zip(data.requests["stamp"].to_pylist(), ok, strict=True) if good and stamp]
    summary.kernel_stamped = sum(stamp == "kernel" for stamp in stamps) / len(stamps) if stamps else None
    summary.blurred_chunks = blurred_share(data, ok) if summary.kernel_stamped else None
    if window is not None and loaded is not None:
        summary.steady_from_s = (window[0] - loaded[0]) / NS_PER_S if window[0] > loaded[0] else None
        fill_rates(summary, data, window, manifest.slo)
        whole = (info.t_start or window[0], info.t_end or window[1])
        for name, value in memory_numbers(data.metric_series(), window, whole, summary.output_tokens_per_s).items():
            setattr(summary, name, value)
        settings = next((e.settings for e in manifest.engines if e.name == info.engine), {})
        fill_client_memory(summary, data, window, settings)
        fill_machine(summary, data, window)
        fill_cost(summary, data, window, whole)
    summary.prefix_hit_rate = prefix_hit_rate(data)
    judged_by = measures(summary, data, window)
    summary.validity, summary.reasons = judge(judged_by)
    return summary, judged_by


def fill_rates(summary: CellSummary, data: CellData, window: tuple[int, int], slo: dict[str, float]) -> None:
    """Rates over the window."""
    start, end = window
    seconds = (end - start) / NS_PER_S
    first, done = data.column("t_first"), data.column("t_done")
    finished = data.ok & data.measured & (done >= start) & (done <= end)
    arrived = (data.chunk_t >= start) & (data.chunk_t <= end)
    output_tokens = float(data.chunk_tokens[arrived].sum())
    prompts = np.nan_to_num(data.column("prompt_tokens"))[(first >= start) & (first <= end)].sum()
    summary.window_s = seconds
    summary.request_rate = float(finished.sum()) / seconds
    summary.output_tokens_per_s = output_tokens / seconds
    summary.total_tokens_per_s = (output_tokens + float(prompts)) / seconds
    summary.in_flight_max = int(in_flight(data)[1].max(initial=0))
    if slo:
        good = finished & meets_slo(data, slo)
        summary.goodput = float(good.sum()) / seconds


def fill_machine(summary: CellSummary, data: CellData, window: tuple[int, int]) -> None:
    """What processes and devices used, and how late the client was."""
    for field, source, name in (
        ("server_rss_bytes", "process", "rss_bytes"),
        ("device_used_bytes", "nvml", "device_used_bytes"),
    ):
        series = data.telemetry(source, name)
        setattr(summary, field, None if series is None else series.maximum(*window))
    # Of several processes that drive the load, the busiest is the one that may be late.
    shares = [series.mean(*window) for series in data.by_label("client", "cpu_percent").values()]
    summary.client_cpu_percent = max((share for share in shares if share is not None), default=None)
    lag = data.telemetry("client", "loop_lag_ns")
    if lag is not None:
        inside = lag.within(*window).v
        if inside.size:
            summary.client_lag_ms_p99 = float(np.percentile(inside, 99)) / NS_PER_MS


def gaps_ms(data: CellData, ok: np.ndarray) -> Floats:
    """Gaps between neighbouring content chunks of the requests in ``ok``, pooled, ms."""
    if data.chunk_t.size < 2 or not ok.size:
        return np.empty(0)
    row = data.chunk_request
    same = (row[1:] == row[:-1]) & (row[1:] >= 0)
    same &= ok[row[1:]]
    gaps: Floats = np.diff(data.chunk_t)[same] / NS_PER_MS
    return gaps


def blurred_share(data: CellData, ok: np.ndarray) -> float | None:
    """Share of the chunks that bear one time together with others because the client read them late."""
    chunks = np.nansum(data.column("chunks")[ok])
    blurred = data.telemetry("client", "blurred_chunks")
    return min(1.0, (0.0 if blurred is None else float(blurred.v.sum())) / chunks) if chunks else None


def errors(data: CellData) -> dict[str, int]:
    """Failed measured requests by class; ``unknown`` where a record names none."""
    failed = data.requests.filter(data.measured & ~data.ok)
    return dict(sorted(Counter(failed["error_class"].fill_null("unknown").to_pylist()).items()))


def prefix_hit_rate(data: CellData) -> float | None:
    """Share of the prompt tokens that came from a cache: by the server's usage, else by the engine's counters."""
    ok = data.ok & data.measured
    cached, prompt = data.column("cached_tokens")[ok], data.column("prompt_tokens")[ok]
    told = ~np.isnan(cached) & ~np.isnan(prompt)
    if told.any() and prompt[told].sum() > 0:
        return float(cached[told].sum() / prompt[told].sum())
    series = data.metric_series()
    whole = (data.info.t_start or 0, data.info.t_end or 2**62)
    names = ("prefix_cache_hits_total", "prefix_cache_queries_total")
    hits, queries = (series[name].increase(*whole) if name in series else None for name in names)
    return hits / queries if hits is not None and queries else None


def identical_outputs(one: CellInfo, cells: list[CellInfo], outputs: dict[str, pa.Table]) -> dict[str, float]:
    """For every other engine's cell that was asked the same: the share of common successes with equal text."""
    shares: dict[str, float] = {}
    mine = outputs[one.cell_id]
    for other in cells:
        if not _asked_the_same(one, other):
            continue
        theirs = outputs[other.cell_id]
        index = (table["request_index"].to_numpy() for table in (mine, theirs))
        common, here, there = np.intersect1d(*index, return_indices=True)
        if common.size:
            equal = pc.equal(mine["output_sha256"].take(pa.array(here)), theirs["output_sha256"].take(pa.array(there)))
            shares[other.cell_id] = pc.sum(equal).as_py() / common.size
    return shares


def _asked_the_same(one: CellInfo, other: CellInfo) -> bool:
    return one.engine != other.engine and one.workload.digest == other.workload.digest and one.load == other.load


def _outputs(data: CellData) -> pa.Table:
    """Position and output digest of the measured requests that succeeded and have one."""
    rows = data.requests.select(["request_index", "output_sha256"])
    return rows.filter(pc.and_(pa.array(data.ok & data.measured), pc.is_valid(rows["output_sha256"])))


def _total(values: Floats) -> int | None:
    """The sum, or None unless every value is known."""
    return int(values.sum()) if values.size and not np.isnan(values).any() else None
