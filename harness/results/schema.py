"""The run directory: what is in it, column by column.  The writer, the metrics and the reports all read this page.

::

    RUN/
      run.json          RunManifest: what was asked, of whom, on which machine, how it ended
      requests.parquet  one row a request (REQUEST_COLUMNS)
      chunks.parquet    one row a content chunk (CHUNK_COLUMNS)
      metrics.parquet   one row a sample of an engine metric, in our vocabulary (METRIC_COLUMNS)
      system.parquet    one row a sample of process or device telemetry (SYSTEM_COLUMNS)
      summary.json      Summary: the numbers computed from the tables above, per cell, with validity
      report.html       the page (rebuilt at any time by ``pagedbench report RUN``)

A *cell* is one engine under one workload at one load level, one repeat.  All times are monotonic nanoseconds of the client's
machine.  A value that was not measured is null, never 0.
"""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

ErrorClass = Literal[
    "connect",
    "tls",
    "timeout_first",
    "timeout_idle",
    "http_4xx",
    "http_5xx",
    "in_band",
    "truncated",
    "malformed",
    "cancelled",
]
TokenSource = Literal["usage", "ids", "tokenizer", "chunks"]
Validity = Literal["VALID", "SUSPECT", "INVALID"]
# "killed" is never written: a reader says so of a run that still reads "running" although no process holds it.
RunStatus = Literal["running", "complete", "interrupted", "failed", "killed"]

REQUEST_COLUMNS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("request_index", pa.int64()),  # position in the cell's schedule
        ("conversation", pa.int64()),  # null for single-turn workloads
        ("turn", pa.int64()),
        ("t_sched", pa.int64()),  # planned start; null in a closed loop
        ("t_ready", pa.int64()),  # slot granted
        ("t_send", pa.int64()),  # request bytes written
        ("t_first", pa.int64()),  # first content chunk
        ("t_last", pa.int64()),  # last content chunk
        ("t_done", pa.int64()),  # end of the response, or the moment of the failure
        ("status", pa.int64()),  # HTTP status, null when none came
        ("ok", pa.bool_()),
        ("error_class", pa.string()),
        ("error", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("token_source", pa.string()),
        ("planned_prompt_tokens", pa.int64()),
        ("planned_output_tokens", pa.int64()),
        ("chunks", pa.int64()),
        ("output_sha256", pa.string()),
        ("warmup", pa.bool_()),
        ("stamp", pa.string()),  # who stamped its bytes: "kernel" or "user" (this process, before decoding)
    ]
)

CHUNK_COLUMNS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("request_index", pa.int64()),
        ("chunk", pa.int64()),
        ("t", pa.int64()),
        ("tokens", pa.int64()),  # null when the server does not say
        ("coalesced", pa.bool_()),  # arrived in the same read as the chunk before it
    ]
)

# Answers kept of a run with --verify, to be judged once the engine is idle.
ANSWER_COLUMNS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("request_index", pa.int64()),
        ("path", pa.string()),  # of the endpoint, without a leading slash
        ("body", pa.string()),  # the request as it was sent, JSON
        ("text", pa.string()),  # the streamed answer, its pieces joined
    ]
)

METRIC_COLUMNS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("t", pa.int64()),
        ("name", pa.string()),  # one of METRIC_NAMES
        ("value", pa.float64()),
    ]
)

# Our vocabulary for engine metrics (DESIGN: words with one meaning).  Unit in brackets.
METRIC_NAMES: dict[str, str] = {
    "requests_running": "sequences that hold KV and are computed now [1]",
    "requests_waiting": "requests queued [1]",
    "preemptions_total": "preemptions since start [1]",
    "preemptions_swapped_total": "preemptions since start that swapped to host memory [1]",
    "recomputed_tokens_total": "tokens computed once more after a preemption since start [tokens]",
    "kv_host_blocks": "blocks of the host pool [blocks]",
    "kv_host_blocks_used": "blocks of the host pool that hold K/V of preempted sequences [blocks]",
    "swap_out_blocks_total": "blocks copied to the host pool since start [blocks]",
    "swap_in_blocks_total": "blocks copied back since start [blocks]",
    "swap_out_bytes_total": "bytes copied to the host pool since start [bytes]",
    "swap_in_bytes_total": "bytes copied back since start [bytes]",
    "kv_usage": "share of the KV pool that requests hold [0..1]",
    "kv_slots_reserved": "token slots in the pool [tokens]",
    "kv_slots_allocated": "slots of blocks with a holder [tokens]",
    "kv_slots_live": "tokens that can still be attended, each once [tokens]",
    "kv_slots_evictable": "slots of cached blocks without a holder [tokens]",
    "kv_slots_logical": "tokens summed over sequences, shared ones counted each time [tokens]",
    "ledger_token_states": "slots that hold a token of a running sequence [tokens]",
    "ledger_reserved": "slots kept for tokens that will still come [tokens]",
    "ledger_internal": "slots allocated that no token will use [tokens]",
    "ledger_external": "slots free but not usable by the policy [tokens]",
    "ledger_cached": "slots of evictable cached blocks [tokens]",
    "ledger_free": "slots free [tokens]",
    "kv_block_size": "slots in a block [tokens]",
    "kv_pool_bytes": "bytes of the KV pool [bytes]",
    "prompt_tokens_total": "prompt tokens computed or found cached since start [tokens]",
    "generation_tokens_total": "tokens generated since start [tokens]",
    "prefix_cache_queries_total": "prompt tokens looked up in the prefix cache since start [tokens]",
    "prefix_cache_hits_total": "prompt tokens found there since start [tokens]",
}

SYSTEM_COLUMNS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("t", pa.int64()),
        ("source", pa.string()),  # "process" | "client" | "nvml"
        ("name", pa.string()),  # rss_bytes, pss_bytes, cpu_percent, loop_lag_ns, device_used_bytes, power_w, ...
        ("label", pa.string()),  # pid or device index
        ("value", pa.float64()),
    ]
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EngineInfo(Strict):
    """One engine as it was found."""

    name: str
    url: str
    recipe: str | None = None
    kind: str | None = None  # "pagedbench", "vllm", "llama.cpp", ... or null when unknown
    version: str | None = None
    model: str | None = None
    max_model_len: int | None = None
    dtype: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)  # flags, block size, KV bytes, policy: as far as it tells


class WorkloadInfo(Strict):
    name: str  # "chat", "long-output", "concurrency"
    parameters: dict[str, Any]
    seed: int
    digest: str  # sha256 over every request of the schedule


class LoadInfo(Strict):
    """How requests are released: ``closed`` keeps ``concurrency`` in flight, ``trace`` follows times that the workload
    brings, the others plan ``rate`` arrivals a second (see ``workloads.request.Load``)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    mode: Literal["closed", "poisson", "trace", "constant", "gamma", "ramp"]
    concurrency: int | None = None
    rate: float | None = None  # requests/s; of a ramp, where it begins
    burstiness: float | None = None  # shape of gamma gaps
    ramp_to: float | None = None  # requests/s
    ramp_steps: int = 0


class CellInfo(Strict):
    cell_id: str
    engine: str
    workload: WorkloadInfo
    load: LoadInfo
    repeat: int = 0
    t_start: int | None = None
    t_end: int | None = None
    status: RunStatus = "running"


class CalibrationLevel(Strict):
    """What this machine's client reported at so many streams, beside what the engine of known times did."""

    streams: int
    chunks_per_s: float  # offered
    failed: int
    ttft_p50_error_ms: float  # reported - true
    ttft_p99_error_ms: float
    itl_p99_error: float  # share of the true one
    delivered: float | None  # share of the chunks that so many streams would get without a pause
    cpu_us_per_chunk: float
    client_cpu_percent: float
    engine_itl_p99_ms: float  # the engine's own
    passed: bool
    reason: str | None = None  # the bound that was missed


class Calibration(Strict):
    """How far the client of a machine can be trusted (``pagedbench calibrate``)."""

    schema_version: int = SCHEMA_VERSION
    created_utc: str
    hostname: str
    cores: int
    stamp: Literal["kernel", "user"]
    levels: list[CalibrationLevel]
    ceiling_streams: int | None  # the highest level that was kept up with
    ceiling_chunks_per_s: float | None


class MachineInfo(Strict):
    hostname: str
    os: str
    cpu: str
    cores: int
    memory_bytes: int
    python: str
    packages: dict[str, str]
    gpus: list[dict[str, Any]] = Field(default_factory=list)
    calibration: Calibration | None = None  # of its load client, when it was measured


class ProbeInfo(Strict):
    """One level of a search: of ``total`` requests ``good`` met every SLO; ``low`` to ``high`` is Wilson's interval.

    Requests of cells that could not be believed are not among them; a level is ``inconclusive`` when those were all
    that could be had.
    """

    level: float
    good: int
    total: int
    low: float
    high: float
    verdict: Literal["pass", "fail", "undecided", "inconclusive"]
    disbelieved: int = 0  # cells that decided nothing
    reason: str | None = None  # why the last of them could not be believed


class SearchInfo(Strict):
    """What a search for the highest load under an SLO found for one engine and workload."""

    engine: str
    workload: str
    over: Literal["rate", "concurrency"]  # requests/s or requests in flight
    attainment: float  # share of the requests that must meet every SLO
    confidence: float
    best: float | None = None  # the highest level that passes; null when none was shown to
    refuted: float | None = None  # the lowest level that does not
    inconclusive: bool = False  # the next level above ``best`` could not be measured
    sentence: str
    probes: list[ProbeInfo]


class RunManifest(Strict):
    schema_version: int = SCHEMA_VERSION
    run_id: str
    created_utc: str  # ISO 8601
    tool_version: str
    command: list[str]
    seed: int
    slo: dict[str, float] = Field(default_factory=dict)  # metric -> limit, ms
    machine: MachineInfo
    engines: list[EngineInfo]
    cells: list[CellInfo]
    status: RunStatus = "running"
    ended: str | None = None  # why it ended, when not well: a sentence for people
    plan: dict[str, Any] | None = None  # what ``pagedbench run --resume`` goes on with
    generation: int = 0  # how many times it was resumed; names the tables that count (see writer.py)
    searches: list[SearchInfo] = Field(default_factory=list)


class Distribution(Strict):
    """Percentiles that the sample supports (n large enough), others null.  Milliseconds unless the field says otherwise."""

    n: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


class CellSummary(Strict):
    """What one cell came to.  Rates are per second of the measured window ``window_s``."""

    cell_id: str
    engine: str
    workload: str
    load: LoadInfo
    repeat: int
    validity: Validity
    reasons: list[str] = Field(default_factory=list)
    window_s: float | None = None
    requests_sent: int
    requests_ok: int
    requests_failed: int
    errors: dict[str, int] = Field(default_factory=dict)  # class -> count
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    request_rate: float | None = None  # completed requests/s
    output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None
    goodput: float | None = None  # requests/s that met every SLO
    ttft: Distribution  # from t_send
    ttft_queue: Distribution  # from t_ready
    ttft_schedule: Distribution  # from t_sched
    itl: Distribution  # pooled gaps between content chunks
    tpot: Distribution
    e2e: Distribution
    running_mean: float | None = None  # requests running at once, time-weighted, from the engine
    running_max: float | None = None
    in_flight_max: int | None = None  # from the client
    preemptions: float | None = None
    kv_reserved: float | None = None  # slots
    kv_utilisation: float | None = None  # live / reserved, time-weighted over the window
    kv_utilisation_peak: float | None = None
    kv_peak_tokens: float | None = None  # slots allocated at the peak, as far as sampling saw it
    kv_internal_fragmentation: float | None = None  # (allocated - live) / allocated
    kv_waste: float | None = None  # (reserved-for-later + internal + external) / (pool - cached - free)
    kv_waste_sum: dict[str, float] = Field(default_factory=dict)  # mean share of the pool per ledger word
    kv_live_source: Literal["engine", "client"] | None = None  # whose count of live tokens kv_utilisation uses
    kv_sharing: float | None = None  # logical / live, from the engine
    kv_left_over: float | None = None  # slots still allocated after the last answer
    client_live_mean: float | None = None  # tokens that the client's running requests held (see client_memory.py)
    client_live_peak: float | None = None
    stalls: int | None = None  # gaps in streams that look like preemptions
    stall_s: float | None = None  # seconds lost in them
    recomputed_tokens: float | None = None  # computed again after preemptions, from the engine
    energy_j: float | None = None  # of all devices over the window
    energy_j_per_output_token: float | None = None
    tokens_held_per_gib: float | None = None
    output_tokens_per_s_per_gib: float | None = None
    prefix_hit_rate: float | None = None
    server_rss_bytes: float | None = None
    device_used_bytes: float | None = None
    client_lag_ms_p99: float | None = None
    client_cpu_percent: float | None = None
    kernel_stamped: float | None = None  # share of the answers whose bytes the kernel stamped
    blurred_chunks: float | None = None  # share that a late client read together with others, so that all bear one time
    steady_from_s: float | None = None  # where warm-up was found to end (MSER-5), seconds after the first request
    tokens_identical_to: dict[str, float] = Field(
        default_factory=dict
    )  # other cell -> share of requests with equal output


class Summary(Strict):
    schema_version: int = SCHEMA_VERSION
    run_id: str
    cells: list[CellSummary]
    searches: list[SearchInfo] = Field(default_factory=list)
