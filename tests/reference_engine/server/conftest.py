"""Servers on weightless models, in this process, on free ports: ``hash_model``, and the simulated runner.

Every test that takes ``server`` or ``start_server`` runs on both, but for those marked ``hash_only``, which put faults into
the runner.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1]))
import hash_model
import simulated_model

from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine
from reference_engine.server.api import ServedModel
from reference_engine.server.app import create_app
from reference_engine.server.loop import EngineLoop
from reference_engine.server.worker import EngineThread

MODEL = "hash"


def served_model(engine: Engine) -> ServedModel:
    return ServedModel(
        name=MODEL,
        tokenizer=hash_model.ByteTokenizer(),
        max_model_len=engine.scheduler_config.max_model_len,
        fingerprint="fp_test",
        cache_config={"block_size": engine.cache_config.block_size, "num_gpu_blocks": engine.cache_config.num_blocks},
        settings={"version": "test"},
    )


@dataclass
class Server:
    """A server in a thread of its own."""

    engine: Engine
    runner: Any
    kind: str
    options: dict[str, Any]
    port: int = 0
    failures: list[str] = field(default_factory=list)
    _ready: threading.Event = field(default_factory=threading.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _stop: asyncio.Event | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()
        assert self._ready.wait(60)

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        engine_loop = EngineLoop(self.engine, EngineThread(), on_failure=lambda: self.failures.append("engine"))
        app = create_app(
            served_model(self.engine),
            engine_loop,
            TokenTable(hash_model.ByteTokenizer()),
            **{"max_body_bytes": 1 << 20, "debug_endpoints": True, **self.options},
        )
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()
        engine_loop.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def next_logits(self, history: Sequence[int]) -> Any:
        """What the model says after ``history``: logits [VOCAB]."""
        return MODELS[self.kind].next_logits(history)

    def call(
        self, path: str, body: object = None, *, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, parsed body (or text) and headers; ``body`` is sent as JSON unless it is bytes."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                status, raw, received = response.status, response.read(), dict(response.headers)
        except urllib.error.HTTPError as error:
            status, raw, received = error.code, error.read(), dict(error.headers)
        kind = received.get("Content-Type", "")
        return status, json.loads(raw) if "json" in kind else raw.decode(), received

    def complete(self, prompt: object, **fields: Any) -> dict[str, Any]:
        status, answer, _ = self.call("/v1/completions", {"prompt": prompt, "temperature": 0, **fields})
        assert status == 200, answer
        return answer  # type: ignore[no-any-return]

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The stream's events, parsed; the last one is the text ``[DONE]`` if it ended well."""
        status, text, headers = self.call(path, {**body, "stream": True})
        assert status == 200, text
        assert headers["Content-Type"].startswith("text/event-stream")
        lines = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    def metrics(self) -> dict[str, float]:
        """Samples without labels, by name."""
        _, text, _ = self.call("/metrics")
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name.removeprefix("pagedbench:"): float(value) for name, value in samples if "{" not in name}

    def seconds_until_idle(self, timeout: float = 60.0) -> float:
        """How long it takes until nothing runs, waits or holds blocks."""
        started = time.monotonic()
        while time.monotonic() - started < timeout:
            values = self.metrics()
            if not (values["requests_running"] or values["requests_waiting"] or values["kv_slots_allocated"]):
                return time.monotonic() - started
            time.sleep(0.01)
        raise AssertionError(f"not idle after {timeout} s: {values}")


ServerFactory = Callable[..., Server]


MODELS = {"hash": hash_model, "simulated": simulated_model}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "runner_kind" in metafunc.fixturenames:
        hash_only = metafunc.definition.get_closest_marker("hash_only") is not None
        metafunc.parametrize("runner_kind", ["hash"] if hash_only else list(MODELS), scope="module")


@pytest.fixture
def start_server(runner_kind: str) -> Iterator[ServerFactory]:
    """``start_server(app={...}, **engine)``: a running server; ``engine`` as for ``hash_model.make_engine``."""
    running: list[Server] = []

    def start(app: dict[str, Any] | None = None, **engine: Any) -> Server:
        server = Server(*MODELS[runner_kind].make_engine(**engine), runner_kind, app or {})
        server.start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def server(runner_kind: str) -> Iterator[Server]:
    """One server for all tests of a file that leave it idle."""
    shared = Server(*MODELS[runner_kind].make_engine(num_blocks=512, block_size=4), runner_kind, {})
    shared.start()
    yield shared
    shared.stop()
