"""The server as a process: its first line, signals, bad options, and the two command lines that offer it."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from harness.cli.serve import serve
from reference_engine.config import ConfigError
from reference_engine.server.options import HELP, ServerOptions, parse_size

ROOT = Path(__file__).parents[3]
# The real life of the process (bind, serve, signals) around the weightless model.
PROGRAM = """
import sys
sys.path[:0] = [{root!r}, {tests!r}, {here!r}]
import asyncio, hash_model
from conftest import served_model
from reference_engine.server.build import Serving
from reference_engine.server.worker import EngineThread
from reference_engine.server.launch import bind, serve
from reference_engine.server.options import ServerOptions
engine, _ = hash_model.make_engine(step_seconds=0.02)
serving = Serving(engine, served_model(engine), hash_model.TokenTable(hash_model.ByteTokenizer()))
options = ServerOptions(port=0)
with bind(options.host, options.port) as listener:
    sys.exit(asyncio.run(serve(serving, EngineThread(), listener, options)))
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    here = Path(__file__).parent
    program = PROGRAM.format(root=str(ROOT), tests=str(here.parent), here=str(here))
    started = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield started
    started.kill()
    started.communicate()


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on http://127.0.0.1:"), line
    return int(line.rsplit(":", 1)[1])


def start_stream(port: int, max_tokens: int) -> Any:
    body = {"prompt": "a", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode())
    response = urllib.request.urlopen(request, timeout=60)
    response.readline()
    return response


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_short_calls_finish(process: subprocess.Popen[str], number: int) -> None:
    response = start_stream(port_of(process), max_tokens=20)
    process.send_signal(number)
    assert response.read().decode().rstrip().endswith("data: [DONE]")
    assert process.wait(60) == 0


def test_a_second_signal_ends_long_calls_at_once_and_in_band(process: subprocess.Popen[str]) -> None:
    port = port_of(process)
    response = start_stream(port, max_tokens=450)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(ConnectionError):  # it listens until it has seen the first; two at once would be one to it
        while True:
            socket.create_connection(("127.0.0.1", port), timeout=60).close()
            time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    rest = response.read().decode()
    assert "shutting down" in rest
    assert "[DONE]" not in rest
    assert process.wait(60) == 0


def run_module(*arguments: str, module: str = "reference_engine.server") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )


@pytest.mark.parametrize("module", [("reference_engine.server",), ("harness.cli", "serve")])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], "0..65535"),
        (["--kv-memory", "lots"], "'lots' is not a size"),
        (["--kv-memory", "1GiB", "--num-blocks", "5"], "give one of them"),
        (["--block-size", "300"], "1..256"),
        (["--model", "/no/such/model", "--port", "0"], "/no/such/model"),
    ],
)
def test_bad_options_are_one_sentence(module: tuple[str, ...], arguments: list[str], words: str) -> None:
    done = run_module(*module[1:], *arguments, module=module[0])
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_busy_port_is_found_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_module("--port", str(port), "--model", "/no/such/model")
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_both_command_lines_offer_every_option_with_the_same_default() -> None:
    parameters = inspect.signature(serve).parameters
    names = [field.name for field in fields(ServerOptions)]
    assert list(parameters) == names
    assert set(HELP) == set(names)
    for field in fields(ServerOptions):
        default = parameters[field.name].default
        assert (default, field.default) == (None, ()) or default == field.default, field.name  # none given of a list
    shown = run_module("--help").stdout
    for name in names:
        assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("1KiB", 1024), ("512MiB", 512 << 20), ("2GiB", 2 << 30), ("1.5g", 3 << 29), ("2 MB", 2_000_000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "kv_memory") == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 2", "5XiB"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="--kv-memory"):
        parse_size(text, "kv_memory")


@pytest.mark.slow
def test_the_embedded_model_answers_over_the_command_line() -> None:
    """Real weights from start to stop.  Needs the embedded model in the cache."""
    from reference_engine.models.embedded import ensure_embedded_model

    ensure_embedded_model()
    started = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "serve", "--port", "0", "--audit-every", "1", "--threads", "1"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        port = port_of(started)
        body = {
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0,
            "max_tokens": 20,
        }
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
        assert "Paris" in answer["choices"][0]["message"]["content"]
        started.send_signal(signal.SIGINT)
        assert started.wait(20) == 0
    finally:
        started.kill()
        started.communicate()
