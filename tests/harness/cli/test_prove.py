"""``pagedbench conform --prove`` on the real reference engine: two faults and a variant, end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "conform", "--prove", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_an_unknown_fault_is_one_sentence() -> None:
    done = run("--fault", "F99")
    assert done.returncode == 3
    assert "F99" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_matrix_is_drawn_and_kept(tmp_path: Path) -> None:
    wanted = ("--fault", "F41", "--fault", "F44", "--fault", "N12", "--cases", "API-04,API-05,STR-01")
    done = run(*wanted, "--effort", "0.3", "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    matrix = json.loads(done.stdout)
    assert json.loads((tmp_path / "kill-matrix.json").read_text()) == matrix
    assert {row["id"]: row["verdict"] for row in matrix["faults"]} == {"F41": "killed", "F44": "killed"}
    assert all(row["fired"] for row in matrix["faults"])
    assert matrix["false_alarms"]["hits"] == 0
    assert "F41" in (tmp_path / "kill-matrix.md").read_text()
