"""A run's tables cut into cells, as numpy columns.  Everything the charts draw comes through here."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from harness.results.reader import Run

Floats = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[np.generic]]


class CellTable:
    """One table, ready to hand out the rows of one cell without a Python loop over rows.

    Nulls become NaN in number columns, False in boolean ones and None in text ones.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @cached_property
    def _spans(self) -> dict[str, tuple[int, int]]:
        """First row and end row of every cell; sorts the table by cell when its rows are interleaved."""
        if self._table.num_rows == 0:
            return {}
        names, codes = _encode(self._table["cell_id"])
        if np.any(np.diff(codes) < 0):
            order = np.argsort(codes, kind="stable")
            self._table, codes = self._table.take(pa.array(order)), codes[order]
        ends = np.searchsorted(codes, np.arange(len(names)), side="right")
        starts = np.concatenate(([0], ends[:-1]))
        return {name: (int(a), int(b)) for name, a, b in zip(names, starts, ends, strict=True)}

    def rows(self, cell_id: str, columns: Iterable[str]) -> Columns:
        """The named columns of one cell, in the order they were written; empty arrays for a cell without rows."""
        start, end = self._spans.get(cell_id, (0, 0))
        part = self._table.slice(start, end - start)
        return {name: _to_numpy(part[name]) for name in columns}


class ChunkTable:
    """The chunks of a run, read from disk a cell at a time: they are most of a run and seldom needed together."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def rows(self, cell_id: str, columns: Iterable[str]) -> Columns:
        """The named columns of one cell, as :meth:`CellTable.rows` gives them."""
        table = self._run.chunk_rows(cell_id)
        return {name: _to_numpy(table[name]) for name in columns}


def _encode(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    encoded = pc.dictionary_encode(column).combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _to_numpy(column: pa.ChunkedArray) -> npt.NDArray[np.generic]:
    if pa.types.is_boolean(column.type):
        return np.asarray(pc.fill_null(column, False).to_numpy())
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy())
    return np.asarray(column.to_numpy())


def pivot(rows: Columns, names: Iterable[str]) -> tuple[Floats, dict[str, Floats]]:
    """Samples ``(t, name, value)`` as one series a name on one sorted time axis.

    Returns the times [ns] and, for every name in ``names`` that has a value, an array of the same length with NaN where
    that name was not sampled.  Two samples of a name at one time: the later row wins.
    """
    wanted = list(names)
    t = rows["t"].astype(np.float64)
    label, value = rows["name"], rows["value"].astype(np.float64)
    keep = np.isin(label.astype(str), wanted) & np.isfinite(t) & np.isfinite(value)
    times, position = np.unique(t[keep], return_inverse=True)
    series: dict[str, Floats] = {}
    for name in wanted:
        mine = label[keep] == name
        if mine.any():
            column = np.full(times.size, np.nan)
            column[position[mine]] = value[keep][mine]
            series[name] = column
    return times, series


def gaps(requests: Columns, chunks: Columns) -> Floats:
    """Pooled gaps between content chunks of the requests that succeeded, warm-up left out [ns].

    ``requests`` needs ``request_index, ok, warmup``; ``chunks`` needs ``request_index, chunk, t``.
    """
    counted = requests["request_index"][requests["ok"].astype(bool) & ~requests["warmup"].astype(bool)]
    owner, t = chunks["request_index"].astype(np.int64), chunks["t"].astype(np.float64)
    chunk = chunks["chunk"].astype(np.float64)
    same = owner[1:] == owner[:-1]
    if np.any(owner[1:] < owner[:-1]) or np.any(same & (chunk[1:] < chunk[:-1])):
        order = np.lexsort((chunk, owner))
        owner, t = owner[order], t[order]
        same = owner[1:] == owner[:-1]
    found = np.diff(t)[same & np.isin(owner[1:], counted.astype(np.int64))]
    return found[found >= 0]


def latency(requests: Columns, start: str, end: str) -> Floats:
    """``end - start`` of requests that succeeded, warm-up left out [ns]; what is unmeasured or negative is dropped."""
    counted = requests["ok"].astype(bool) & ~requests["warmup"].astype(bool)
    found = (requests[end].astype(np.float64) - requests[start].astype(np.float64))[counted]
    return found[np.isfinite(found) & (found >= 0)]


def thin(t: Floats, series: dict[str, Floats], points: int) -> tuple[Floats, dict[str, Floats], int]:
    """At most ``points`` samples: the mean of each equal stretch of time.  Also returns how many samples a point holds.

    Means keep a stacked area's sum; a stretch without a sample has no point.
    """
    if t.size <= points:
        return t, series, 1
    edges = np.linspace(t[0], t[-1], points + 1)
    which = np.clip(np.searchsorted(edges, t, side="right") - 1, 0, points - 1)
    counts = np.bincount(which, minlength=points)
    held = counts > 0

    def mean(values: Floats) -> Floats:
        known = np.isfinite(values)
        n = np.bincount(which, weights=known, minlength=points)
        total = np.bincount(which, weights=np.where(known, values, 0.0), minlength=points)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (total / n)[held]

    return mean(t), {name: mean(values) for name, values in series.items()}, int(np.ceil(t.size / points))


def event_rate(t: Floats, weights: Floats, start: float, end: float, points: int) -> tuple[Floats, Floats]:
    """Weighted events a second in ``points`` equal bins of ``[start, end]`` [ns]: bin centres [ns] and rates."""
    if t.size == 0 or end <= start:
        return np.empty(0), np.empty(0)
    total, edges = np.histogram(t, bins=points, range=(start, end), weights=weights)
    return (edges[1:] + edges[:-1]) / 2, total / (edges[1] - edges[0]) * 1e9
