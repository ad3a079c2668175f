"""kill -9 at any moment, of the harness, of a worker or of the engine: every request that had finished a second before
is there, and the run says how it ended.

The server is a process of its own that logs when each answer ended, so that what must be there is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.results.metrics import summarise
from harness.results.reader import load_run

ROOT = Path(__file__).resolve().parents[3]


@contextlib.contextmanager
def emulator(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "harness.cli", "emulate", "--port", "0", *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if "listening on" in line:
                break
        yield line.split("listening on")[1].strip(), child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def start_run(
    url: str, out: Path, *more: str, errors: int = subprocess.DEVNULL, prefix: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-m", "harness.cli", "run", "--engine", f"a={url}", "--no-report"]
    command += ["--workload", "concurrency:input=8,output=5,levels=8", "--num-requests", "1500", *more]
    command += ["--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, text=True, cwd=ROOT)


def wait_for_rows(out: Path, process: subprocess.Popen[str], count: int = 20) -> None:
    journal = out / "requests.jsonl"
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def forget_answers(url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{url}/truth/reset", method="POST"), timeout=10).close()


def answered_before(url: str, t: int) -> int:
    """Answers whose last chunk had left the emulator at ``t`` [monotonic ns], by its own record."""
    with urllib.request.urlopen(f"{url}/truth", timeout=10) as response:
        answers = json.load(response)["answers"]
    whole = max(map(len, answers))
    return sum(len(stamps) == whole and stamps[-1] <= t for stamps in answers)


def kill_once(url: str, out: Path, after_s: float) -> None:
    """Kill the harness ``after_s`` after its first rows; look at what is left."""
    forget_answers(url)
    child = start_run(url, out)
    wait_for_rows(out, child)
    time.sleep(after_s)
    before = time.monotonic_ns()
    child.send_signal(signal.SIGKILL)
    child.wait()
    run = load_run(out)
    assert run.manifest.status == "killed"
    assert "killed" in (run.manifest.ended or "")
    assert [cell.status for cell in run.manifest.cells] == ["killed"]
    done = run.requests["t_done"].to_numpy()
    assert run.requests.num_rows >= 20
    # What the server had answered a second before is there, but for the 8 that a starved client may not have read.
    assert run.requests.num_rows >= answered_before(url, before - 1_000_000_000) - 8
    # Requests are numbered as they are sent; of those sent a second ago none may be missing.
    indices = sorted(index for index in run.requests["request_index"].to_pylist() if index >= 0)
    old = [i for i, t in zip(run.requests["request_index"].to_pylist(), done.tolist(), strict=True) if before - t > 1e9]
    missing = set(range(max(old, default=-1) - 8)) - set(indices)
    assert not missing
    assert summarise(run).cells[0].requests_ok == sum(run.requests["ok"].to_pylist())


def test_a_killed_harness_loses_nothing(tmp_path: Path) -> None:
    with emulator("--ttft-ms", "20", "--itl-ms", "10") as (url, _):
        kill_once(url, tmp_path / "run", 2 + random.random() / 2)


@pytest.mark.slow
def test_a_harness_killed_at_fifty_moments_loses_nothing(tmp_path: Path) -> None:
    with emulator("--ttft-ms", "20", "--itl-ms", "10") as (url, _):
        for number in range(50):
            kill_once(url, tmp_path / f"run-{number}", 1.5 + random.random())


def killed_worker_once(url: str, out: Path, after_s: float) -> None:
    """Kill one of two workers ``after_s`` after the first rows; look at what is left and what is said."""
    forget_answers(url)
    child = start_run(url, out, "--workers", "2", errors=subprocess.PIPE)
    wait_for_rows(out, child)
    time.sleep(after_s)
    victim = random.choice(workers_of(child.pid))
    before = time.monotonic_ns()
    os.kill(victim, signal.SIGKILL)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 4, said
    assert "died (status -9); what the others wrote is kept" in said.splitlines()[-1]
    assert "Traceback" not in said
    run = load_run(out)
    assert (run.manifest.status, [cell.status for cell in run.manifest.cells]) == ("failed", ["failed"])
    assert "died (status -9)" in (run.manifest.ended or "")
    assert run.summary is not None
    assert run.summary.cells[0].validity == "INVALID"
    done = dict(zip(run.requests["request_index"].to_pylist(), run.requests["t_done"].to_pylist(), strict=True))
    # Each worker's requests are every second one, numbered as they are sent, four at once.
    for parity in (0, 1):
        own = {index for index in done if index % 2 == parity}
        old = {index for index in own if before - done[index] > 1e9}
        assert set(range(parity, max(old, default=parity) - 8, 2)) <= own
    assert len(done) >= answered_before(url, before - 1_000_000_000) - 8


def test_a_killed_worker_ends_the_run_with_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    with emulator("--ttft-ms", "20", "--itl-ms", "10") as (url, _):
        killed_worker_once(url, tmp_path / "run", 2 + random.random() / 2)


@pytest.mark.slow
def test_workers_killed_at_twenty_moments_lose_nothing(tmp_path: Path) -> None:
    with emulator("--ttft-ms", "20", "--itl-ms", "10") as (url, _):
        for number in range(20):
            killed_worker_once(url, tmp_path / f"run-{number}", 1.5 + random.random())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_engine_ends_the_run_with_a_sentence(tmp_path: Path, workers: str) -> None:
    out = tmp_path / "run"
    child = start_run("recipe:emulator,ttft_ms=20,itl_ms=10", out, "--workers", workers, errors=subprocess.PIPE)
    wait_for_rows(out, child)
    time.sleep(random.random() / 2)
    os.kill(engine_of(child.pid), signal.SIGKILL)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 3, said
    assert "engine 'a' was killed by SIGKILL" in said
    assert "Traceback" not in said
    run = load_run(out)
    assert run.manifest.status == "failed"
    assert "SIGKILL" in (run.manifest.ended or "")
    assert run.summary is not None
    assert run.summary.cells[0].validity == "INVALID"
    assert run.requests.num_rows >= 20
    assert (out / "logs" / "a.log").read_text().startswith("$ ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_a_sentence_and_the_run_is_kept(tmp_path: Path, workers: str) -> None:
    """No file may grow beyond 64 KiB: what a write beyond it says is what one to a full disk says, by another name."""
    out = tmp_path / "run"
    limit = ("bash", "-c", 'ulimit -f 64; exec "$@"', "limited")
    with emulator("--ttft-ms", "5", "--itl-ms", "2") as (url, _):
        child = start_run(url, out, "--workers", workers, errors=subprocess.PIPE, prefix=limit)
        _, said = child.communicate(timeout=120)
    assert child.returncode == 4, said
    assert "File too large" in said.splitlines()[-1]
    assert "kept" in said.splitlines()[-1]
    assert "Traceback" not in said
    run = load_run(out)
    assert run.manifest.status == "failed"
    assert "File too large" in (run.manifest.ended or "")
    assert run.requests.num_rows > 50
    assert set(run.requests["ok"].to_pylist()) <= {True, False}


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with emulator() as (url, _):
        child = start_run(url, tmp_path / "file" / "run", errors=subprocess.PIPE)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 4
    assert said.splitlines()[-1].startswith("pagedbench: cannot write the run directory")
    assert "Traceback" not in said


def workers_of(harness: int) -> list[int]:
    """Pids of the worker processes of a harness."""
    import psutil

    children = psutil.Process(harness).children(recursive=True)
    found = [child.pid for child in children if "harness.load.worker" in child.cmdline()]
    assert len(found) == 2
    return found


def engine_of(harness: int) -> int:
    """Pid of the engine that a harness has launched."""
    import psutil

    for child in psutil.Process(harness).children(recursive=True):
        if "emulate" in child.cmdline():
            return child.pid
    raise AssertionError("no engine was launched")


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    # Answers of 66 ms: the second cell goes on for seconds after its first rows, so that the kill cannot come too late.
    with emulator("--ttft-ms", "60", "--itl-ms", "2") as (url, _):
        plan: dict[str, Any] = {
            "engines": [f"a={url}"],
            "workloads": [{"name": "concurrency", "parameters": {"input": 8, "output": 4, "levels": [2, 1]}}],
            "num_requests": 60,
        }
        (tmp_path / "plan.yaml").write_text(json.dumps(plan))
        command = [sys.executable, "-m", "harness.cli", "run", "--no-report"]
        planned = [*command, str(tmp_path / "plan.yaml"), "--out", str(out)]
        child = subprocess.Popen(planned, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)
        wait_for_rows(out, child, 62)  # the second cell has begun
        child.kill()
        child.wait()
        assert [cell.status for cell in load_run(out).manifest.cells] == ["complete", "killed"]
        done = subprocess.run([*command, "--resume", str(out)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 5), done.stderr
    run = load_run(out)
    assert run.manifest.status == "complete"
    assert run.requests.num_rows == 120
    assert {cell.status for cell in run.manifest.cells} == {"complete"}
