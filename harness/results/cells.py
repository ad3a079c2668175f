"""The rows of one cell as arrays: times in ns on the client's clock, NaN where the table has null."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.results.reader import Run
from harness.results.schema import CellInfo
from harness.results.series import Floats, Ints, Series


@dataclass(frozen=True)
class CellData:
    """One cell of a run.  ``requests`` holds warm-up requests too; ``measured`` masks them out."""

    info: CellInfo
    requests: pa.Table
    chunks: pa.Table
    metrics: pa.Table
    system: pa.Table

    @classmethod
    def of(cls, run: Run, cell: CellInfo) -> CellData:
        def rows(table: pa.Table) -> pa.Table:
            return table.filter(pc.equal(table["cell_id"], cell.cell_id))

        return cls(
            cell,
            rows(run.requests).sort_by("request_index"),
            run.chunk_rows(cell.cell_id),
            rows(run.metrics),
            rows(run.system),
        )

    def column(self, name: str) -> Floats:
        """A number column of ``requests`` as float64.  Times stay exact below 2**53 ns (104 days of uptime)."""
        return _floats(self.requests[name])

    @cached_property
    def ok(self) -> np.ndarray:
        return _bools(self.requests["ok"])

    @cached_property
    def measured(self) -> np.ndarray:
        return ~_bools(self.requests["warmup"])

    @cached_property
    def index(self) -> Ints:
        return self.requests["request_index"].to_numpy().astype(np.int64)

    @cached_property
    def chunk_order(self) -> np.ndarray:
        """Order of ``chunks`` by request, then by chunk."""
        return np.lexsort((_floats(self.chunks["chunk"]), self.chunk_request_raw))

    @cached_property
    def chunk_request_raw(self) -> Ints:
        return self.chunks["request_index"].to_numpy().astype(np.int64)

    @cached_property
    def chunk_request(self) -> Ints:
        """For each chunk, in order, the row of ``requests`` that it belongs to; -1 when that row is missing."""
        wanted = self.chunk_request_raw[self.chunk_order]
        rows = np.searchsorted(self.index, wanted)
        rows = np.minimum(rows, max(0, self.index.size - 1))
        if self.index.size == 0:
            return np.full(wanted.size, -1)
        return np.where(self.index[rows] == wanted, rows, -1)

    @cached_property
    def chunk_t(self) -> Floats:
        return _floats(self.chunks["t"])[self.chunk_order]

    @cached_property
    def chunk_tokens(self) -> Floats:
        """Tokens of each chunk, in order.  Where the server does not tell, the request's count spread evenly."""
        told = _floats(self.chunks["tokens"])[self.chunk_order]
        n = self.column("chunks")
        with np.errstate(divide="ignore", invalid="ignore"):
            even = np.where(n > 0, self.column("output_tokens") / n, np.nan)
        even = np.nan_to_num(even, nan=1.0)
        spread = even[self.chunk_request] if even.size else np.ones(told.size)
        return np.where(np.isnan(told), spread, told)

    def metric(self, name: str) -> Series | None:
        """Samples of an engine metric, or None when there are none."""
        return _series(self.metrics.filter(pc.equal(self.metrics["name"], name)))

    def metric_series(self) -> dict[str, Series]:
        names = pc.unique(self.metrics["name"]).to_pylist()
        return {name: series for name in names if (series := self.metric(name)) is not None}

    def by_label(self, source: str, name: str) -> dict[str, Series]:
        """Samples of telemetry apart for each label (pid, device, worker)."""
        mask = pc.and_(pc.equal(self.system["source"], source), pc.equal(self.system["name"], name))
        rows = self.system.filter(mask)
        found: dict[str, Series] = {}
        for label in pc.unique(rows["label"]).to_pylist():
            series = _series(rows.filter(pc.equal(rows["label"], label)))
            if series is not None:
                found[label] = series
        return found

    def telemetry(self, source: str, name: str) -> Series | None:
        """Samples of process or device telemetry, summed over labels (pids, devices) sampled at the same moment."""
        mask = pc.and_(pc.equal(self.system["source"], source), pc.equal(self.system["name"], name))
        series = _series(self.system.filter(mask))
        if series is None:
            return None
        t, inverse = np.unique(series.t, return_inverse=True)
        return Series(t, np.bincount(inverse, weights=series.v).astype(np.float64))


def in_flight(data: CellData) -> tuple[Floats, Floats]:
    """Requests in flight as a step function: times and the number from each time on."""
    send, done = data.column("t_send"), data.column("t_done")
    known = ~np.isnan(send) & ~np.isnan(done)
    t = np.concatenate((send[known], done[known]))
    step = np.concatenate((np.ones(known.sum()), -np.ones(known.sum())))
    order = np.lexsort((step, t))  # an end before a start at the same moment
    return t[order], np.cumsum(step[order])


def _series(table: pa.Table) -> Series | None:
    t = table["t"].to_numpy()
    v = _floats(table["value"])
    keep = ~np.isnan(v)
    if not keep.any():
        return None
    order = np.argsort(t[keep], kind="stable")
    return Series(t[keep][order].astype(np.int64), v[keep][order])


def _floats(column: pa.ChunkedArray) -> Floats:
    return column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)


def _bools(column: pa.ChunkedArray) -> np.ndarray:
    return column.fill_null(False).to_numpy().astype(bool)
