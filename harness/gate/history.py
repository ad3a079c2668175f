"""A history of gates: one small JSON file a gate in a folder (or on a git branch), its trend, and what it teaches.

::

    HISTORY/20261126T120000-1a2b3c4d.json     HistoryEntry: verdict, and for each metric both medians, change, spread

The trend of a metric is the candidate's median from gate to gate; change points in it are for reading, not for deciding
(they need points after the change).  The spread of the pairs says how many pairs the next gate needs.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
from pydantic import ValidationError
from scipy.special import stdtrit

from harness.gate.judge import counted_pairs
from harness.gate.record_file import to_text
from harness.gate.rules import log_ratios
from harness.gate.spending import SHIPPED, fail_levels, plan_for, smallest_p
from harness.results.gate import GateRecord, HistoryEntry, HistoryMetric
from harness.results.intervals import null_tail

MIN_POINTS = 8  # gates below which no change point is looked for
PENALTY = 6.0  # of the change-point search, times log(n): about one flat series in eighty shows a false step
MIN_SEGMENT = 3
POWER = 0.90
MIN_PAIRS, MOST_PAIRS = 8, 200
SMALLEST_STEPS = 4


class HistoryError(ValueError):
    """A history that cannot be read or written.  Shown as it is."""


def entry_of(record: GateRecord, label: str | None = None) -> HistoryEntry:
    """The small record of a gate.  ``label``: a commit or a date, by default the candidate's version."""
    if record.result is None:
        raise HistoryError("this gate was not judged; judge it with pagedbench gate --replay")
    counted = counted_pairs(record.pairs)[: record.result.pairs_used]
    metrics = {}
    for found in record.result.rules:
        spread = None
        if found.method == "wilcoxon" and len(counted) > 1:
            spread = float(np.std(log_ratios(found.rule, counted), ddof=1))
        metrics[found.rule.key] = HistoryMetric(
            label=found.rule.label,
            unit=found.rule.unit,
            better=found.rule.better,
            baseline=found.baseline_median,
            candidate=found.candidate_median,
            change=found.change,
            verdict=found.verdict,
            pair_spread=spread,
        )
    return HistoryEntry(
        gate=hashlib.sha256(to_text(record).encode()).hexdigest()[:8],
        created_utc=record.created_utc,
        label=label or str(record.candidate.facts.get("version") or record.candidate.where),
        verdict=record.result.verdict,
        pairs=record.result.pairs_used,
        metrics=metrics,
    )


def file_name(entry: HistoryEntry) -> str:
    moment = "".join(c for c in entry.created_utc.partition("+")[0] if c.isdigit() or c == "T")
    return f"{moment}-{entry.gate}.json"


def add(folder: Path, entry: HistoryEntry) -> Path:
    """Write the entry; the same gate twice is one file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(entry)
    path.write_text(entry.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path


def read(folder: Path) -> list[HistoryEntry]:
    """All entries by time.  Raises HistoryError."""
    if not folder.is_dir():
        raise HistoryError(f"{folder} is no folder; `pagedbench history add GATE.json --history {folder}` begins one")
    return _sorted([_parse(path.read_text(encoding="utf-8"), str(path)) for path in folder.glob("*.json")])


def add_to_branch(repository: Path, branch: str, entry: HistoryEntry) -> str:
    """Commit the entry to ``branch`` of a git repository without touching its work tree; returns the commit.

    The branch is begun if there is none.  Raises HistoryError.
    """
    text = entry.model_dump_json(indent=1) + "\n"
    blob = _git(repository, "hash-object", "-w", "--stdin", text=text)
    parent = _git(repository, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}", may_fail=True)
    lines = _git(repository, "ls-tree", f"refs/heads/{branch}").splitlines() if parent else []
    kept = [line for line in lines if line.partition("\t")[2] != file_name(entry)]
    tree = _git(repository, "mktree", text="\n".join([*kept, f"100644 blob {blob}\t{file_name(entry)}"]) + "\n")
    message = f"gate {entry.gate}: {entry.verdict} ({entry.label})"
    parents = ["-p", parent] if parent else []
    commit = _git(repository, "commit-tree", tree, *parents, "-m", message)
    _git(repository, "update-ref", f"refs/heads/{branch}", commit, parent or "0" * 40)
    return commit


def read_branch(repository: Path, branch: str) -> list[HistoryEntry]:
    """All entries on ``branch``, local or of a remote.  Raises HistoryError."""
    names = _git(repository, "ls-tree", "--name-only", branch).splitlines()
    texts = [(name, _git(repository, "show", f"{branch}:{name}")) for name in names if name.endswith(".json")]
    return _sorted([_parse(text, f"{branch}:{name}") for name, text in texts])


def _git(repository: Path, *arguments: str, text: str | None = None, may_fail: bool = False) -> str:
    command = ["git", "-C", str(repository), *arguments]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise HistoryError(f"git cannot be run: {error}") from None
    if done.returncode != 0:
        if may_fail:
            return ""
        raise HistoryError(f"git {arguments[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def _parse(text: str, where: str) -> HistoryEntry:
    try:
        return HistoryEntry.model_validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        raise HistoryError(f"{where} is no entry of a gate history: {str(error).splitlines()[0]}") from None


def _sorted(entries: Sequence[HistoryEntry]) -> list[HistoryEntry]:
    return sorted(entries, key=lambda entry: (entry.created_utc, entry.gate))


def change_points(values: Sequence[float]) -> list[int]:
    """Indices at which a new level begins: PELT on log values with a normal cost (the library ruptures).

    Empty for fewer than ``MIN_POINTS`` values.
    """
    if len(values) < MIN_POINTS or min(values) <= 0:
        return []
    import ruptures

    logs = np.log(np.asarray(values, dtype=np.float64))
    # The noise from one gate to the next, unmoved by steps: from the differences of neighbours.
    noise = float(np.median(np.abs(np.diff(logs)))) / (NormalDist().inv_cdf(0.75) * math.sqrt(2))
    if noise == 0:
        noise = max(1e-9, float(np.std(logs)) * 1e-3)
    search = ruptures.Pelt(model="l2", min_size=MIN_SEGMENT, jump=1).fit((logs / noise)[:, None])
    return [int(i) for i in search.predict(pen=PENALTY * math.log(len(values)))[:-1]]


def pairs_needed(spread: float, limit: float, metrics: int = 5, most: int = MOST_PAIRS) -> int | None:
    """Pairs with which a single look finds a change of twice ``limit`` nine times in ten; None above ``most``.

    ``spread``: standard deviation of the pairs' log ratios.  By Student's t, to whose power the
    signed-rank test comes close; its efficiency against the mean is 3 / pi.
    """
    change = math.log1p(2 * limit)
    for pairs in range(MIN_PAIRS, most + 1):
        tail = null_tail(pairs)
        level = float(max((p for p in tail if p <= fail_levels(plan_for([pairs]), metrics)[0]), default=0.0))
        if level < SMALLEST_STEPS * smallest_p(pairs):
            continue  # so few rank sums are left that a single pair the wrong way round undoes the finding
        error = spread / math.sqrt(pairs * 3 / math.pi)
        again = float(stdtrit(pairs - 1, POWER))
        by_significance = (float(stdtrit(pairs - 1, 1 - level)) + again) * error
        by_limit = math.log1p(limit) + again * error
        if max(by_significance, by_limit) <= change:
            return pairs
    return None


def looks_for(entries: Sequence[HistoryEntry], limits: Mapping[str, float]) -> list[int]:
    """Looks of the next gate from the spread of the last ten: the shipped plan that holds enough pairs, else one look.

    ``limits``: of each metric, by key.  Raises HistoryError when the history knows none of them.
    """
    needed = []
    for key, limit in limits.items():
        spreads = [m.pair_spread for entry in entries[-10:] if (m := entry.metrics.get(key)) and m.pair_spread]
        if spreads and limit > 0:
            needed.append(pairs_needed(float(np.median(spreads)), limit, len(limits)) or MOST_PAIRS)
    if not needed:
        raise HistoryError("the history knows the spread of none of these metrics; gate once with --pairs first")
    enough = [list(plan.looks) for plan in (SHIPPED[0], SHIPPED[2]) if plan.looks[-1] >= max(needed)]
    return enough[0] if enough else [max(needed)]
