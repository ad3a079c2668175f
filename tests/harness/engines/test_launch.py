"""Launching: readiness, errors with the log's tail, and no process left behind whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fake_engine
import psutil
import pytest

from harness.engines.errors import LaunchError, RecipeError
from harness.engines.launch import RunningEngine, launched, log_tail
from harness.engines.recipe import Recipe

FAKE = Path(__file__).with_name("fake_engine.py")
ROOT = Path(__file__).resolve().parents[3]


def fake(*options: str, **fields: Any) -> Recipe:
    data: dict[str, Any] = {
        "name": "fake",
        "summary": "a stand-in",
        "python": {},
        "command": ["{python}", str(FAKE), "--port", "{port}", *options],
        "settings": {"model": {"help": "m", "flag": "--model"}},
        "stop": {"signal": "SIGINT", "grace_s": 2},
        "readiness": {"timeout_s": 30},
    }
    return Recipe.model_validate(data | fields)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: list[int], limit_s: float = 20.0) -> list[int]:
    deadline = time.monotonic() + limit_s
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def child_pid(engine: RunningEngine) -> int:
    match = re.search(r"child (\d+)", engine.log_path.read_text())
    assert match
    return int(match[1])


async def test_an_engine_runs_for_the_length_of_the_block(tmp_path: Path) -> None:
    patient = fake(stop={"signal": "SIGINT", "grace_s": 30})  # on a busy machine it needs a moment to obey
    async with launched(patient, {"model": "m"}, tmp_path, name="mine") as engine:
        assert engine.url.startswith("http://127.0.0.1:")
        assert engine.pids() == [engine.pid]
        assert engine.exit_code() is None
        assert engine.crash() is None
        assert engine.settings == {"model": "m"}
        assert engine.log_path == tmp_path / "mine.log"
        assert engine.start_s > 0
        assert os.getpgid(engine.pid) == engine.pid
    assert not is_alive(engine.pid)
    log = engine.log_path.read_text()
    assert log.startswith("$ ")
    assert "--model m" in log
    assert "stopped by SIGINT" in log


async def test_the_url_can_come_from_the_log(tmp_path: Path) -> None:
    recipe = fake(readiness={"url_in_log": r"listening on (http://\S+)", "timeout_s": 30})
    async with launched(recipe, {}, tmp_path) as engine:
        assert "--port 0" in engine.log_path.read_text()
        assert not engine.url.endswith(":0")


async def test_a_stranger_at_the_engines_port_is_not_taken_for_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), fake_engine.Handler) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        monkeypatch.setattr("harness.engines.launch.free_port", lambda: stranger.server_address[1])
        try:
            with pytest.raises(LaunchError, match=rf"process {os.getpid()} \(.+\) took that port first; start again"):
                async with launched(fake("--silent"), {}, tmp_path):
                    pass
        finally:
            stranger.shutdown()


async def test_logs_of_earlier_runs_are_kept(tmp_path: Path) -> None:
    for expected in ("a_b.log", "a_b-2.log"):
        async with launched(fake(), {}, tmp_path, name="a/b") as engine:
            assert engine.log_path == tmp_path / expected


async def test_an_engine_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"engine 'fake' ended with exit code 3 before it was ready") as caught:
        async with launched(fake("--die", "3"), {}, tmp_path):
            pytest.fail("it never was ready")
    assert "made of cheese" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "readiness", "sentence"),
    [
        (("--silent",), {"timeout_s": 0.5}, "did not answer http://"),
        (("--status", "503"), {"timeout_s": 1.5}, "with 200 within 1.5 s"),
        (("--silent",), {"url_in_log": "on (http.*)", "timeout_s": 0.5}, "did not say its URL within 0.5 s"),
    ],
)
async def test_an_engine_that_is_never_ready(
    options: tuple[str, ...], readiness: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    before = set(psutil.Process().children())
    with pytest.raises(LaunchError, match=re.escape(sentence)):
        async with launched(fake(*options, readiness=readiness), {}, tmp_path):
            pytest.fail("it never was ready")
    assert not wait_until_gone([child.pid for child in set(psutil.Process().children()) - before])


async def test_a_crash_in_mid_run_is_seen(tmp_path: Path) -> None:
    async with launched(fake(), {}, tmp_path) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        while engine.exit_code() is None:
            await asyncio.sleep(0.01)
        assert engine.exit_code() == -signal.SIGKILL
        assert "killed by SIGKILL" in str(engine.crash())
        assert engine.pids() == []


async def test_deaf_engines_and_their_children_are_killed(tmp_path: Path) -> None:
    recipe = fake("--deaf", "--child", stop={"signal": "SIGINT", "grace_s": 0.2})
    async with launched(recipe, {}, tmp_path) as engine:
        pids = engine.pids()
        assert len(pids) == 2
        assert child_pid(engine) in pids
    assert not wait_until_gone(pids)


async def test_a_child_that_left_the_process_group_is_killed(tmp_path: Path) -> None:
    async with launched(fake("--child", "--runaway"), {}, tmp_path) as engine:
        pids = engine.pids()
        assert os.getpgid(child_pid(engine)) != engine.pid
    assert not wait_until_gone(pids)


async def test_an_exception_in_the_block_stops_the_engine(tmp_path: Path) -> None:
    pids: list[int] = []

    async def run() -> None:
        async with launched(fake("--child"), {}, tmp_path) as engine:
            pids.extend(engine.pids())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run()
    assert len(pids) == 2
    assert not wait_until_gone(pids)


async def test_cancellation_stops_the_engine_even_when_it_comes_twice(tmp_path: Path) -> None:
    pids: list[int] = []

    async def run() -> None:
        async with launched(fake("--deaf", "--child"), {}, tmp_path) as engine:
            pids.extend(engine.pids())
            await asyncio.sleep(60)

    task = asyncio.create_task(run())
    while not pids:
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0.1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert len(pids) == 2
    assert not wait_until_gone(pids)


HARNESS = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_launch import fake
from harness.engines.launch import launched

async def main():
    async with launched(fake("--child"), {{}}, Path({log!r})) as engine:
        print(*engine.pids(), flush=True)
        await asyncio.sleep(300)

asyncio.run(main())
"""


def test_kill_9_of_the_harness_leaves_no_engine(tmp_path: Path) -> None:
    code = HARNESS.format(folder=str(FAKE.parent), log=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as harness:
        assert harness.stdout is not None
        pids = [int(pid) for pid in harness.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_alive(pid) for pid in pids)
        harness.kill()
    assert not wait_until_gone(pids)


async def test_no_guard_stays_behind(tmp_path: Path) -> None:
    def guards() -> list[int]:
        return [child.pid for child in psutil.Process().children() if "guard.py" in " ".join(child.cmdline())]

    async with launched(fake(), {}, tmp_path):
        assert len(guards()) == 1
    assert guards() == []


async def test_the_environment_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    settings = {"python": {"help": "p"}, "answer": {"help": "a", "type": "bool", "variable": "ANSWER"}}
    same = fake("--show", "PYTHONPATH", settings=settings)
    async with launched(same, {}, tmp_path) as engine:
        assert "PYTHONPATH=/ours" in engine.log_path.read_text()
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    async with launched(same, {"python": str(other)}, tmp_path) as engine:
        assert "PYTHONPATH=None" in engine.log_path.read_text()
    async with launched(fake("--show", "ANSWER", settings=settings), {"answer": True}, tmp_path) as engine:
        assert "ANSWER=1" in engine.log_path.read_text()


async def test_nothing_starts_when_the_settings_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no setting 'modle'"):
        async with launched(fake(), {"modle": "m"}, tmp_path / "logs"):
            pytest.fail("started")
    assert not (tmp_path / "logs").exists()


async def test_a_program_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="cannot be started"):
        async with launched(fake(command=["/no/such/program"]), {}, tmp_path):
            pytest.fail("started")


async def test_an_unwritable_log_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="cannot write the log"):
        async with launched(fake(), {}, tmp_path / "file" / "logs"):
            pytest.fail("started")


def test_log_tail_of_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\n".join(b"line %d \xff" % i for i in range(50_000)))
    lines = log_tail(path).splitlines()
    assert len(lines) == 30
    assert lines[-1].startswith("  | line 49999")
    assert log_tail(tmp_path / "none") == ""
