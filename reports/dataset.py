"""What a report is about: engines, cells and groups of comparable cells, from one or several runs.

A *group* is one workload at one load level; inside it engines are compared, each with its repeats.  The same engine in
several runs counts as more repeats; two different engines that share a name are told apart by their run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from harness.results.metrics import summarise
from harness.results.reader import Run, load_run
from harness.results.schema import CellInfo, CellSummary, EngineInfo, LoadInfo
from reports.columns import CellTable, ChunkTable


class ReportError(ValueError):
    """Runs that no report can be made of.  The message is one sentence for the user."""


class RunTables:
    """A run with its tables cut by cell."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.requests = CellTable(run.requests)
        self.chunks = ChunkTable(run)
        self.metrics = CellTable(run.metrics)
        self.system = CellTable(run.system)


@dataclass(frozen=True)
class Engine:
    """An engine of the report; ``index`` picks its colour, dash and marker."""

    label: str
    index: int
    info: EngineInfo


@dataclass(frozen=True)
class Cell:
    """One engine under one workload at one load level, one repeat."""

    engine: Engine
    info: CellInfo
    summary: CellSummary | None  # null when the run was killed after this cell was planned, before it was summarised
    tables: RunTables = field(repr=False)

    @property
    def is_valid(self) -> bool:
        """May its numbers be drawn and compared?"""
        return self.summary is None or self.summary.validity != "INVALID"

    @cached_property
    def origin(self) -> float:
        """Time zero of the cell's charts [ns]: its start, else the first request sent, else 0."""
        if self.info.t_start is not None:
            return float(self.info.t_start)
        sent = self.tables.requests.rows(self.info.cell_id, ["t_send"])["t_send"].astype(np.float64)
        sent = sent[np.isfinite(sent)]
        return float(sent.min()) if sent.size else 0.0


@dataclass(frozen=True)
class Group:
    """Cells that served the same workload at the same load level; ``cells`` maps an engine's label to its repeats."""

    key: str
    workload: str
    load: LoadInfo
    cells: dict[str, list[Cell]]

    @property
    def title(self) -> str:
        return f"{self.workload}, {load_words(self.load)}"

    def valid(self, label: str) -> list[Cell]:
        """The repeats of an engine that may be drawn and compared."""
        return [cell for cell in self.cells.get(label, []) if cell.is_valid]

    def values(self, label: str, metric: Callable[[CellSummary], float | None]) -> list[float]:
        """``metric`` of every valid repeat of an engine that measured it."""
        found = (metric(cell.summary) for cell in self.valid(label) if cell.summary is not None)
        return [float(value) for value in found if value is not None and np.isfinite(value)]


@dataclass(frozen=True)
class Dataset:
    """Everything a report needs."""

    runs: list[RunTables]
    engines: list[Engine]
    cells: list[Cell]
    groups: list[Group]

    @property
    def workloads(self) -> list[str]:
        return list(dict.fromkeys(group.workload for group in self.groups))

    @property
    def repeats(self) -> int:
        """The largest number of repeats of one engine in one group."""
        return max((len(cells) for group in self.groups for cells in group.cells.values()), default=0)

    def levels(self, workload: str) -> list[Group]:
        """The groups of a workload, lightest load first."""
        return [group for group in self.groups if group.workload == workload]


def load_words(load: LoadInfo) -> str:
    """A load level in words."""
    if load.mode == "closed":
        return f"{load.concurrency if load.concurrency is not None else '?'} at once"
    if load.mode == "trace":
        return "times of the trace"
    if load.rate is None:
        return "open loop"
    if load.mode == "ramp" and load.ramp_to is not None:
        return f"{load.rate:g} to {load.ramp_to:g} requests/s"
    spacing = {"constant": ", evenly spaced", "gamma": f", gamma {load.burstiness or 1:g}"}.get(load.mode, "")
    return f"{load.rate:g} requests/s{spacing}"


def load_level(load: LoadInfo) -> float:
    """A number to order load levels by."""
    return float((load.concurrency if load.mode == "closed" else load.rate) or 0)


def load_dataset(paths: Sequence[Path], apart: bool = False) -> Dataset:
    """Read and join run directories.  ``apart`` keeps the engines of each run to themselves, for comparing runs.

    Raises :class:`ReportError` when there is nothing to report or a run is given twice, and ``RunReadError`` when a
    directory cannot be read.
    """
    if not paths:
        raise ReportError("no run directory was given; name at least one")
    runs = [load_run(path, chunks_on_disk=True) for path in paths]
    ids = [run.manifest.run_id for run in runs]
    for run_id in ids:
        if ids.count(run_id) > 1:
            raise ReportError(f"run {run_id!r} was given twice; name each run directory once")
    return join(runs, apart)


def join(runs: Sequence[Run], apart: bool = False) -> Dataset:
    """One dataset of several runs in memory; see :func:`load_dataset`."""
    names = [(info.name, run.manifest.run_id) for run in runs for info in run.manifest.engines] if apart else []
    engines: dict[tuple[str, str], Engine] = {}
    cells: list[Cell] = []
    tables = [RunTables(run) for run in runs]
    repeats: dict[tuple[str, str], int] = {}
    for one in tables:
        manifest = one.run.manifest
        # A run that was killed has no summary; the harness computes the same numbers from the tables it left.
        summary = one.run.summary if one.run.summary is not None else summarise(one.run)
        summaries = {cell.cell_id: cell for cell in summary.cells}
        infos = {info.name: info for info in manifest.engines}
        for info in manifest.cells:
            told = infos.get(info.engine, EngineInfo(name=info.engine, url=""))
            engine = (
                _own_engine(engines, told, one.run, names) if apart else _same_engine(engines, told, manifest.run_id)
            )
            group = _group_key(info)
            repeat = repeats[engine.label, group] = repeats.get((engine.label, group), -1) + 1
            info = info.model_copy(update={"repeat": repeat})
            cells.append(Cell(engine, info, summaries.get(info.cell_id), one))
    return Dataset(tables, list(engines.values()), cells, _group(cells))


def _same_engine(engines: dict[tuple[str, str], Engine], info: EngineInfo, run_id: str) -> Engine:
    """The engine of ``info``: a known one when all it says (but its address) is equal, else a new one."""
    identity = info.model_copy(update={"url": ""}).model_dump_json()
    if (info.name, identity) not in engines:
        taken = any(name == info.name for name, _ in engines)
        label = f"{info.name} ({run_id})" if taken else info.name
        engines[info.name, identity] = Engine(label, len(engines), info)
    return engines[info.name, identity]


def _own_engine(
    engines: dict[tuple[str, str], Engine], info: EngineInfo, run: Run, names: list[tuple[str, str]]
) -> Engine:
    """The engine of ``info`` in its own run, named after the run's folder where another run has one of that name."""
    key = (info.name, run.manifest.run_id)
    if key not in engines:
        shared = sum(name == info.name for name, _ in names) > 1
        folder = run.path.resolve().name
        label = f"{info.name} ({folder})" if shared else info.name
        if any(engine.label == label for engine in engines.values()):
            label = f"{info.name} ({run.manifest.run_id})"
        engines[key] = Engine(label, len(engines), info)
    return engines[key]


def _group_key(info: CellInfo) -> str:
    return f"{info.workload.name}|{info.load.model_dump_json()}"


def _group(cells: list[Cell]) -> list[Group]:
    """Groups in the order of their workloads, each from its lightest to its heaviest load."""
    found: dict[str, Group] = {}
    for cell in cells:
        key = _group_key(cell.info)
        group = found.setdefault(key, Group(key, cell.info.workload.name, cell.info.load, {}))
        group.cells.setdefault(cell.engine.label, []).append(cell)
    order = list(dict.fromkeys(cell.info.workload.name for cell in cells))
    return sorted(found.values(), key=lambda g: (order.index(g.workload), g.load.mode, load_level(g.load)))
