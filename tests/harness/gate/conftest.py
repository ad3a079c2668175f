"""Small builders: pairs from numbers, and run directories as ``pagedbench run`` would write them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.gate.thresholds import Thresholds
from harness.results.gate import JudgeSpec, PairRecord, RuleSpec, RunSample
from harness.results.schema import (
    CHUNK_COLUMNS,
    METRIC_COLUMNS,
    REQUEST_COLUMNS,
    SYSTEM_COLUMNS,
    CellInfo,
    EngineInfo,
    LoadInfo,
    MachineInfo,
    RunManifest,
    WorkloadInfo,
)

MS = 1_000_000
CELL = "concurrency.c2"


def rule(metric: str = "itl_p50", **changed: Any) -> RuleSpec:
    values: dict[str, Any] = {
        "metric": metric,
        "cell": CELL,
        "label": metric,
        "unit": "ms",
        "better": "lower",
        "kind": "timing",
        "limit": 0.02,
    }
    return RuleSpec.model_validate(values | changed)


def spec(*rules: RuleSpec, looks: Sequence[int] = (8, 12, 20), **changed: Any) -> JudgeSpec:
    return JudgeSpec(looks=list(looks), rules=list(rules) or [rule()], **changed)


def sample(arm: str, values: dict[str, float | None], **more: Any) -> RunSample:
    keyed = {f"{CELL}/{name}": value for name, value in values.items()}
    return RunSample.model_validate({"arm": arm, "source": "-", "values": keyed, **more})


def pair(index: int, a: dict[str, float | None], b: dict[str, float | None], **more: Any) -> PairRecord:
    document = {"index": index, "order": "AB", "baseline": sample("baseline", a), "candidate": sample("candidate", b)}
    return PairRecord.model_validate(document | more)


def noisy_pairs(
    count: int, slowdown: float = 0.0, cv: float = 0.01, seed: int = 0, names: Sequence[str] = ("itl_p50",)
) -> list[PairRecord]:
    rng = np.random.default_rng(seed)

    def run(factor: float) -> dict[str, float | None]:
        return {name: float(10 * factor * np.exp(rng.normal(0, cv))) for name in names}

    return [pair(i, run(1.0), run(1 + slowdown)) for i in range(count)]


def write_run(
    path: Path,
    *,
    engine: str = "mine",
    itl_ms: float = 10.0,
    requests: int = 24,
    tokens: int = 12,
    created: str = "2026-11-26T12:00:00+00:00",
    digest: str = "d" * 64,
    failed: int = 0,
    answer: str = "",
    peak: float = 512.0,
    edit: Callable[[dict[str, list[dict[str, Any]]]], None] | None = None,
    seed: int = 0,
) -> Path:
    """A run of one cell with two requests in flight.  ``edit`` may change the rows before they are written."""
    rng = np.random.default_rng(seed)
    cell = f"{engine}.{CELL}.0"
    tables: dict[str, list[dict[str, Any]]] = {"requests": [], "chunks": [], "metrics": [], "system": []}
    free_at = [10**9, 10**9]
    for index in range(requests):
        slot = index % 2
        start = free_at[slot]
        gaps = itl_ms * MS * np.exp(rng.normal(0, 0.05, tokens))
        times = (start + 2 * MS + np.cumsum(gaps)).astype(int).tolist()
        free_at[slot] = times[-1] + MS
        ok = index >= failed
        text = hashlib.sha256(f"{answer}{index}".encode()).hexdigest()
        tables["requests"].append(
            {"cell_id": cell, "request_index": index, "t_ready": start, "t_send": start + 1000, "t_first": times[0],
             "t_last": times[-1], "t_done": times[-1] + 1000, "status": 200 if ok else 500, "ok": ok,
             "error_class": None if ok else "http_5xx", "finish_reason": "length", "prompt_tokens": 20,
             "output_tokens": tokens, "token_source": "usage", "planned_prompt_tokens": 20,
             "planned_output_tokens": tokens, "chunks": tokens, "output_sha256": text, "warmup": False}
        )  # fmt: skip
        tables["chunks"] += [
            {"cell_id": cell, "request_index": index, "chunk": n, "t": t, "tokens": 1, "coalesced": False}
            for n, t in enumerate(times)
        ]
    for t in range(10**9, max(free_at), 50 * MS):
        values = {"kv_slots_allocated": peak, "kv_slots_reserved": 4096.0, "requests_running": 2.0}
        tables["metrics"] += [{"cell_id": cell, "t": t, "name": name, "value": v} for name, v in values.items()]
    if edit is not None:
        edit(tables)
    manifest = RunManifest(
        run_id=path.name,
        created_utc=created,
        tool_version="0",
        command=[],
        seed=0,
        machine=MachineInfo(hostname="h", os="o", cpu="c", cores=2, memory_bytes=1, python="3", packages={}),
        engines=[EngineInfo(name=engine, url="http://x", kind="pagedbench", version="1", model="m")],
        cells=[
            CellInfo(
                cell_id=cell,
                engine=engine,
                workload=WorkloadInfo(name="concurrency", parameters={}, seed=0, digest=digest),
                load=LoadInfo(mode="closed", concurrency=2),
                t_start=10**9,
                t_end=max(free_at),
                status="complete",
            )
        ],
        status="complete",
    )
    path.mkdir(parents=True)
    (path / "run.json").write_text(manifest.model_dump_json())
    schemas = {
        "requests": REQUEST_COLUMNS,
        "chunks": CHUNK_COLUMNS,
        "metrics": METRIC_COLUMNS,
        "system": SYSTEM_COLUMNS,
    }
    for name, schema in schemas.items():
        pq.write_table(pa.Table.from_pylist(tables[name], schema=schema), path / f"{name}.parquet")
    return path


def write_sets(folder: Path, count: int, slowdown: float = 0.0, **candidate: Any) -> tuple[Path, Path]:
    """Two folders of ``count`` runs each, interleaved in time."""
    for i in range(count):
        for minute, (arm, factor) in enumerate((("base", 1.0), ("cand", 1 + slowdown))):
            created = f"2026-11-26T{10 + i // 30:02}:{2 * (i % 30) + minute:02}:00+00:00"
            more = candidate if arm == "cand" else {}
            itl = 10 * factor * float(np.exp(np.random.default_rng(100 * i + minute).normal(0, 0.005)))
            write_run(folder / arm / f"{i:02}", itl_ms=itl, created=created, seed=i, **more)
    return folder / "base", folder / "cand"


@pytest.fixture
def thresholds() -> Thresholds:
    return Thresholds()


def load(text: str) -> Any:
    return json.loads(text)
