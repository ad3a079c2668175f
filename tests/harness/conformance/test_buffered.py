"""Whether a stream is buffered: said of one that is, not of one that a pause held up."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from aiohttp import web
from hostile import answer, serving

from harness.conformance.context import Options
from harness.conformance.features import Features
from harness.conformance.runner import run_suite
from harness.engines.capabilities import Capabilities
from harness.results.schema import EngineInfo


class Streams:
    """Sends an answer piece by piece, but in the first ``calls`` the first ``pieces`` together."""

    def __init__(self, calls: float, pieces: float) -> None:
        self.held_calls, self.pieces, self.calls = calls, pieces, 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        together = self.pieces if self.calls <= self.held_calls else 0
        tokens = (await request.json())["max_tokens"]
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        held = b""
        document = answer(request, {}) | {"usage": None}
        for number in range(tokens):
            finish = "length" if number == tokens - 1 else None
            choice = {"index": 0, "delta": {"content": f" {number}"}, "finish_reason": finish}
            held += b"data: " + json.dumps({**document, "choices": [choice]}).encode() + b"\n\n"
            await asyncio.sleep(0.003)
            if number >= together:
                await out.write(held)
                held = b""
        await out.write(held + b"data: [DONE]\n\n")
        return out


@pytest.mark.parametrize(
    ("calls", "pieces", "verdict"),
    [(0, 0, "PASS"), (2, math.inf, "PASS"), (math.inf, 170, "PASS"), (math.inf, math.inf, "FAIL")],
    ids=["streams", "is buffered twice", "pauses each time", "is buffered"],
)
async def test_one_look_is_not_enough(calls: float, pieces: float, verdict: str) -> None:
    known = Features(EngineInfo(name="m", url="http://127.0.0.1"), Capabilities(), {"chat", "stream"})
    server = Streams(calls, pieces)
    async with serving(server.handle) as url:
        result = await run_suite(url, ["STR-12"], Options(known_features=known))
    assert result.results[0].verdict == verdict, result.results[0].reason
    assert server.calls >= min(calls + 2, 10 if pieces == math.inf else 6)
