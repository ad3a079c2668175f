"""Replayed gates: ``python -m harness.gate.replays GATE.json... [--gates 300] [--keep-arms]`` prints JSON.

Takes real pairs of one build against itself and plays new gates from them: each draws as many pairs as a gate plans, in a
new order, and decides by a coin for each pair which of its two runs is called the candidate.  Under "no change" both names
are equally right, so each replay is a gate that could have happened.  With ``--keep-arms`` the names stay: pairs with a
known slowdown then give a detection curve.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.gate.judge import judge
from harness.gate.record_file import read_record
from harness.gate.spending import DEFAULT_LOOKS
from harness.results.gate import JudgeSpec, PairRecord


def replay(
    pairs: Sequence[PairRecord], spec: JudgeSpec, gates: int, seed: int, keep_arms: bool = False
) -> Counter[str]:
    """How ``gates`` gates drawn from ``pairs`` come out: verdicts, and those by the pairs used ("FAIL after 12").

    Raises ValueError when there are fewer pairs than a gate plans.
    """
    if len(pairs) < spec.looks[-1]:
        raise ValueError(f"a gate plans {spec.looks[-1]} pairs, there are only {len(pairs)} to draw from")
    rng = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    for _ in range(gates):
        chosen = rng.permutation(len(pairs))[: spec.looks[-1]]
        turned = rng.integers(0, 2, chosen.size) * (not keep_arms)
        drawn = [_as(pairs[i], index, bool(turn)) for index, (i, turn) in enumerate(zip(chosen, turned, strict=True))]
        result = judge(spec, drawn)
        found[result.verdict] += 1
        found[f"{result.verdict} after {result.pairs_used}"] += 1
    return found


def _as(pair: PairRecord, index: int, is_turned: bool) -> PairRecord:
    a, b = (pair.candidate, pair.baseline) if is_turned else (pair.baseline, pair.candidate)
    update = {
        "index": index,
        "attempt": 0,
        "baseline": a.model_copy(update={"arm": "baseline"}),
        "candidate": b.model_copy(update={"arm": "candidate"}),
    }
    return pair.model_copy(update=update)


def run_to_run_cv(pairs: Sequence[PairRecord], only_baseline: bool = False) -> dict[str, float]:
    """Coefficient of variation of every metric over all runs, or over the baseline's where the builds differ."""
    values: dict[str, list[float]] = {}
    for pair in pairs:
        for sample in (pair.baseline,) if only_baseline else (pair.baseline, pair.candidate):
            for key, value in sample.values.items():
                if value is not None:
                    values.setdefault(key, []).append(value)
    return {
        key: float(np.std(found, ddof=1) / np.mean(found))
        for key, found in values.items()
        if len(found) > 1 and np.mean(found) > 0
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay A/A gates from recorded A/A pairs.")
    parser.add_argument("records", type=Path, nargs="+", help="gate.json of A/A gates")
    parser.add_argument("--gates", type=int, default=300, help="gates to replay [count]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-arms", action="store_true", help="the pairs hold a known change: do not swap names")
    arguments = parser.parse_args()
    records = [read_record(path) for path in arguments.records]
    pairs = [pair for record in records for pair in record.pairs if not pair.is_void]
    if len(pairs) < DEFAULT_LOOKS[-1]:
        parser.error(f"a gate plans {DEFAULT_LOOKS[-1]} pairs, these records hold only {len(pairs)} that count")
    spec = records[0].spec.model_copy(update={"looks": list(DEFAULT_LOOKS)})
    cvs = run_to_run_cv(pairs, arguments.keep_arms)
    judged = {rule.key for rule in spec.rules}
    print(
        json.dumps(
            {
                "pairs": len(pairs),
                "void attempts": sum(pair.is_void for record in records for pair in record.pairs),
                "gates": arguments.gates,
                "verdicts": dict(
                    sorted(replay(pairs, spec, arguments.gates, arguments.seed, arguments.keep_arms).items())
                ),
                "run-to-run CV": {key: cv for key, cv in cvs.items() if key in judged},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
