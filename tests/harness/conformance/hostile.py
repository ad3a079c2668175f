"""Servers that misbehave: each is an aiohttp application on a free port of the loopback interface."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, *, handler_cancellation: bool = False) -> AsyncIterator[str]:
    """Answer every path with ``handler``; the URL.  ``handler_cancellation`` ends it when its client leaves."""
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=handler_cancellation)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def html(request: web.Request) -> web.Response:
    return web.Response(text="<html><body>It works!</body></html>", content_type="text/html")


async def hang(request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


def answer(request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    """A plausible answer to either endpoint."""
    text = "one two three four five six seven eight nine ten"
    part = {"message": {"role": "assistant", "content": text}} if "chat" in request.path else {"text": text}
    choice = {"index": 0, "finish_reason": "length", "logprobs": None, **part}
    return {
        "id": "x",
        "object": "chat.completion" if "chat" in request.path else "text_completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15},
    }


class Liar:
    """Answers JSON where a stream was asked for, or a stream that is not one; dies after ``alive`` calls."""

    def __init__(self, alive: int = 10**9, stream: str = "json") -> None:
        self.alive = alive
        self.stream = stream
        self.calls = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        if self.calls > self.alive:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})
        if request.method != "POST" or "completions" not in request.path:
            return web.json_response({"error": {"message": "no", "type": "x"}}, status=404)
        try:
            body = json.loads(await request.read())
        except ValueError:
            return web.Response(status=500, text="Traceback (most recent call last)")
        document = answer(request, body if isinstance(body, dict) else {})
        if not (isinstance(body, dict) and body.get("stream")):
            return web.json_response(document)
        if self.stream == "json":
            return web.json_response(document)
        if self.stream == "empty":
            return web.Response(content_type="text/event-stream", text="")
        if self.stream == "garbage":
            return web.Response(
                content_type="text/event-stream", text='data: {"choices": 7}\n\ndata: [1]\n\ndata: nonsense\n\n'
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"index": 0, "text": "one"}]}\n\n')
        assert request.transport is not None
        request.transport.abort()
        return response
