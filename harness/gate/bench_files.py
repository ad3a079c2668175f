"""Judging two files of pytest-benchmark by the gate's statistics.

The rounds of a benchmark were made in one process, so they are not independent runs: they are folded into at most
twenty batches in time order, each by its median, and the i-th batch of one file is paired with the i-th of the other.
That allows for drift within a process; what differs from process to process is not in the data, and the verdict says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from harness.gate.thresholds import Thresholds
from harness.results.gate import Arm, ArmInfo, GateRecord, JudgeSpec, PairRecord, RuleSpec, RunSample

MAX_BATCHES = 20
METRIC = "time"


class BenchFileError(ValueError):
    """A file that pytest-benchmark did not write.  Shown as it is."""


def bench_gate(
    baseline: Path,
    candidate: Path,
    thresholds: Thresholds,
    *,
    tool_version: str,
    created_utc: str,
    command: Sequence[str],
) -> GateRecord:
    """The record of a gate over two benchmark files, not judged yet."""
    documents = [_read(path) for path in (baseline, candidate)]
    rounds = [_rounds(document, path) for document, path in zip(documents, (baseline, candidate), strict=True)]
    names = list(rounds[0])
    common = [name for name in names if name in rounds[1]]
    counts = [min(len(side[name]), MAX_BATCHES) for side in rounds for name in common]
    batches = min(counts, default=1)
    rules = [
        RuleSpec(
            metric=METRIC,
            cell=name,
            label=name,
            unit="s",
            better="lower",
            kind="timing",
            limit=thresholds.benchmark_limit,
        )
        for name in names
    ]
    arms: tuple[Arm, Arm] = ("baseline", "candidate")
    folded = [{name: fold(values, batches) for name, values in side.items()} for side in rounds]
    pairs = [
        PairRecord(
            index=i,
            order="AB",
            baseline=_sample(arms[0], baseline, folded[0], i),
            candidate=_sample(arms[1], candidate, folded[1], i),
        )
        for i in range(batches)
    ]
    warnings = [
        "each file is one process: differences from process to process are not in the data, repeat before acting"
    ]
    new = [name for name in rounds[1] if name not in rounds[0]]
    if new:
        warnings.append(f"not judged, because only the candidate has them: {', '.join(new)}")
    if batches == 1:
        warnings.append("a file holds one value a benchmark; save the rounds with --benchmark-save-data")
    return GateRecord(
        tool_version=tool_version,
        created_utc=created_utc,
        mode="pytest-benchmark",
        command=list(command),
        baseline=_info(baseline, documents[0]),
        candidate=_info(candidate, documents[1]),
        workload={"benchmarks": len(names)},
        spec=JudgeSpec(looks=[batches], fail_rate=thresholds.rates.fail, pass_rate=thresholds.rates.clear, rules=rules),
        pairs=pairs,
        warnings=warnings,
    )


def fold(values: Sequence[float], batches: int) -> list[float]:
    """Medians of ``batches`` consecutive parts of nearly equal length."""
    edges = [len(values) * i // batches for i in range(batches + 1)]
    return [float(median(values[a:b])) for a, b in pairwise(edges) if b > a]


def _sample(arm: Arm, path: Path, folded: dict[str, list[float]], i: int) -> RunSample:
    values: dict[str, float | None] = {
        f"{name}/{METRIC}": parts[i] if i < len(parts) else None for name, parts in folded.items()
    }
    return RunSample(arm=arm, source=str(path), values=values)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise BenchFileError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BenchFileError(f"{path} is not JSON ({error}); give what --benchmark-json wrote") from None
    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        raise BenchFileError(f"{path} has no list of benchmarks; give what pytest --benchmark-json wrote")
    return document


def _rounds(document: dict[str, Any], path: Path) -> dict[str, list[float]]:
    """Benchmark -> seconds of every round, or its median where the rounds were not saved; bad values are left out."""
    found: dict[str, list[float]] = {}
    for entry in document["benchmarks"]:
        stats = entry.get("stats") if isinstance(entry, dict) else None
        if not isinstance(stats, dict):
            raise BenchFileError(f"{path} has a benchmark without stats; give what pytest --benchmark-json wrote")
        name = str(entry.get("fullname") or entry.get("name"))
        values = stats.get("data") or [stats.get("median")]
        found[name] = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v) and v > 0]
    if not found:
        raise BenchFileError(f"{path} holds no benchmark; run pytest with --benchmark-only --benchmark-json")
    return found


def _info(path: Path, document: dict[str, Any]) -> ArmInfo:
    machine = document.get("machine_info") or {}
    commit = document.get("commit_info") or {}
    facts = {
        "machine": machine.get("node"),
        "cpu": (machine.get("cpu") or {}).get("brand_raw"),
        "python": machine.get("python_version"),
        "version": commit.get("id"),
        "date": document.get("datetime"),
    }
    return ArmInfo(where=str(path), facts={name: value for name, value in facts.items() if value is not None})
