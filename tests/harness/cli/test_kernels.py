from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENV = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "kernels", *options], capture_output=True, text=True, env=ENV
    )


def test_help_names_the_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "Exit codes" in done.stdout
    assert "--json" in done.stdout


@pytest.mark.timeout(300)
def test_without_a_gpu_it_checks_and_says_what_it_could_not_measure(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = run("--json", "--seed", "5", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["environment"]["device"] == "cpu"
    assert results["check"]
    assert all(row["passed"] for row in results["check"])
    assert any("no CUDA device" in line for line in results["not_measured"])
    assert "attention" not in results
    assert json.loads((tmp_path / "kernels.json").read_text()) == results
    assert "no CUDA device" in (tmp_path / "kernels.html").read_text()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run("--quick", "--out", str(blocked / "x"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "choose another folder" in done.stderr
