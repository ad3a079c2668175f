"""Synthetic run directories: a small event simulation of engines in a closed loop, written as `pagedbench run` would.

The summary here is computed by the test's own arithmetic, independently of the harness, so that the page can be checked
against it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.results.schema import (
    CHUNK_COLUMNS,
    METRIC_COLUMNS,
    REQUEST_COLUMNS,
    SYSTEM_COLUMNS,
    CellInfo,
    CellSummary,
    Distribution,
    EngineInfo,
    LoadInfo,
    MachineInfo,
    RunManifest,
    RunStatus,
    Summary,
    WorkloadInfo,
)
from reports import build_report
from tests.reports.browser import Page, opened

MS = 1_000_000
BLOCK = 16
SCHEMAS = {
    "requests": REQUEST_COLUMNS,
    "chunks": CHUNK_COLUMNS,
    "metrics": METRIC_COLUMNS,
    "system": SYSTEM_COLUMNS,
}
LENGTHS = {"chat": (90, 40), "long-output": (30, 120), "concurrency": (60, 60), "agents": (150, 25)}


@dataclass(frozen=True)
class Engine:
    """What the simulation needs to know of one engine."""

    name: str
    policy: str = "paged"  # or "contiguous"
    tells: str = "ledger"  # "ledger" | "slots" | "usage" | "nothing"
    step_ms: float = 6.0
    pool: int = 4096
    max_len: int = 512
    kind: str | None = "pagedbench"
    version: str | None = "0.1.0"
    model: str = "SmolLM2-135M-Instruct"
    dtype: str = "float32"


@dataclass
class Tables:
    """Rows gathered so far, by table."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    system: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Job:
    """One request in flight in the simulation."""

    index: int
    prompt: int
    output: int
    ready: int
    times: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.prompt + len(self.times)


def simulate(
    engine: Engine, cell_id: str, lengths: list[tuple[int, int]], concurrency: int, t0: int, rng: np.random.Generator
) -> tuple[Tables, int]:
    """Serve ``lengths`` (prompt, output) with ``concurrency`` in flight; returns the rows and the end time, ns."""
    tables = Tables()
    queue = deque(enumerate(lengths))
    waiting: deque[Job] = deque()
    running: list[Job] = []
    done: list[Job] = []
    now, next_sample = t0, t0

    def held(job: Job) -> int:
        return engine.max_len if engine.policy == "contiguous" else -(-(job.prompt + job.output) // BLOCK) * BLOCK

    while queue or waiting or running:
        while queue and len(waiting) + len(running) < concurrency:
            index, (prompt, output) = queue.popleft()
            waiting.append(Job(index, prompt, output, now))
        prefill = 0
        while waiting and sum(map(held, running)) + held(waiting[0]) <= engine.pool:
            running.append(waiting.popleft())
            prefill += running[-1].prompt
        step = engine.step_ms + 0.12 * len(running) + 0.03 * prefill
        now += int(step * MS * rng.lognormal(0, 0.08))
        for job in running:
            job.times.append(now + int(rng.integers(0, 200_000)))
        while next_sample <= now:
            tables.metrics += samples(engine, cell_id, next_sample, running, len(waiting))
            tables.system += [
                {"cell_id": cell_id, "t": next_sample, "source": s, "name": n, "label": "1", "value": float(v)}
                for s, n, v in (
                    ("client", "loop_lag_ns", rng.exponential(2e5)),
                    ("client", "cpu_percent", 20 + rng.normal(0, 2)),
                    ("process", "rss_bytes", 9e8 + rng.normal(0, 1e6)),
                )
            ]
            next_sample += 50 * MS
        done += [job for job in running if len(job.times) >= job.output]
        running = [job for job in running if len(job.times) < job.output]
    for job in sorted(done, key=lambda j: j.index):
        text = hashlib.sha256(f"{job.index} {job.prompt} {job.output}".encode()).hexdigest()
        tables.requests.append(
            {
                "cell_id": cell_id,
                "request_index": job.index,
                "t_ready": job.ready,
                "t_send": job.ready + 200_000,
                "t_first": job.times[0],
                "t_last": job.times[-1],
                "t_done": job.times[-1] + 50_000,
                "status": 200,
                "ok": True,
                "finish_reason": "length",
                "prompt_tokens": job.prompt,
                "output_tokens": job.output,
                "cached_tokens": 0,
                "token_source": "usage",
                "planned_prompt_tokens": job.prompt,
                "planned_output_tokens": job.output,
                "chunks": job.output,
                "output_sha256": text,
                "warmup": False,
            }
        )
        tables.chunks += [
            {"cell_id": cell_id, "request_index": job.index, "chunk": i, "t": t, "tokens": 1, "coalesced": False}
            for i, t in enumerate(job.times)
        ]
    return tables, now


def samples(engine: Engine, cell_id: str, t: int, running: list[Job], waiting: int) -> Iterable[dict[str, Any]]:
    """What a scrape of ``engine`` at ``t`` would have given, in our vocabulary."""
    tokens = sum(job.tokens for job in running)
    if engine.policy == "contiguous":
        allocated = len(running) * engine.max_len
        later = sum(job.output - len(job.times) for job in running)
        rest = engine.pool - allocated
        external, cached = (rest if rest < engine.max_len else 0), 0
    else:
        allocated = sum(-(-job.tokens // BLOCK) * BLOCK for job in running)
        later, external = 0, 0
        cached = min(engine.pool - allocated, 640)
    values: dict[str, float] = {}
    if engine.tells != "nothing":
        values |= {"requests_running": len(running), "requests_waiting": waiting, "preemptions_total": 0}
        values |= {"kv_usage": allocated / engine.pool}
    if engine.tells in ("slots", "ledger"):
        values |= {"kv_slots_reserved": engine.pool, "kv_slots_allocated": allocated, "kv_slots_live": tokens}
        values |= {"kv_slots_evictable": cached, "kv_slots_logical": tokens, "kv_block_size": BLOCK}
    if engine.tells == "ledger":
        values |= {"ledger_token_states": tokens, "ledger_reserved": later}
        values |= {"ledger_internal": allocated - tokens - later, "ledger_external": external}
        values |= {"ledger_cached": cached, "ledger_free": engine.pool - allocated - cached - external}
    return [{"cell_id": cell_id, "t": t, "name": k, "value": float(v)} for k, v in values.items()]


def distribution(values: np.ndarray) -> Distribution:
    """Milliseconds from nanoseconds; percentiles only where the sample supports them."""
    if values.size == 0:
        return Distribution(n=0)
    ms = values / MS
    need = {"p50": 1, "p90": 20, "p95": 40, "p99": 200}
    found = {k: float(np.percentile(ms, float(k[1:]))) for k, n in need.items() if ms.size >= n}
    return Distribution(n=int(ms.size), mean=float(ms.mean()), max=float(ms.max()), **found)


def summarise(engine: Engine, info: CellInfo, tables: Tables) -> CellSummary:
    """The cell's numbers, by this test's own arithmetic."""
    rows = tables.requests
    ok = [r for r in rows if r["ok"]]
    gaps: list[int] = []
    by_request: dict[int, list[int]] = {}
    for c in tables.chunks:
        by_request.setdefault(c["request_index"], []).append(c["t"])
    good = {r["request_index"] for r in ok}
    for index, times in by_request.items():
        if index in good:
            gaps += np.diff(times).tolist()
    window = (max(r["t_done"] for r in rows) - min(r["t_send"] for r in rows)) / 1e9 if rows else None
    out = sum(r["output_tokens"] for r in ok) if ok else None

    def mean(name: str) -> float | None:
        found = [m["value"] for m in tables.metrics if m["name"] == name]
        return float(np.mean(found)) if found else None

    def peak(name: str) -> float | None:
        found = [m["value"] for m in tables.metrics if m["name"] == name]
        return float(np.max(found)) if found else None

    share = {
        word: value / engine.pool
        for word in ("token_states", "reserved", "internal", "external", "cached", "free")
        if (value := mean(f"ledger_{word}")) is not None
    }
    live, allocated = mean("kv_slots_live"), mean("kv_slots_allocated")
    used = 1 - share.get("cached", 0) - share.get("free", 0)
    waste = (share["reserved"] + share["internal"] + share["external"]) / used if share and used > 0 else None
    peak_live = peak("kv_slots_live")
    lag = [s["value"] for s in tables.system if s["name"] == "loop_lag_ns"]
    return CellSummary(
        cell_id=info.cell_id,
        engine=info.engine,
        workload=info.workload.name,
        load=info.load,
        repeat=info.repeat,
        validity="VALID",
        window_s=window,
        requests_sent=len(rows),
        requests_ok=len(ok),
        requests_failed=len(rows) - len(ok),
        errors=dict(Counter(r["error_class"] for r in rows if not r["ok"])),
        prompt_tokens=sum(r["prompt_tokens"] for r in ok) if ok else None,
        output_tokens=out,
        cached_tokens=0 if ok else None,
        request_rate=len(ok) / window if window else None,
        output_tokens_per_s=out / window if out and window else None,
        total_tokens_per_s=(out + sum(r["prompt_tokens"] for r in ok)) / window if out and window else None,
        ttft=distribution(np.array([r["t_first"] - r["t_send"] for r in ok], dtype=float)),
        ttft_queue=distribution(np.array([r["t_first"] - r["t_ready"] for r in ok], dtype=float)),
        ttft_schedule=Distribution(n=0),
        itl=distribution(np.array(gaps, dtype=float)),
        tpot=distribution(
            np.array([(r["t_last"] - r["t_first"]) / max(1, r["output_tokens"] - 1) for r in ok], dtype=float)
        ),
        e2e=distribution(np.array([r["t_done"] - r["t_send"] for r in ok], dtype=float)),
        running_mean=mean("requests_running"),
        running_max=peak("requests_running"),
        in_flight_max=info.load.concurrency,
        preemptions=peak("preemptions_total"),
        kv_reserved=mean("kv_slots_reserved"),
        kv_utilisation=live / engine.pool if live is not None else None,
        kv_utilisation_peak=peak_live / engine.pool if peak_live is not None else None,
        kv_internal_fragmentation=(allocated - live) / allocated if allocated and live is not None else None,
        kv_waste=waste,
        kv_waste_sum=share,
        server_rss_bytes=mean_of(tables, "rss_bytes"),
        client_lag_ms_p99=float(np.percentile(lag, 99)) / MS if lag else None,
        client_cpu_percent=mean_of(tables, "cpu_percent"),
    )


def mean_of(tables: Tables, name: str) -> float | None:
    found = [s["value"] for s in tables.system if s["name"] == name]
    return float(np.mean(found)) if found else None


@dataclass
class RunDraft:
    """A run in memory that a test may spoil before it is written."""

    manifest: RunManifest
    summary: Summary
    tables: Tables

    def cell(self, engine: str, workload: str | None = None) -> CellSummary:
        """The first cell of ``engine`` (under ``workload``)."""
        return next(
            c for c in self.summary.cells if c.engine == engine and (workload is None or c.workload == workload)
        )

    def write(self, path: Path, with_summary: bool = True) -> Path:
        """As a finished run: Parquet tables and a summary."""
        path.mkdir(parents=True)
        (path / "run.json").write_text(self.manifest.model_dump_json(indent=1))
        if with_summary:
            (path / "summary.json").write_text(json.dumps(self.summary.model_dump()))
        for name, schema in SCHEMAS.items():
            table = pa.Table.from_pylist(getattr(self.tables, name), schema=schema)
            pq.write_table(table, path / f"{name}.parquet")
        return path

    def write_killed(self, path: Path, status: RunStatus = "running") -> Path:
        """As a run that was killed: journals whose last line is cut short, and no summary."""
        path.mkdir(parents=True)
        manifest = self.manifest.model_copy(update={"status": status})
        (path / "run.json").write_text(manifest.model_dump_json())
        for name in SCHEMAS:
            lines = [json.dumps(row) for row in getattr(self.tables, name)]
            (path / f"{name}.jsonl").write_text("\n".join(lines)[:-7])
        return path


def draft_run(
    engines: Iterable[Engine],
    workloads: Iterable[str] = ("chat", "long-output", "concurrency"),
    concurrency: Iterable[int] = (32,),
    repeats: int = 1,
    requests: int = 48,
    seed: int | None = None,
    run_id: str = "20261123-074000-synthetic",
) -> RunDraft:
    """A run of every engine under every workload at every level, ``repeats`` times."""
    seed = int(np.random.SeedSequence().entropy % 2**31) if seed is None else seed  # type: ignore[operator]
    engines, rng = list(engines), np.random.default_rng(seed)
    cells: list[CellInfo] = []
    summaries: list[CellSummary] = []
    rows = Tables()
    clock = 1_000_000_000_000
    for workload in workloads:
        mean_in, mean_out = LENGTHS[workload]
        drawn = rng.lognormal(0, 0.5, (requests, 2))
        lengths = [(max(4, int(a * mean_in)), max(3, int(b * mean_out))) for a, b in drawn]
        lengths = [(min(a, 250), min(b, 250)) for a, b in lengths]
        digest = hashlib.sha256(f"{workload} {lengths}".encode()).hexdigest()
        for level in concurrency:
            for engine in engines:
                for repeat in range(repeats):
                    cell_id = f"{engine.name}.{workload}.c{level}.r{repeat}"
                    tables, end = simulate(engine, cell_id, lengths, level, clock, rng)
                    info = CellInfo(
                        cell_id=cell_id,
                        engine=engine.name,
                        workload=WorkloadInfo(
                            name=workload, parameters={"requests": requests}, seed=seed, digest=digest
                        ),
                        load=LoadInfo(mode="closed", concurrency=level),
                        repeat=repeat,
                        t_start=clock,
                        t_end=end,
                        status="complete",
                    )
                    cells.append(info)
                    summaries.append(summarise(engine, info, tables))
                    for name in SCHEMAS:
                        getattr(rows, name).extend(getattr(tables, name))
                    clock = end + 1_000 * MS
    agree(rows, cells, summaries)
    manifest = RunManifest(
        run_id=run_id,
        created_utc="2026-11-23T07:40:00Z",
        tool_version="0.1.0",
        command=["pagedbench", "run", *(f"--engine={e.name}=http://127.0.0.1:8000" for e in engines)],
        seed=seed,
        slo={"ttft": 2000.0},
        machine=MachineInfo(
            hostname="bench-01",
            os="Linux 6.12",
            cpu="AMD EPYC 9B14",
            cores=2,
            memory_bytes=16 << 30,
            python="3.13.1",
            packages={"torch": "2.13.0+cpu", "aiohttp": "3.12.0"},
        ),
        engines=[
            EngineInfo(
                name=e.name,
                url="http://127.0.0.1:8000",
                kind=e.kind,
                version=e.version,
                model=e.model,
                max_model_len=e.max_len,
                dtype=e.dtype,
                settings={"policy": e.policy, "block_size": BLOCK, "kv_slots": e.pool} if e.tells == "ledger" else {},
            )
            for e in engines
        ],
        cells=cells,
        status="complete",
    )
    return RunDraft(manifest, Summary(run_id=run_id, cells=summaries), rows)


def agree(rows: Tables, cells: list[CellInfo], summaries: list[CellSummary]) -> None:
    """Fill ``tokens_identical_to`` between the cells that served the same requests."""
    outputs: dict[str, dict[int, str]] = {}
    for row in rows.requests:
        if row["ok"]:
            outputs.setdefault(row["cell_id"], {})[row["request_index"]] = row["output_sha256"]
    for a, summary in zip(cells, summaries, strict=True):
        for b in cells:
            same_input = a.workload.digest == b.workload.digest and a.load == b.load
            if a.engine != b.engine and same_input and a.repeat == b.repeat:
                mine, other = outputs.get(a.cell_id, {}), outputs.get(b.cell_id, {})
                both = mine.keys() & other.keys()
                if both:
                    summary.tokens_identical_to[b.cell_id] = sum(mine[i] == other[i] for i in both) / len(both)


HOSTILE = "<script>alert('x')</script>\"&{{7*7}}"

PAGED = Engine("paged")
CONTIGUOUS = Engine("contiguous", policy="contiguous")
VLLM = Engine("vllm", tells="usage", kind="vllm", version="0.32.0", step_ms=6.5)
LLAMA_CPP = Engine("llama.cpp", tells="nothing", kind="llama.cpp", version="b7100", step_ms=5.5)
SGLANG = Engine("sglang", tells="slots", kind="sglang", version="0.6.1", step_ms=6.2)


@pytest.fixture(scope="session")
def draft() -> Callable[..., RunDraft]:
    """The generator itself: ``draft(engines, workloads=..., repeats=...)``."""
    return draft_run


@pytest.fixture(scope="session")
def engines() -> dict[str, Engine]:
    """Ready-made engines by name; change one with ``dataclasses.replace``."""
    return {e.name: e for e in (PAGED, CONTIGUOUS, VLLM, LLAMA_CPP, SGLANG)}


@pytest.fixture(scope="session")
def demo_draft() -> RunDraft:
    """Ours paged against contiguous under the three workloads, one run each.  Shared: do not change."""
    return draft_run([PAGED, CONTIGUOUS])


@pytest.fixture(scope="session")
def demo_run(demo_draft: RunDraft, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of ``demo_draft``."""
    return demo_draft.write(tmp_path_factory.mktemp("demo") / "run")


@pytest.fixture(scope="session")
def demo_page(demo_run: Path) -> str:
    """The page of ``demo_draft``."""
    return build_report(demo_run).read_text()


@pytest.fixture(scope="session")
def crowd_run(draft: Callable[..., RunDraft], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five engines, one with a hostile name, under four workloads; one cell INVALID, one with failures."""
    sglang = dataclasses.replace(SGLANG, name=HOSTILE)
    run = draft([PAGED, CONTIGUOUS, VLLM, LLAMA_CPP, sglang], workloads=list(LENGTHS), requests=24)
    void = run.cell("vllm", "chat")
    void.validity, void.reasons = "INVALID", ["requests left late: p99 141.0 ms after their planned time"]
    spoilt = run.cell("llama.cpp", "agents")
    for row in run.tables.requests:
        if row["cell_id"] == spoilt.cell_id and row["request_index"] < 3:
            row |= {"ok": False, "error_class": "http_5xx", "error": f"500 {HOSTILE}", "t_first": None, "t_last": None}
    spoilt.requests_ok, spoilt.requests_failed, spoilt.errors = spoilt.requests_ok - 3, 3, {"http_5xx": 3}
    return run.write(tmp_path_factory.mktemp("crowd") / "run")


@pytest.fixture(scope="session")
def crowd_page(crowd_run: Path) -> str:
    """The page of ``crowd_run``."""
    return build_report(crowd_run).read_text()


@pytest.fixture(scope="session")
def hostile() -> str:
    """A name that would run as a script if it were not escaped."""
    return HOSTILE


@pytest.fixture(scope="session")
def renamed() -> Callable[[Engine, str], Engine]:
    """An engine under another name."""
    return lambda engine, name: dataclasses.replace(engine, name=name)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for the tests of a module."""
    with opened(tmp_path_factory.mktemp("profile")) as page:
        yield page
