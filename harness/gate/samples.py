"""From run directories to samples: what each run of each build came to, and whether it counts.

A run is void, not slow, when it cannot say how fast the engine is: the client was late, requests failed, answers did not
have their planned length, the load was not delivered, the clocks were throttled, other processes used the machine, or
times run backwards.  What of that is the engine's own doing is remembered apart (``broken``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from harness.gate.catalogue import METRICS
from harness.gate.thresholds import VoidAsked
from harness.results.cells import CellData
from harness.results.gate import Arm, ArmInfo, RunSample
from harness.results.measures import measures
from harness.results.metrics import summarise_cell
from harness.results.reader import Run, load_run
from harness.results.schema import CellInfo, CellSummary
from harness.results.validity import RULES
from harness.results.window import measured_window

# Rules of validity that void a run already at their first threshold; the second voids it whatever the rule.
VOIDING = {
    "interrupted",
    "ran_dry",
    "lateness_ms_p99",
    "rate_shortfall",
    "concurrency_shortfall",
    "lag_share",
    "length_mismatch",
    "throttled",
    "throttled_share",
    "foreign_processes",
}
# ... and those that the engine, not the client or the machine, is to blame for.
BLAMED_ON_ENGINE = {"no_success", "failed_to_finish", "error_share", "length_mismatch"}
ANSWER_DIGITS = 16


class SampleError(ValueError):
    """Runs that a gate cannot use.  The message says which and what to do."""


def read_samples(
    path: Path, arm: Arm, engine: str | None = None, limits: VoidAsked | None = None
) -> tuple[list[RunSample], ArmInfo]:
    """One sample for each repeat in the run directory ``path``, and who was measured.

    ``engine`` names one of several; ``limits``: from where on a run is void (default: the gate's own).  Raises
    SampleError, and RunReadError for a directory that is not a run.
    """
    run = load_run(path)
    names = [info.name for info in run.manifest.engines]
    if engine is None and len(set(names)) > 1:
        raise SampleError(f"{path} holds several engines; name one, as {path}#{names[0]} (it has {', '.join(names)})")
    if engine is not None and engine not in names:
        raise SampleError(f"{path} has no engine {engine!r}; it has {', '.join(names) or 'none'}")
    chosen = engine if engine is not None else names[0] if names else ""
    repeats: dict[int, list[CellInfo]] = defaultdict(list)
    for cell in run.manifest.cells:
        if cell.engine == chosen:
            repeats[cell.repeat].append(cell)
    samples = [_sample(run, cells, arm, limits or VoidAsked()) for _, cells in sorted(repeats.items())]
    return samples, ArmInfo(where=str(path), facts=_facts(run, chosen))


def cell_key(cell: CellInfo) -> str:
    """``chat.c4`` of the cell ``mine.chat.c4.0``: what both builds' cells have in common."""
    return cell.cell_id.removeprefix(f"{cell.engine}.").removesuffix(f".{cell.repeat}")


def _sample(run: Run, cells: Sequence[CellInfo], arm: Arm, limits: VoidAsked) -> RunSample:
    sample = RunSample(arm=arm, source=str(run.path), run_id=run.manifest.run_id)
    if run.manifest.status in ("failed", "interrupted", "running"):
        sample.void.append(f"the run ended as {run.manifest.status!r}")
    sample.started_ns = _started(run, cells)
    for cell in cells:
        data = CellData.of(run, cell)
        summary = summarise_cell(data, run.manifest)
        key = cell_key(cell)
        sample.digests[key] = cell.workload.digest
        for name, metric in METRICS.items():
            value, count = metric.read(summary)
            sample.values[f"{key}/{name}"] = value
            if count is not None:
                sample.samples[f"{key}/{name}"] = count
        _judge_cell(sample, data, summary, limits)
        _take_answers(sample, key, data)
    if not sample.digests:
        sample.void.append("the run holds no cell of this engine")
    return sample


def _started(run: Run, cells: Sequence[CellInfo]) -> int | None:
    """When the first of ``cells`` began, ns since the epoch: the run's own start and the cells' distance from it."""
    begun = [cell.t_start for cell in run.manifest.cells if cell.t_start is not None]
    mine = [cell.t_start for cell in cells if cell.t_start is not None]
    try:
        created = datetime.fromisoformat(run.manifest.created_utc)
    except ValueError:
        return None
    return round(created.timestamp()) * 10**9 + (min(mine) - min(begun) if mine else 0)


def _judge_cell(sample: RunSample, data: CellData, summary: CellSummary, limits: VoidAsked) -> None:
    """Fill ``void``, ``broken`` and ``notes`` by the rules of validity, two of them with limits of the gate's own."""
    asked = {"error_share": limits.error_share, "foreign_cpu": limits.foreign_cpu}
    found = measures(summary, data, measured_window(data))
    numbers = {name: value for name, value in found.items() if value is not None}
    for rule in RULES:
        value = found.get(rule.measure)
        if value is None:
            continue
        if rule.measure in asked:
            limit = asked[rule.measure]
            is_void = is_told = limit is not None and value > limit
        else:
            is_invalid = rule.invalid is not None and value > rule.invalid
            is_told = is_invalid or (rule.suspect is not None and value > rule.suspect)
            is_void = is_invalid or (is_told and rule.measure in VOIDING)
        if not is_told:
            continue
        sentence = rule.sentence.format(value=value, **numbers)
        if is_void:
            sample.void.append(sentence)
            if rule.measure in BLAMED_ON_ENGINE:
                sample.broken.append(sentence)
        else:
            sample.notes.append(sentence)
    if runs_backwards(data):
        sample.void.append("times run backwards: the clock was stepped or the rows are damaged")


def runs_backwards(data: CellData) -> bool:
    """Whether a successful request has its moments in the wrong order."""
    moments = [data.column(name)[data.ok] for name in ("t_send", "t_first", "t_last", "t_done")]
    with np.errstate(invalid="ignore"):
        return any(bool((later < earlier).any()) for earlier, later in pairwise(moments))


def _take_answers(sample: RunSample, key: str, data: CellData) -> None:
    """Digest of each measured answer, under the question that it answers."""
    question = f"{key}/{sample.digests[key][:8]}"
    rows = data.requests.filter(pc.and_(data.requests["ok"], pc.invert(data.requests["warmup"])))
    pairs = zip(rows["request_index"].to_pylist(), rows["output_sha256"].to_pylist(), strict=True)
    sample.answers.update({f"{question}/{index}": sha[:ANSWER_DIGITS] for index, sha in pairs if sha is not None})


def _facts(run: Run, engine: str) -> dict[str, object]:
    info = next((info for info in run.manifest.engines if info.name == engine), None)
    machine = run.manifest.machine
    facts: dict[str, object] = {"machine": machine.hostname, "cpu": machine.cpu, "cores": machine.cores}
    if machine.gpus:
        facts["gpus"] = machine.gpus
    if info is not None:
        named = {"engine": info.kind, "version": info.version, "model": info.model, "dtype": info.dtype}
        facts |= {name: value for name, value in named.items() if value is not None}
        if info.recipe is not None:
            facts["recipe"] = info.recipe
        facts |= {"settings": info.settings} if info.settings else {}
    return facts
