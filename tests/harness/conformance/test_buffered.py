"""Whether a stream is buffered: said of one that is, not of one that a pause held up."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from hostile import answer, serving

from harness.conformance.context import Options
from harness.conformance.features import Features
from harness.conformance.runner import run_suite
from harness.engines.capabilities import Capabilities
from harness.results.schema import EngineInfo

PIECES = 40


class Streams:
    """Sends an answer piece by piece, but the first ``buffered`` at once when they are whole."""

    def __init__(self, buffered: int) -> None:
        self.buffered, self.calls = buffered, 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        holds = self.calls <= self.buffered
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        held = b""
        document = answer(request, {}) | {"usage": None}
        for number in range(PIECES):
            finish = "length" if number == PIECES - 1 else None
            choice = {"index": 0, "delta": {"content": f" {number}"}, "finish_reason": finish}
            held += b"data: " + json.dumps({**document, "choices": [choice]}).encode() + b"\n\n"
            await asyncio.sleep(0.003)
            if not holds:
                await out.write(held)
                held = b""
        await out.write(held + b"data: [DONE]\n\n")
        return out


@pytest.mark.parametrize(("buffered", "verdict"), [(0, "PASS"), (2, "PASS"), (10**9, "FAIL")])
async def test_one_look_is_not_enough(buffered: int, verdict: str) -> None:
    known = Features(EngineInfo(name="m", url="http://127.0.0.1"), Capabilities(), {"chat", "stream"})
    server = Streams(buffered)
    async with serving(server.handle) as url:
        result = await run_suite(url, ["STR-12"], Options(known_features=known))
    assert result.results[0].verdict == verdict, result.results[0].reason
    assert server.calls >= min(buffered + 2, 10)
