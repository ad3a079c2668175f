"""``pagedbench conform`` against servers that misbehave: it ends, says why, and its exit code is that of the contract."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.conformance.hostile import Handler, Liar, hang, html, serving

FAST = ("--effort", "0.05", "--structural")
API = ("--cases", "API-01,API-05,STR-01,STR-03,ERR-01,MET-01")


async def conform(
    url: str, *arguments: str, timeout_s: int = 20, interrupt_when: Callable[[], bool] | None = None
) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "harness.cli", "conform", "--engine", f"odd={url}", "--timeout", str(timeout_s)]
    process = await asyncio.create_subprocess_exec(*command, *FAST, *arguments, stdout=PIPE, stderr=PIPE)
    if interrupt_when is not None:
        while not interrupt_when() and process.returncode is None:
            await asyncio.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(
    ("handler", "code", "words"),
    [
        (html, 3, "no OpenAI API"),
        (hang, 3, "no answer within 2 s"),
        (Liar(stream="json").handle, 1, "FAIL"),
        (Liar(stream="cut").handle, 1, "FAIL"),
        (Liar(stream="garbage").handle, 1, "FAIL"),
    ],
    ids=["html", "hangs", "no stream", "cuts streams", "garbage"],
)
async def test_odd_servers(handler: Handler, code: int, words: str) -> None:
    async with serving(handler) as url:
        found, out, err = await conform(url, *API, timeout_s=2 if handler is hang else 20)
    assert found == code, out + err
    assert words in out + err
    assert 'File "' not in out + err
    if code == 3:
        assert len(err.strip().splitlines()) == 1


async def test_a_server_that_dies_is_told_and_what_was_found_is_kept(tmp_path: Path) -> None:
    async with serving(Liar(alive=70).handle) as url:
        found, out, err = await conform(url, "--cases", "API,ERR", "--out", str(tmp_path / "out"))
    assert found in (1, 3), out + err
    assert "stopped answering" in out + err
    assert 'File "' not in out + err
    (file,) = (tmp_path / "out").glob("conformance-*.json")
    kept: Any = json.loads(file.read_text())
    assert kept["status"] == "lost"
    assert kept["results"]


async def test_an_interrupt_keeps_what_was_found(tmp_path: Path) -> None:
    liar = Liar()
    wanted = ("--cases", "API,STR,ERR,TOK", "--out", str(tmp_path / "out"))
    async with serving(liar.handle) as url:
        # Of some 340; the first 80 are preparations.
        found, out, err = await conform(url, *wanted, interrupt_when=lambda: liar.calls >= 100)
    assert found in (1, 2, 130), out + err
    assert 'File "' not in out + err
    (file,) = (tmp_path / "out").glob("conformance-*.json")
    kept: Any = json.loads(file.read_text())
    assert kept["status"] in ("interrupted", "complete")
    assert kept["results"]


def test_nothing_listens() -> None:
    command = [sys.executable, "-m", "harness.cli", "conform", "--engine", "gone=http://127.0.0.1:9", *FAST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
