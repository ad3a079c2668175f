"""The history: small records, change points, sample sizes, and a git branch that never touches the work tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from harness.gate.error_rates import power
from harness.gate.history import (
    HistoryError,
    add,
    add_to_branch,
    change_points,
    entry_of,
    looks_for,
    pairs_needed,
    read,
    read_branch,
)
from harness.gate.judge import judge
from harness.gate.trend import trends
from harness.results.gate import ArmInfo, GateRecord
from reports.history_page import history_page
from tests.harness.gate.conftest import noisy_pairs, rule, spec


def record(day: int, level: float = 1.0) -> GateRecord:
    pairs = noisy_pairs(12, cv=0.005, seed=day)
    for one in pairs:
        for run in (one.baseline, one.candidate):
            run.values = {key: value * level for key, value in run.values.items() if value is not None}
    found = spec(rule(), looks=(12,))
    return GateRecord(
        tool_version="0",
        created_utc=f"2026-11-{day:02}T00:00:00+00:00",
        mode="driven",
        baseline=ArmInfo(where="a"),
        candidate=ArmInfo(where="b", facts={"version": f"v{day}"}),
        spec=found,
        pairs=pairs,
        result=judge(found, pairs),
    )


def test_steps_are_found_where_they_are_and_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    flat = np.exp(rng.normal(0, 0.01, 30))
    stepped = flat * np.where(np.arange(30) >= 18, 1.06, 1.0)
    assert change_points(stepped.tolist()) == [18]
    quiet = [change_points(np.exp(rng.normal(0, 0.01, 30)).tolist()) for _ in range(50)]
    assert sum(map(bool, quiet)) <= 5
    assert change_points([1.0, 2.0]) == []


def test_added_gates_come_back_by_time_with_their_trend(tmp_path: Path) -> None:
    for day in (*range(10, 20), *range(1, 10)):
        add(tmp_path, entry_of(record(day, 1.1 if day >= 12 else 1.0)))
    add(tmp_path, entry_of(record(5)))
    entries = read(tmp_path)
    assert [entry.label for entry in entries] == [f"v{day}" for day in range(1, 20)]
    assert all(path.stat().st_size < 2000 for path in tmp_path.iterdir())
    (trend,) = trends(entries, change_points)
    assert [step.label for step in trend.steps] == ["v12"]
    assert trend.steps[0].share == pytest.approx(0.1, abs=0.02)
    assert trend.pair_spread == pytest.approx(0.005 * 2**0.5, rel=0.3)
    page = history_page([trend], len(entries))
    assert page == history_page([trend], len(entries))
    assert "v12" in page
    assert "://" not in page.replace('xmlns="http://www.w3.org', "")


def test_sample_size_is_what_the_simulation_says() -> None:
    pairs = pairs_needed(0.02 * 2**0.5, 0.02)
    assert pairs is not None
    assert 0.87 < power(800, (0.02,) * 5, (pairs,), (0.04, 0, 0, 0, 0), 0.02)[str(pairs)] < 0.99
    assert pairs_needed(1.0, 0.01) is None


def test_the_next_gate_gets_looks_that_hold_enough_pairs() -> None:
    entries = [entry_of(record(day)) for day in range(1, 6)]
    assert looks_for(entries, {rule().key: 0.02}) == [8, 12, 20]
    assert looks_for(entries, {rule().key: 0.001})[-1] > 32
    with pytest.raises(HistoryError, match="none of these"):
        looks_for(entries, {"other/metric": 0.02})


def test_a_branch_keeps_the_history_and_leaves_the_work_tree_alone(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "-q", "-b", "main")
    git("config", "user.name", "n")
    git("config", "user.email", "e")
    (tmp_path / "code").write_text("x")
    git("add", "code")
    git("commit", "-qm", "code")
    for day in (1, 2, 2):
        add_to_branch(tmp_path, "gates", entry_of(record(day)))
    assert [entry.label for entry in read_branch(tmp_path, "gates")] == ["v1", "v2"]
    assert git("status", "--porcelain") == ""
    assert git("ls-tree", "--name-only", "main").split() == ["code"]
    with pytest.raises(HistoryError):
        read_branch(tmp_path, "none")


def test_other_files_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(HistoryError, match=r"a\.json"):
        read(tmp_path)
    with pytest.raises(HistoryError, match="history add"):
        read(tmp_path / "none")
