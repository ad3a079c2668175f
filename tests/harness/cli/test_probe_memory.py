"""``pagedbench probe-memory`` against the emulator, whose pool is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.capacity.estimate import Capacity
from harness.cli.errors import CliError
from harness.cli.probe_memory import probe_memory, result, sentence
from harness.emulator.options import make_options
from harness.emulator.process import spawned

ROOT = Path(__file__).resolve().parents[3]


def probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "probe-memory", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_the_pool_of_the_emulator_is_found(tmp_path: Path) -> None:
    options = make_options(ttft_ms=5, itl_ms=4, kv_tokens=4096, block_size=16, max_num_seqs=128, max_model_len=512)
    with spawned(options) as url:
        done = probe("--engine", f"emu={url}", "--budget", "60", "--json", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["engines"]
    assert json.loads((tmp_path / "out" / "capacity.json").read_text()) == json.loads(done.stdout)
    assert found["limit"] == "preemption"
    assert found["tokens"] == pytest.approx(4096, rel=0.05)
    assert found["told_by_engine"] == 4096
    assert abs(found["difference"]) <= 0.05


def test_an_engine_limited_by_its_slots_gives_a_lower_bound() -> None:
    options = make_options(ttft_ms=5, itl_ms=2, kv_tokens=10**6, max_num_seqs=4, max_model_len=256)
    with spawned(options) as url:
        done = probe("--engine", f"emu={url}", "--budget", "20", "--max-concurrency", "16")
    assert done.returncode == 1, done.stderr
    assert "emu: at least" in done.stdout
    assert "limited" in done.stdout


def test_wrong_use_is_a_sentence() -> None:
    with pytest.raises(CliError, match="at least one engine"):
        probe_memory()
    with pytest.raises(CliError, match="--budget must be above 0"):
        probe_memory(["a=http://h:1"], budget=0)
    with pytest.raises(CliError, match="should read NAME=URL"):
        probe_memory(["nonsense"])


def test_an_engine_that_is_not_there() -> None:
    with pytest.raises(CliError, match="no HTTP server answers") as caught:
        probe_memory(["a=http://127.0.0.1:9"])
    assert caught.value.code == 3


def test_the_answer_in_words() -> None:
    measured = result("a", Capacity("preemption", 990, 980, 1000, 16), 1000.0, 12.3, 3)
    assert sentence(measured).startswith("a: 990 tokens, 980 to 1000 (")
    assert "the engine says 1000, -1.0%; 3 rounds in 12 s" in sentence(measured)
    bound = result("a", Capacity("none", None, 700, None), None, 5.0, 1)
    assert sentence(bound).startswith("a: at least 700 tokens (nothing showed")
