"""The numpy layer under the charts, against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from harness.results.schema import CHUNK_COLUMNS, METRIC_COLUMNS, REQUEST_COLUMNS
from reports.columns import CellTable, event_rate, gaps, latency, pivot, thin


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def request_rows(cell: str, n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {
            "cell_id": cell,
            "request_index": i,
            "t_send": int(rng.integers(0, 10**9)) if rng.random() > 0.1 else None,
            "t_first": int(rng.integers(10**9, 2 * 10**9)) if rng.random() > 0.1 else None,
            "ok": bool(rng.random() > 0.3) if rng.random() > 0.1 else None,
            "warmup": bool(rng.random() > 0.8),
        }
        for i in range(n)
    ]


def test_rows_of_a_cell_come_back_in_their_order_however_cells_are_interleaved(rng: np.random.Generator) -> None:
    rows = [row for cell in ("a", "b", "c") for row in request_rows(cell, 40, rng)]
    mixed = [rows[i] for i in rng.permutation(len(rows))]
    table = CellTable(pa.Table.from_pylist(mixed, schema=REQUEST_COLUMNS))
    for cell in ("c", "a", "b"):
        mine = [row for row in mixed if row["cell_id"] == cell]
        found = table.rows(cell, ("request_index", "t_send", "ok", "error_class"))
        assert found["request_index"].tolist() == [row["request_index"] for row in mine]
        assert [None if np.isnan(t) else int(t) for t in found["t_send"]] == [row["t_send"] for row in mine]
        assert found["ok"].tolist() == [bool(row["ok"]) for row in mine]
        assert found["error_class"].tolist() == [None] * len(mine)
    assert table.rows("absent", ["ok"])["ok"].size == 0
    assert CellTable(REQUEST_COLUMNS.empty_table()).rows("a", ["ok"])["ok"].size == 0


def test_gaps_equal_a_plain_loop(rng: np.random.Generator) -> None:
    requests = request_rows("a", 30, rng)
    chunks = [
        {"cell_id": "a", "request_index": r["request_index"], "chunk": c, "t": int(t)}
        for r in requests
        for c, t in enumerate(np.sort(rng.integers(0, 10**9, int(rng.integers(0, 9)))))
    ]
    expected: list[int] = []
    for r in requests:
        if r["ok"] and not r["warmup"]:
            expected += np.diff([c["t"] for c in chunks if c["request_index"] == r["request_index"]]).tolist()
    columns = CellTable(pa.Table.from_pylist(requests, schema=REQUEST_COLUMNS)).rows(
        "a", ("request_index", "ok", "warmup")
    )
    for order in (np.arange(len(chunks)), rng.permutation(len(chunks))):
        table = CellTable(pa.Table.from_pylist([chunks[i] for i in order], schema=CHUNK_COLUMNS))
        found = gaps(columns, table.rows("a", ("request_index", "chunk", "t")))
        assert sorted(found.tolist()) == sorted(expected)


def test_latency_drops_failures_warm_up_nulls_and_clock_steps(rng: np.random.Generator) -> None:
    rows = request_rows("a", 60, rng)
    backwards = {"cell_id": "a", "request_index": 99, "t_send": 10, "t_first": 5, "ok": True, "warmup": False}
    rows.append(backwards)
    expected = [
        r["t_first"] - r["t_send"]
        for r in rows[:-1]
        if r["ok"] and not r["warmup"] and r["t_send"] is not None and r["t_first"] is not None
    ]
    table = CellTable(pa.Table.from_pylist(rows, schema=REQUEST_COLUMNS))
    found = latency(table.rows("a", ("t_send", "t_first", "ok", "warmup")), "t_send", "t_first")
    assert found.tolist() == expected


def test_pivot_lines_up_series_and_leaves_holes_open(rng: np.random.Generator) -> None:
    samples = {(int(t), name): float(rng.random()) for t in range(20) for name in ("x", "y") if rng.random() > 0.4}
    samples[3, "x"], samples[4, "other"] = 1.0, 2.0
    rows = [{"cell_id": "a", "t": t, "name": name, "value": v} for (t, name), v in samples.items()]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    rows.append({"cell_id": "a", "t": 50, "name": "y", "value": None})
    columns = CellTable(pa.Table.from_pylist(rows, schema=METRIC_COLUMNS)).rows("a", ("t", "name", "value"))
    times, series = pivot(columns, ("x", "y", "z"))
    assert set(series) == {"x", "y"}
    assert times.tolist() == sorted({t for t, name in samples if name in ("x", "y")})
    for name, column in series.items():
        for t, value in zip(times, column, strict=True):
            assert (np.isnan(value) and (int(t), name) not in samples) or value == samples[int(t), name]


def test_thin_keeps_the_mean_of_an_evenly_sampled_series(rng: np.random.Generator) -> None:
    t, x = np.arange(1000.0), rng.random(1000)
    at, kept, n = thin(t, {"x": x}, 50)
    assert at.size <= 50
    assert n == 20
    assert np.mean(kept["x"]) == pytest.approx(x.mean(), rel=1e-3)
    same, untouched, one = thin(t[:50], {"x": x[:50]}, 50)
    assert same.tolist() == t[:50].tolist()
    assert untouched["x"].tolist() == x[:50].tolist()
    assert one == 1


def test_thin_keeps_layers_that_sum_to_one(rng: np.random.Generator) -> None:
    t = np.sort(rng.random(5000))
    a = rng.random(5000)
    _, kept, _ = thin(t, {"a": a, "b": 1 - a}, 70)
    assert kept["a"] + kept["b"] == pytest.approx(np.ones(kept["a"].size))


def test_event_rate_counts_every_event_once(rng: np.random.Generator) -> None:
    t, tokens = rng.random(500) * 1e9, rng.integers(1, 4, 500).astype(float)
    _, rate = event_rate(t, tokens, 0.0, 1e9, 20)
    assert (rate * (1 / 20)).sum() == pytest.approx(tokens.sum())
    assert event_rate(np.empty(0), np.empty(0), 0.0, 1e9, 20)[0].size == 0
    assert event_rate(t, tokens, 5.0, 5.0, 20)[0].size == 0
