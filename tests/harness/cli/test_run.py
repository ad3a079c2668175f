"""``pagedbench run`` as users and CI see it: output discipline, exit codes, a run directory that others can read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli.errors import ExitCode
from harness.cli.execute import redact
from harness.cli.run import INTERRUPTED, leave
from harness.results.reader import load_run
from harness.results.schema import CellSummary, Distribution, LoadInfo, Summary

# On a busy machine the cells of these short runs may rightly be INVALID: then the exit code is 5.
MEASURED = (ExitCode.OK, ExitCode.INVALID_RUN)
QUICK = ("--workload", "chat:scale=0.02", "--concurrency", "2", "--num-requests", "6")


def pagedbench(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-m", "harness.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=environment)


def test_a_run_against_two_engines(server_thread: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    engines = ("--engine", f"one={server_thread.url}", "--engine", f"two={server_thread.url}/v1")
    done = pagedbench("run", *engines, *QUICK, "--slo", "ttft:500 tpot:500", "--warmup", "2", "--out", str(out))
    assert done.returncode in MEASURED, done.stderr
    assert done.stdout.splitlines()[-1] == str(out / "report.html")
    assert "Traceback" not in done.stderr
    run = load_run(out)
    assert run.manifest.status == "complete"
    assert [engine.name for engine in run.manifest.engines] == ["one", "two"]
    assert run.summary is not None
    one, two = run.summary.cells
    assert (one.requests_ok, one.requests_failed, two.requests_ok) == (6, 0, 6)
    assert one.tokens_identical_to == {two.cell_id: 1.0}
    assert one.goodput is not None
    assert one.running_max is not None
    assert one.kv_reserved == 1024
    cells = run.manifest.cells
    assert cells[0].workload.digest == cells[1].workload.digest
    assert cells[0].workload.parameters["schedule"]["exact"] is True
    # Both engines were sent the same bytes (the model's name included, as it is the same server).
    bodies = [asked.body for asked in server_thread.asked if asked.json.get("stream") and "ignore_eos" in asked.json]
    measured = [body for body in bodies if bodies.count(body) == 2]
    assert len(set(measured)) == 2 + 6  # warm-up and measured


def test_json_is_alone_on_stdout(server_thread: Any, tmp_path: Path) -> None:
    done = pagedbench(
        "run", "--engine", f"a={server_thread.url}", *QUICK, "--json", "--no-report", "--out", str(tmp_path / "r")
    )
    assert done.returncode in MEASURED, done.stderr
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert document["cells"][0]["requests_ok"] == 6
    assert not (tmp_path / "r" / "report.html").exists()


def test_yaml_and_options_together(server_thread: Any, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"engines: [{{name: a, url: {server_thread.url}, extra_body: {{priority: 7}}}}]\n"
        "workloads: ['concurrency:input=5,output=3,levels=1+2', 'long-output:output_mean=4']\nnum_requests: 99\n"
    )
    done = pagedbench("run", str(plan), "--num-requests", "4", "--no-report", "--out", str(tmp_path / "r"))
    assert done.returncode in MEASURED, done.stderr
    cells = load_run(tmp_path / "r").manifest.cells
    assert [cell.cell_id for cell in cells] == ["a.concurrency.c1.0", "a.concurrency.c2.0", "a.long-output.c8.0"]
    assert load_run(tmp_path / "r").requests.num_rows == 12
    assert server_thread.asked[-1].json["priority"] == 7


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--workload", "chta"), 2, "did you mean 'chat'"),
        (("--concurrency", "x"), 2, "--concurrency takes whole numbers"),
        (("--slo", "speed:3"), 2, "'speed' is not one of"),
        (("--tokenizer", "/no/tokenizer.json"), 2, "/no/tokenizer.json"),
    ],
)
def test_wrong_usage_is_one_sentence(
    server_thread: Any, tmp_path: Path, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    out = str(tmp_path / "r")
    done = pagedbench("run", "--engine", f"a={server_thread.url}", *QUICK[2:], "--out", out, *arguments)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_nobody_there_is_exit_code_3(tmp_path: Path) -> None:
    done = pagedbench("run", "--engine", "a=http://127.0.0.1:9", *QUICK, "--out", str(tmp_path / "r"))
    assert done.returncode == 3
    assert "no HTTP server answers at http://127.0.0.1:9" in done.stderr
    assert load_run(tmp_path / "r").manifest.status == "failed"


def test_a_used_directory_is_exit_code_4(server_thread: Any, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    done = pagedbench("run", "--engine", f"a={server_thread.url}", *QUICK, "--out", str(tmp_path))
    assert done.returncode == 4
    assert "already holds a run" in done.stderr


def test_an_invalid_run_is_exit_code_5(server_thread: Any, tmp_path: Path) -> None:
    honest = server_thread.script

    async def failing(connection: Any, asked: Any) -> None:
        if asked.json.get("stream") and server_thread.asked and len(server_thread.asked) % 2:
            connection.answer({"error": {"message": "overloaded"}}, status=503)
        else:
            await honest(connection, asked)

    server_thread.script = failing
    done = pagedbench("run", "--engine", f"a={server_thread.url}", *QUICK, "--no-report", "--out", str(tmp_path / "r"))
    assert done.returncode == 5, done.stderr
    assert "INVALID a.chat.c2.0" in done.stdout
    assert "HTTP 503: overloaded" in done.stderr


def test_ctrl_c_keeps_what_was_measured_and_says_so(server_thread: Any, tmp_path: Path) -> None:
    server_thread.itl_s = 0.02
    out = tmp_path / "r"
    command = [sys.executable, "-m", "harness.cli", "run", "--engine", f"a={server_thread.url}", "--no-report"]
    command += ["--workload", "concurrency:input=5,output=4,levels=2", "--num-requests", "1500", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    journal = out / "requests.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert "keeping what was measured" in stderr
    assert "interrupted" in stdout
    run = load_run(out)
    assert run.manifest.status == "interrupted"
    assert run.manifest.cells[0].status == "interrupted"
    assert run.summary is not None
    assert run.summary.cells[0].requests_ok >= 5


def test_kill_minus_9_leaves_a_readable_run(server_thread: Any, tmp_path: Path) -> None:
    server_thread.itl_s = 0.01
    out = tmp_path / "r"
    command = [sys.executable, "-m", "harness.cli", "run", "--engine", f"a={server_thread.url}", "--no-report"]
    command += ["--workload", "concurrency:input=5,output=4,levels=2", "--num-requests", "1500", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 60
    wanted = {out / "requests.jsonl": 20, out / "metrics.jsonl": 1}
    while any(not file.exists() or file.read_bytes().count(b"\n") < count for file, count in wanted.items()):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.kill()
    child.wait()
    run = load_run(out)
    assert run.manifest.status == "killed"
    assert run.requests.num_rows >= 20
    assert run.metrics.num_rows > 0


def test_the_api_key_is_sent_and_not_stored(server_thread: Any, tmp_path: Path) -> None:
    out = tmp_path / "r"
    done = pagedbench(
        "run", "--engine", f"a={server_thread.url}", *QUICK, "--api-key", "s3cret", "--no-report", "--out", str(out)
    )
    assert done.returncode in MEASURED, done.stderr
    assert server_thread.asked[-1].headers["authorization"] == "Bearer s3cret"
    assert all(b"s3cret" not in file.read_bytes() for file in out.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("verdicts", "interrupted", "code"),
    [
        ("VALID SUSPECT", False, None),
        ("VALID INVALID", False, 5),
        ("VALID", True, INTERRUPTED),
        ("INVALID", True, INTERRUPTED),
    ],
)
def test_exit_codes(verdicts: str, interrupted: bool, code: int | None) -> None:
    none = Distribution(n=0)
    cells = [
        CellSummary(
            cell_id=str(index), engine="a", workload="chat", load=LoadInfo(mode="closed", concurrency=1), repeat=0,
            validity=verdict, requests_sent=1, requests_ok=1, requests_failed=0,
            ttft=none, ttft_queue=none, ttft_schedule=none, itl=none, tpot=none, e2e=none,
        )
        for index, verdict in enumerate(verdicts.split())
    ]  # fmt: skip
    summary = Summary(run_id="r", cells=cells)
    if code is None:
        leave(summary, interrupted)
    else:
        with pytest.raises(typer.Exit) as caught:
            leave(summary, interrupted)
        assert caught.value.exit_code == code


def test_secrets_are_hidden_in_the_recorded_command() -> None:
    assert redact(["run", "--api-key", "x", "--rate", "1"]) == ["run", "--api-key", "***", "--rate", "1"]
    assert redact(["run", "--api-key=x"]) == ["run", "--api-key=***"]
