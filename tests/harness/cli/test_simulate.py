"""``pagedbench simulate`` and ``blockmap``: one JSON document, one sentence for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments], capture_output=True, text=True, timeout=120
    )


def test_a_simulation_is_one_document_that_a_seed_repeats(tmp_path: Path) -> None:
    arguments = ("simulate", "--num-requests", "40", "--lengths", "alpaca", "--policy", "orca-max", "--seed", "5")
    done = call(*arguments, "--profile", "a100-opt-13b", "--json", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out" / "simulate.json").read_text())
    assert document["schema"] == "pagedbench-simulate/1"
    assert document["ledger"]["internal"] > 0.7
    assert document["ttft_s"]["p99"] is None  # 40 requests support no p99
    again = json.loads(call(*arguments, "--profile", "a100-opt-13b", "--json").stdout)
    assert {**again, "cpu_seconds": 0} == {**document, "cpu_seconds": 0}


def test_wrong_use_is_one_sentence(tmp_path: Path) -> None:
    for arguments, message in (
        (("simulate", "--profile", "h200"), "there is no simulation profile 'h200'; choose one of a100-opt-13b"),
        (("simulate", "--lengths", "mine"), "--lengths 'mine' is not known; choose one of sharegpt, alpaca"),
        (("simulate", "--calibrate", str(tmp_path / "none")), "cannot read it"),
        (("simulate", "--policy", "orca-max", "--kv-slots", "64"), "policy orca-max reserves 8192 tokens"),
        (("blockmap", str(tmp_path / "none")), "cannot read it"),
    ):
        done = call(*arguments)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
