"""Judging runs that exist: two sets of run directories become pairs of equal questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from harness.gate.samples import SampleError, read_samples
from harness.gate.thresholds import Thresholds
from harness.results.gate import Arm, ArmInfo, GateRecord, PairRecord, RunSample

RUN_FILE = "run.json"


def expand(texts: Sequence[str], arm: Arm) -> list[tuple[Path, str | None]]:
    """Run directories named by ``PATH`` or ``PATH#ENGINE``; a folder of runs stands for all of them, by name."""
    found: list[tuple[Path, str | None]] = []
    for text in texts:
        where, _, engine = text.partition("#")
        path = Path(where)
        if (path / RUN_FILE).is_file() or not path.is_dir():
            found.append((path, engine or None))
            continue
        inside = sorted(file.parent for file in path.glob(f"*/{RUN_FILE}"))
        if not inside:
            raise SampleError(f"--{arm} {text}: neither a run directory nor a folder of run directories")
        found += [(one, engine or None) for one in inside]
    return found


def pair_up(baseline: Sequence[RunSample], candidate: Sequence[RunSample]) -> tuple[list[PairRecord], list[str]]:
    """Pairs of runs that were asked the same, the i-th of one side with the i-th of the other, and warnings.

    Raises SampleError when no two runs were asked the same.
    """
    groups: dict[str, tuple[list[RunSample], list[RunSample]]] = defaultdict(lambda: ([], []))
    for side, samples in enumerate((baseline, candidate)):
        for sample in samples:
            groups["/".join(f"{key}={digest}" for key, digest in sorted(sample.digests.items()))][side].append(sample)
    pairs: list[PairRecord] = []
    alone = 0
    # Round by round over the groups, so that the first pairs are as mixed as all of them.
    longest = max((max(len(a), len(b)) for a, b in groups.values()), default=0)
    for i in range(longest):
        for a, b in groups.values():
            if i < len(a) and i < len(b):
                order = "AB" if (a[i].started_ns or 0) <= (b[i].started_ns or 0) else "BA"
                pairs.append(PairRecord(index=len(pairs), order=order, baseline=a[i], candidate=b[i]))  # type: ignore[arg-type]
            elif i < len(a) or i < len(b):
                alone += 1
    if not pairs:
        raise SampleError(
            "no baseline run and candidate run were asked the same requests (their workload digests differ); "
            "record both with the same workload, load, seed and tokenizer"
        )
    warnings = [f"{alone} runs have no partner that was asked the same, and are left out"] if alone else []
    if not is_interleaved(pairs):
        warnings.append(
            "the runs were not interleaved: all of one build came before the other, so a drift of the machine looks like "
            "a change, and the stated error rates do not cover it; let the gate drive both builds"
        )
    return pairs, warnings


def is_interleaved(pairs: Sequence[PairRecord]) -> bool:
    """Whether neither build's runs all came before the other's; runs without a time count as interleaved."""
    a = [pair.baseline.started_ns for pair in pairs]
    b = [pair.candidate.started_ns for pair in pairs]
    known_a, known_b = [t for t in a if t is not None], [t for t in b if t is not None]
    if len(pairs) < 2 or not known_a or not known_b:
        return True
    return max(known_a) > min(known_b) and max(known_b) > min(known_a)


def recorded_gate(
    baseline: Sequence[str],
    candidate: Sequence[str],
    thresholds: Thresholds,
    *,
    tool_version: str,
    created_utc: str,
    command: Sequence[str] = (),
) -> GateRecord:
    """The record of a gate over existing runs, not judged yet: one look, at all pairs."""
    sides: dict[Arm, list[RunSample]] = {"baseline": [], "candidate": []}
    infos: dict[Arm, ArmInfo] = {}
    texts: list[tuple[Arm, Sequence[str]]] = [("baseline", baseline), ("candidate", candidate)]
    for arm, given in texts:
        for path, engine in expand(given, arm):
            samples, info = read_samples(path, arm, engine, thresholds.void)
            sides[arm] += samples
            infos.setdefault(arm, info.model_copy(update={"where": ", ".join(given)}))
        sides[arm].sort(key=lambda sample: sample.started_ns or 0)
        if not sides[arm]:
            raise SampleError(f"the {arm} runs hold nothing that was measured; run again")
    pairs, warnings = pair_up(sides["baseline"], sides["candidate"])
    cells = list(dict.fromkeys(cell for pair in pairs for cell in pair.baseline.digests))
    measured = {key for sample in sides["baseline"] for key, value in sample.values.items() if value is not None}
    usable = sum(not pair.is_void for pair in pairs)
    spec = thresholds.spec(cells, measured).model_copy(update={"looks": [max(1, usable)]})
    warnings += different_setups(infos["baseline"], infos["candidate"])
    return GateRecord(
        tool_version=tool_version,
        created_utc=created_utc,
        mode="recorded",
        command=list(command),
        baseline=infos["baseline"],
        candidate=infos["candidate"],
        workload={
            "cells": cells,
            "digests": {cell: pairs[0].baseline.digests[cell] for cell in pairs[0].baseline.digests},
        },
        spec=spec,
        pairs=pairs,
        warnings=warnings,
    )


def different_setups(baseline: ArmInfo, candidate: ArmInfo) -> list[str]:
    """Sentences about what makes the two sides hard to compare: another model, dtype or machine."""
    sentences = []
    for name in ("model", "dtype", "machine", "cpu"):
        a, b = baseline.facts.get(name), candidate.facts.get(name)
        if a is not None and b is not None and a != b:
            sentences.append(f"the {name} differs: {a} against {b}")
    return sentences
