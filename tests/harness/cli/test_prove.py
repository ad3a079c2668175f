"""``pagedbench conform --prove`` on the real reference engine: two faults and a variant, end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.prove import Servers, entries_of
from harness.engines.catalogue import find


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "conform", "--prove", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_an_unknown_fault_is_one_sentence() -> None:
    done = run("--fault", "F99")
    assert done.returncode == 3
    assert "F99" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_foreign_matrix_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "kill-matrix.json").write_text("{}")
    done = run("--fault", "F41", "--out", str(tmp_path))
    assert done.returncode == 3
    assert "is no kill matrix" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_of_every_fault_are_settings_of_the_recipe(tmp_path: Path) -> None:
    servers = Servers("sentinel", tmp_path, None)
    known = set(find("reference").settings)
    for entry in entries_of(()):
        wanted = servers.settings_of(entry, entry.settings)
        assert set(wanted) <= known, entry.id
        assert wanted["inject_fault" if entry.kind == "fault" else "benign"] == entry.id
    assert (tmp_path / "models" / "sentinel-window-256" / "config.json").exists()


@pytest.mark.slow
def test_the_matrix_is_drawn_and_kept(tmp_path: Path) -> None:
    wanted = ("--fault", "F41,F44", "--fault", "N12", "--cases", "API-04,API-05,STR-01")
    done = run(*wanted, "--effort", "0.3", "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    matrix = json.loads(done.stdout)
    assert json.loads((tmp_path / "kill-matrix.json").read_text()) == matrix
    assert {row["id"]: row["verdict"] for row in matrix["faults"]} == {"F41": "killed", "F44": "killed"}
    assert all(row["fired"] for row in matrix["faults"])
    assert matrix["false_alarms"]["hits"] == 0
    assert "F41" in (tmp_path / "kill-matrix.md").read_text()
    again = run(*wanted, "--effort", "0.3", "--out", str(tmp_path), "--json")
    assert json.loads(again.stdout) == matrix
    assert again.stderr.count("(known)") == 3
