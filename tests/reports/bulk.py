"""Large synthetic runs: a small simulated run whose request and chunk tables are replaced by rows drawn all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.results.schema import CHUNK_COLUMNS, REQUEST_COLUMNS, SYSTEM_COLUMNS

SECOND = 10**9


def write_bulk_run(draft: Any, path: Path, requests: int, chunks_each: int, seed: int | None = None) -> Path:
    """``draft`` written to ``path`` with ``requests`` rows over its cells, each of ``chunks_each`` content chunks.

    No summary is written, so that the reader computes it.  A million requests of 8 chunks take about ten seconds.
    """
    rng = np.random.default_rng(seed)
    cells = [cell.cell_id for cell in draft.manifest.cells]
    draft.write(path, with_summary=False)
    each = requests // len(cells)
    request_file = pq.ParquetWriter(path / "requests.parquet", REQUEST_COLUMNS, compression="zstd")
    chunk_file = pq.ParquetWriter(path / "chunks.parquet", CHUNK_COLUMNS, compression="zstd")
    for number, cell_id in enumerate(cells):
        start = draft.manifest.cells[number].t_start
        send = start + np.sort(rng.integers(0, 60 * SECOND, each))
        gaps = rng.gamma(4, 3e6 * (1 + 0.1 * number), (each, chunks_each)).astype(np.int64)
        times = send[:, None] + np.cumsum(gaps, axis=1)
        index = np.arange(each)
        full = {
            "cell_id": pa.array([cell_id] * each), "request_index": index, "t_ready": send, "t_send": send,
            "t_first": times[:, 0], "t_last": times[:, -1], "t_done": times[:, -1] + 1000, "status": np.full(each, 200),
            "ok": np.ones(each, bool), "finish_reason": pa.array(["length"] * each), "chunks": np.full(each, chunks_each),
            "prompt_tokens": np.full(each, 30), "output_tokens": np.full(each, chunks_each),
            "planned_prompt_tokens": np.full(each, 30), "planned_output_tokens": np.full(each, chunks_each),
            "token_source": pa.array(["usage"] * each), "output_sha256": pa.array([f"{i:064x}" for i in range(each)]),
            "warmup": np.zeros(each, bool),
        }  # fmt: skip
        request_file.write_table(_table(full, REQUEST_COLUMNS, each))
        n = each * chunks_each
        full = {
            "cell_id": pa.array([cell_id] * n), "request_index": np.repeat(index, chunks_each),
            "chunk": np.tile(np.arange(chunks_each), each), "t": times.ravel(), "tokens": np.ones(n, np.int64),
            "coalesced": np.zeros(n, bool),
        }  # fmt: skip
        chunk_file.write_table(_table(full, CHUNK_COLUMNS, n))
    request_file.close()
    chunk_file.close()
    pq.write_table(SYSTEM_COLUMNS.empty_table(), path / "system.parquet")
    return path


def _table(known: dict[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    columns = [pa.array(known[f.name], f.type) if f.name in known else pa.nulls(rows, f.type) for f in schema]
    return pa.table(columns, schema=schema)
