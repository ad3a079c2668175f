"""Numbers of a cell against closed forms on synthetic logs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from harness.results.metrics import distribution, summarise
from harness.results.reader import Run
from harness.results.schema import (
    CHUNK_COLUMNS,
    METRIC_COLUMNS,
    REQUEST_COLUMNS,
    SYSTEM_COLUMNS,
    CellInfo,
    CellSummary,
    LoadInfo,
    MachineInfo,
    RunManifest,
    WorkloadInfo,
)

MS = 1_000_000
S = 1_000_000_000
T0 = 7_000 * S


def cell_info(name: str = "a", *, concurrency: int | None = 1, rate: float | None = None, **schedule: Any) -> CellInfo:
    load = LoadInfo(mode="poisson" if rate else "closed", concurrency=None if rate else concurrency, rate=rate)
    workload = WorkloadInfo(
        name="chat",
        parameters={"schedule": {"exact": True, "shared_tokens_share": 0.0, **schedule}},
        seed=0,
        digest="d",
    )
    return CellInfo(
        cell_id=f"{name}.cell",
        engine=name,
        workload=workload,
        load=load,
        t_start=T0,
        t_end=T0 + 100 * S,
        status="complete",
    )


class Log:
    """A run in memory, built request by request."""

    def __init__(self, *cells: CellInfo, slo: dict[str, float] | None = None) -> None:
        self.cells = list(cells)
        self.slo = slo or {}
        self.rows: dict[str, list[dict[str, Any]]] = {"requests": [], "chunks": [], "metrics": [], "system": []}

    def request(
        self, cell: CellInfo, index: int, t_send: int, ttft: int, gaps: list[int], tail: int = 0, **fields: Any
    ) -> None:
        times = np.cumsum([t_send + ttft, *gaps]).tolist()
        row: dict[str, Any] = dict.fromkeys(REQUEST_COLUMNS.names)
        row |= {
            "cell_id": cell.cell_id, "request_index": index, "t_ready": t_send - MS, "t_send": t_send,
            "t_first": times[0], "t_last": times[-1], "t_done": times[-1] + tail, "status": 200, "ok": True,
            "finish_reason": "length", "prompt_tokens": 10, "output_tokens": len(times), "token_source": "usage",
            "planned_prompt_tokens": 10, "planned_output_tokens": len(times), "chunks": len(times),
            "output_sha256": f"sha{index}", "warmup": index < 0,
        }  # fmt: skip
        row |= fields
        self.rows["requests"].append(row)
        for number, t in enumerate(times):
            chunk = {"request_index": index, "chunk": number, "t": t, "tokens": None, "coalesced": False}
            self.rows["chunks"].append({"cell_id": cell.cell_id, **chunk})

    def metric(self, cell: CellInfo, name: str, samples: list[tuple[int, float]]) -> None:
        self.rows["metrics"] += [{"cell_id": cell.cell_id, "t": t, "name": name, "value": v} for t, v in samples]

    def system(self, cell: CellInfo, source: str, name: str, label: str, samples: list[tuple[int, float]]) -> None:
        row = {"cell_id": cell.cell_id, "source": source, "name": name, "label": label}
        self.rows["system"] += [{**row, "t": t, "value": v} for t, v in samples]

    def run(self) -> Run:
        machine = MachineInfo(hostname="h", os="o", cpu="c", cores=2, memory_bytes=1, python="3", packages={})
        manifest = RunManifest(
            run_id="r", created_utc="2026", tool_version="0", command=[], seed=0, slo=self.slo, machine=machine,
            engines=[], cells=self.cells,
        )  # fmt: skip
        random.shuffle(self.rows["chunks"])  # the order of rows must not matter
        random.shuffle(self.rows["requests"])
        schemas = {
            "requests": REQUEST_COLUMNS,
            "chunks": CHUNK_COLUMNS,
            "metrics": METRIC_COLUMNS,
            "system": SYSTEM_COLUMNS,
        }
        tables = {name: pa.Table.from_pylist(rows, schema=schemas[name]) for name, rows in self.rows.items()}
        return Run(path=Path(), manifest=manifest, summary=None, **tables)

    def summaries(self) -> list[CellSummary]:
        return summarise(self.run()).cells

    def summary(self) -> CellSummary:
        (summary,) = self.summaries()
        return summary


def test_latencies_of_a_regular_log() -> None:
    cell = cell_info()
    log = Log(cell)
    for index in range(50):
        # One at a time: TTFT 50 ms, nine gaps of 20 ms, 3 ms to the end of the response.
        log.request(cell, index, T0 + index * 233 * MS, 50 * MS, [20 * MS] * 9, tail=3 * MS)
    summary = log.summary()
    assert (summary.requests_sent, summary.requests_ok, summary.requests_failed) == (50, 50, 0)
    assert summary.ttft.p50 == pytest.approx(50)
    assert summary.ttft_queue.p50 == pytest.approx(51)
    assert summary.ttft_schedule.n == 0
    assert summary.itl.n == 50 * 9
    assert summary.itl.p99 == pytest.approx(20)
    assert summary.tpot.mean == pytest.approx(20)
    assert summary.e2e.max == pytest.approx(50 + 180 + 3)
    assert (summary.output_tokens, summary.prompt_tokens, summary.cached_tokens) == (500, 500, None)
    assert summary.validity == "VALID", summary.reasons


def test_rates_count_in_the_window_what_they_divide_by() -> None:
    """Two slots; a long request begins last and drains alone: the drain is in neither numerator nor denominator."""
    cell = cell_info(concurrency=2)
    log = Log(cell)
    for index in range(20):
        log.request(cell, index, T0 + (index // 2) * S, 100 * MS, [100 * MS] * 8, tail=100 * MS)
    log.request(cell, 20, T0 + 10 * S, 100 * MS, [100 * MS] * 99)
    log.request(cell, 21, T0 + 10 * S, 100 * MS, [100 * MS] * 8, tail=100 * MS)
    summary = log.summary()
    # The load was kept up until the first end after the last start: 11 s.
    assert summary.window_s == pytest.approx(11)
    # 22 requests with 9 chunks before 11 s, and the 10 chunks of the long one that came by then instead of 9.
    assert summary.output_tokens_per_s == pytest.approx((22 * 9 + 1) / 11)
    assert summary.request_rate == pytest.approx(21 / 11)
    assert summary.in_flight_max == 2


def test_too_few_requests_for_a_loaded_window_use_the_whole_cell() -> None:
    cell = cell_info(concurrency=4)
    log = Log(cell)
    for index in range(5):
        log.request(cell, index, T0 + index * S, S, [S])
    summary = log.summary()
    assert summary.window_s == pytest.approx(6)
    assert summary.output_tokens_per_s == pytest.approx(10 / 6)


def test_peak_is_never_below_the_mean_when_chunks_carry_several_tokens() -> None:
    cell = cell_info()
    log = Log(cell)
    log.request(cell, 0, T0, 500 * MS, [500 * MS], output_tokens=40, planned_output_tokens=40)
    assert log.summary().output_tokens_per_s == pytest.approx(40)


def test_tokens_of_chunks_are_used_where_the_server_tells() -> None:
    cell = cell_info(rate=1.0)
    log = Log(cell)
    for index in range(4):
        log.request(cell, index, T0 + index * S, 100 * MS, [100 * MS], t_sched=T0 + index * S)
    log.request(cell, 4, T0 + 4 * S, -100 * MS, [4 * S], t_sched=T0 + 4 * S, output_tokens=10)
    for row in log.rows["chunks"]:
        if row["request_index"] == 4:
            row["tokens"] = 9 if row["chunk"] == 0 else 1
    # Planned arrivals: the window ends with the last of them, at 4 s, just after nine of its ten tokens.
    summary = log.summary()
    assert summary.window_s == pytest.approx(4)
    assert summary.output_tokens_per_s == pytest.approx((8 + 9) / 4)


def test_warmup_is_load_but_not_measured() -> None:
    cell = cell_info(concurrency=1)
    log = Log(cell)
    log.request(cell, -1, T0 - S, 900 * MS, [900 * MS], output_tokens=2)  # its last token falls into the window
    for index in range(10):
        log.request(cell, index, T0 + index * S, 100 * MS, [400 * MS])
    summary = log.summary()
    assert (summary.requests_ok, summary.output_tokens, summary.ttft.max) == (10, 20, pytest.approx(100))
    assert summary.window_s == pytest.approx(9.5)
    assert summary.output_tokens_per_s == pytest.approx(21 / 9.5)


def test_percentiles_need_two_samples_beyond_them() -> None:
    for n, known in ((1, ""), (4, "p50"), (19, "p50"), (20, "p50 p90"), (40, "p50 p90 p95"), (200, "p50 p90 p95 p99")):
        given = distribution(np.arange(n, dtype=float))
        assert {q for q in ("p50", "p90", "p95", "p99") if getattr(given, q) is not None} == set(known.split())
        assert given.mean == pytest.approx((n - 1) / 2)
    assert distribution(np.array([np.nan, 3.0])).n == 1


def test_failures_are_counted_by_class_and_kept_out_of_latencies() -> None:
    cell = cell_info()
    log = Log(cell)
    for index in range(8):
        log.request(cell, index, T0 + index * S, 100 * MS, [MS])
    log.request(cell, 8, T0 + 8 * S, MS, [MS], ok=False, error_class="truncated", output_tokens=None)
    log.request(cell, 9, T0 + 9 * S, MS, [MS], ok=False, error_class="http_5xx", output_tokens=None)
    summary = log.summary()
    assert summary.errors == {"http_5xx": 1, "truncated": 1}
    assert summary.ttft.n == 8
    assert summary.validity == "INVALID"
    assert any("20.0% of the requests failed" in reason for reason in summary.reasons)


def test_goodput_counts_requests_that_met_every_limit() -> None:
    cell = cell_info()
    log = Log(cell, slo={"ttft": 100.0, "tpot": 15.0})
    for index in range(10):
        ttft = (50 if index % 2 else 150) * MS
        log.request(cell, index, T0 + index * S, ttft, [(10 if index != 3 else 30) * MS] * 4, tail=S // 2)
    summary = log.summary()
    assert summary.window_s is not None
    assert summary.goodput == pytest.approx(4 / summary.window_s)  # 1, 5, 7, 9


def test_open_loop_lateness_is_in_the_schedule_latency_and_voids_the_cell() -> None:
    cell = cell_info(rate=10.0)
    log = Log(cell)
    for index in range(60):
        planned = T0 + index * 100 * MS
        late = 3 * MS * index  # falls behind by 3 ms with each request
        log.request(cell, index, planned + late, 50 * MS, [MS], t_sched=planned, t_ready=planned)
    summary = log.summary()
    assert summary.ttft.max == pytest.approx(50)
    assert summary.ttft_schedule.max == pytest.approx(50 + 3 * 59)
    assert summary.validity == "INVALID"
    assert any("left late" in reason for reason in summary.reasons)
    assert any("arrival rate" in reason for reason in summary.reasons)


def test_a_dawdling_closed_loop_is_noticed() -> None:
    cell = cell_info(concurrency=1)
    log = Log(cell)
    for index in range(20):
        log.request(cell, index, T0 + index * S, 100 * MS, [700 * MS])  # 200 ms of every second without a request
    summary = log.summary()
    assert summary.validity == "INVALID"
    assert any("in flight were missing" in reason for reason in summary.reasons)


def test_memory_numbers_are_weighted_by_time() -> None:
    cell = cell_info(concurrency=1)
    log = Log(cell)
    for index in range(10):
        log.request(cell, index, T0 + index * S, 500 * MS, [500 * MS])
    # 10 s window; unevenly sampled: 100 tokens for 8 s, 300 for 2 s (a plain mean of samples would say 250).
    moments = [T0 - S, T0 + 8 * S, T0 + 8 * S + S // 2, T0 + 9 * S]
    for name, values in {
        "kv_slots_live": [100, 300, 300, 300],
        "kv_slots_allocated": [112, 320, 320, 320],
        "kv_slots_reserved": [1000] * 4,
        "kv_pool_bytes": [2**29] * 4,
        "requests_running": [2, 6, 6, 6],
        "ledger_token_states": [100, 300, 300, 300],
        "ledger_reserved": [0, 40, 40, 40],
        "ledger_internal": [12, 20, 20, 20],
        "ledger_external": [0, 0, 0, 0],
        "ledger_cached": [88, 140, 140, 140],
        "ledger_free": [800, 500, 500, 500],
        "preemptions_total": [5, 6, 2, 3],  # restarted in between: 1 + 2 + 1
    }.items():
        log.metric(cell, name, list(zip(moments, map(float, values), strict=True)))
    summary = log.summary()
    assert summary.running_mean == pytest.approx(2 * 0.8 + 6 * 0.2)
    assert summary.running_max == 6
    assert summary.kv_utilisation == pytest.approx(0.14)
    assert summary.kv_utilisation_peak == pytest.approx(0.3)
    assert summary.kv_internal_fragmentation == pytest.approx((153.6 - 140) / 153.6)
    waste = {"reserved": 8.0, "internal": 13.6}
    assert summary.kv_waste == pytest.approx(sum(waste.values()) / (140 + 8 + 13.6))
    assert sum(summary.kv_waste_sum.values()) == pytest.approx(1.0)
    assert summary.kv_waste_sum["internal"] == pytest.approx(0.0136)
    assert summary.tokens_held_per_gib == pytest.approx(280)
    assert summary.output_tokens_per_s_per_gib == pytest.approx(2 * 2)
    assert summary.preemptions == 4


def test_what_no_engine_tells_is_null_and_never_zero() -> None:
    cell = cell_info()
    log = Log(cell)
    log.request(cell, 0, T0, MS, [MS])
    summary = log.summary()
    for name in ("running_mean", "kv_utilisation", "kv_waste", "preemptions", "prefix_hit_rate", "server_rss_bytes"):
        assert getattr(summary, name) is None
    assert summary.kv_waste_sum == {}
    assert summary.client_lag_ms_p99 is None


def test_part_of_a_ledger_is_no_ledger() -> None:
    cell = cell_info()
    log = Log(cell)
    log.request(cell, 0, T0, S, [S])
    log.metric(cell, "ledger_internal", [(T0, 5.0)])
    log.metric(cell, "ledger_free", [(T0, 5.0)])
    summary = log.summary()
    assert (summary.kv_waste, summary.kv_waste_sum) == (None, {})


def test_processes_are_summed_and_lag_is_judged_against_what_is_reported() -> None:
    cell = cell_info()
    log = Log(cell)
    for index in range(10):
        log.request(cell, index, T0 + index * S, 100 * MS, [20 * MS] * 45)
    for label, size in (("1", 100.0), ("2", 50.0)):
        log.system(cell, "process", "rss_bytes", label, [(T0 + index * S, size + index) for index in range(10)])
    log.system(cell, "client", "loop_lag_ns", "", [(T0 + index * 20 * MS, 11e6) for index in range(400)])
    summary = log.summary()
    assert summary.server_rss_bytes == 168
    assert summary.client_lag_ms_p99 == pytest.approx(11)
    assert summary.validity == "INVALID"  # 11 ms of a 20 ms gap
    assert any("55%" in reason for reason in summary.reasons)


def test_equal_outputs_are_compared_only_where_the_same_was_asked() -> None:
    one, two, other = cell_info("one"), cell_info("two"), cell_info("other")
    other.workload.digest = "another"
    log = Log(one, two, other)
    for cell in (one, two, other):
        for index in range(4):
            sha = "different" if cell is two and index == 3 else f"sha{index}"
            log.request(cell, index, T0 + index * S, MS, [MS], output_sha256=sha)
    log.request(one, 4, T0 + 4 * S, MS, [MS])  # the other engine was not asked this one
    summaries = {summary.engine: summary for summary in log.summaries()}
    assert summaries["one"].tokens_identical_to == {"two.cell": 0.75}
    assert summaries["two"].tokens_identical_to == {"one.cell": 0.75}
    assert summaries["other"].tokens_identical_to == {}


def test_unmeant_prefix_hits_and_wrong_lengths_are_noticed() -> None:
    cell = cell_info(shared_tokens_share=0.1)
    log = Log(cell)
    for index in range(10):
        log.request(
            cell, index, T0 + index * S, MS, [998 * MS], cached_tokens=4, planned_output_tokens=5 if index == 1 else 2
        )
    summary = log.summary()
    assert summary.prefix_hit_rate == pytest.approx(0.4)
    assert summary.validity == "SUSPECT"
    assert any("30.0% of the prompt tokens came from a cache" in reason for reason in summary.reasons)
    assert any("10.0% of the answers" in reason for reason in summary.reasons)


def test_silent_telemetry_lowers_validity() -> None:
    cell = cell_info()
    log = Log(cell)
    for index in range(10):
        log.request(cell, index, T0 + index * S, MS, [998 * MS])
    log.metric(cell, "requests_running", [(T0 + index * S // 4, 1.0) for index in range(16)])  # stops after 4 s
    summary = log.summary()
    assert summary.validity == "SUSPECT"
    assert any("metric samples are missing" in reason for reason in summary.reasons)


def test_an_empty_cell_is_invalid_and_has_no_numbers() -> None:
    summary = Log(cell_info()).summary()
    assert (summary.validity, summary.window_s, summary.requests_sent) == ("INVALID", None, 0)
    assert summary.reasons == ["no request succeeded"]


def merged_log(share: float) -> CellSummary:
    """Answers of a chunk every 20 ms, of which a late client read so many together with the next."""
    cell = cell_info(concurrency=10)
    log = Log(cell)
    rng = random.Random(5)
    free = [T0] * 10
    for index in range(40):
        gaps = [20 * MS + rng.randrange(MS) for _ in range(250)]
        blurred, number = 0, 0
        while number < len(gaps) - 1:
            if rng.random() < share:
                # The first of the two bears the time of the second.
                gaps[number], gaps[number + 1] = gaps[number] + gaps[number + 1], 0
                blurred += 1
                number += 1
            number += 1
        start = free[index % 10]
        free[index % 10] += 50 * MS + sum(gaps)
        log.request(cell, index, start, 50 * MS, gaps, stamp="kernel")
        if blurred:
            log.system(cell, "client", "blurred_chunks", "", [(start + 5 * S + index, blurred)])
    return log.summary()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.004, 0.008, 0.012, 0.03, 0.08, 0.2])
def test_a_bent_itl_percentile_is_never_valid(share: float) -> None:
    summary = merged_log(share)
    assert summary.blurred_chunks == pytest.approx(share, rel=0.3, abs=5e-4)
    itl = summary.itl
    assert itl.p50 is not None
    assert itl.p95 is not None
    assert itl.p99 is not None
    if itl.p99 > 22:
        assert summary.validity != "VALID", itl
    if itl.p95 > 22 or itl.p50 < 19:
        assert summary.validity == "INVALID", itl
    if share <= 0.004:
        assert summary.validity == "VALID", summary.reasons
    else:
        assert any("read together" in reason for reason in summary.reasons)


def test_stamps_of_the_client_itself_cannot_be_blurred() -> None:
    cell = cell_info()
    log = Log(cell)
    log.request(cell, 0, T0, 50 * MS, [20 * MS] * 9, stamp="user")
    assert log.summary().blurred_chunks is None


def test_a_foreign_process_on_the_gpu_is_named() -> None:
    cell = cell_info()
    log = Log(cell)
    log.request(cell, 0, T0, 50 * MS, [20 * MS] * 9)
    assert not any("other processes" in reason for reason in log.summary().reasons)  # nobody looked
    log.system(cell, "nvml", "foreign_processes", "0", [(T0 + index * 10 * MS, 0.0) for index in range(10)])
    assert not any("other processes" in reason for reason in log.summary().reasons)
    log.system(cell, "nvml", "foreign_processes", "1", [(T0 + 60 * MS, 2.0)])
    summary = log.summary()
    assert summary.validity == "SUSPECT"
    assert "2 other processes used the engine's GPU" in summary.reasons


def test_cpu_that_others_used_in_the_measured_window_is_named() -> None:
    cell = cell_info()
    log = Log(cell)
    log.request(cell, 0, T0, 50 * MS, [20 * MS] * 9)
    log.system(cell, "machine", "foreign_cpu_percent", "", [(T0 - 1000 * MS, 100.0), (T0, 30.0), (T0 + 100 * MS, 70.0)])
    log.system(cell, "machine", "stolen_cpu_percent", "", [(T0, 4.0)])
    summary = log.summary()
    mean = (30 * 100 + 70 * 130) / 230
    assert summary.validity == ("INVALID" if mean > 50 else "SUSPECT")
    assert summary.reasons == [f"other processes used {mean:.0f}% of the CPUs that the engine ran on"]
