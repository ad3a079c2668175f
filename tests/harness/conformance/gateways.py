"""Gateways as they stand before sound engines: each passes calls on, and withholds, limits or dresses something.

None of it breaks a clause, so no case may fail for it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from hostile import serving

# What OpenAI's own endpoints take; more is refused by some.
STANDARD = {
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stream",
    "stream_options", "stop", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty", "logit_bias", "seed",
    "echo", "suffix", "best_of", "user", "response_format", "tools", "tool_choice", "parallel_tool_calls",
}  # fmt: skip
PER_HOP = {"host", "content-length", "transfer-encoding", "connection", "date", "server"}
ANONYMOUS = {"object": "list", "data": [{"id": "sentinel", "object": "model", "created": 1, "owned_by": "acme"}]}


@dataclass
class Gateway:
    """``paths``: the only ones that there are.  ``at_once``: more calls get 429.  ``slice_bytes``: size of what is sent on.

    Findings: ``breaks``: no generating call succeeds.  ``temperatures``: what calls get instead of what they ask for, in turn.
    """

    paths: tuple[str, ...] = ("/",)
    standard_fields: bool = False
    without: frozenset[str] = frozenset()
    anonymous: bool = False
    at_once: int = 10**6
    dressed: bool = False
    breaks: bool = False
    temperatures: tuple[float, ...] = ()
    slice_bytes: int | None = None
    running: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)
    changed: int = field(default=0, init=False)

    def refusal(self, path: str, body: Any) -> web.Response | None:
        if not path.startswith(self.paths):
            return error(404, "unknown url")
        fields = body if isinstance(body, dict) else {}
        if self.breaks and "max_tokens" in fields:
            return error(500, "out of order")
        for name, value in fields.items():
            is_asked = value not in (None, 0, False) and not (
                name == "n" and (not isinstance(value, int) or value <= 1)
            )
            if (self.standard_fields and name not in STANDARD) or (name in self.without and is_asked):
                return error(400, f"unrecognized request argument: {name}", name)
        if fields and self.running >= self.at_once:
            self.refused += 1
            return error(429, "rate limit reached")
        return None

    def forwarded(self, data: bytes) -> bytes:
        body = parsed(data)
        if not self.temperatures or not isinstance(body, dict) or "max_tokens" not in body:
            return data
        self.changed += 1
        body["temperature"] = self.temperatures[self.changed % len(self.temperatures)]
        return json.dumps(body).encode()

    def document(self, path: str, data: bytes) -> bytes:
        if self.anonymous and path == "/v1/models":
            return json.dumps(ANONYMOUS).encode()
        return self.dress(data) if self.dressed else data

    def dress(self, data: bytes) -> bytes:
        """Fields beyond the API, as several vendors add them."""
        document = json.loads(data)
        if "choices" in document:
            document |= {"system_fingerprint": "fp_1", "service_tier": "default", "x_vendor": {"zone": 1}}
            for choice in document["choices"]:
                choice["content_filter_results"] = {}
                for part in ("message", "delta"):
                    if part in choice:
                        choice[part] |= {"role": "assistant", "reasoning_content": None}
        return json.dumps(document).encode()

    def event(self, data: bytes) -> bytes:
        """One server-sent event, with all that its format allows around it."""
        if not self.dressed:
            return data + b"\n\n"
        payload = data.removeprefix(b"data: ")
        shown = payload if payload == b"[DONE]" else self.dress(payload)
        return b": ping\r\nid: 7\r\nevent: message\r\ndata:" + shown + b"\r\n\r\n"


def error(status: int, message: str, param: str | None = None) -> web.Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}
    return web.json_response(body, status=status)


@asynccontextmanager
async def before(upstream: str, gateway: Gateway) -> AsyncIterator[str]:
    """``gateway`` before the engine at ``upstream``; its URL."""
    unlimited = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=unlimited, timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            sent = await request.read()
            if refused := gateway.refusal(request.path, parsed(sent)):
                return refused
            gateway.running += 1
            try:
                return await passed_on(request, gateway.forwarded(sent), session, upstream, gateway)
            finally:
                gateway.running -= 1

        async with serving(handle, handler_cancellation=True) as url:
            yield url


async def passed_on(
    request: web.Request, sent: bytes, session: aiohttp.ClientSession, upstream: str, gateway: Gateway
) -> web.StreamResponse:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in PER_HOP}
    async with session.request(
        request.method, upstream + request.path_qs, data=sent or None, headers=headers
    ) as response:
        told = {name: value for name, value in response.headers.items() if name.lower() not in PER_HOP}
        if response.content_type != "text/event-stream":
            data = await response.read()
            if response.status == 200 and response.content_type == "application/json":
                data = gateway.document(request.path, data)
            return web.Response(status=response.status, body=data, headers=told)
        out = web.StreamResponse(status=response.status, headers=told)
        await out.prepare(request)
        left = b""
        async for piece in response.content.iter_any():
            *events, left = (left + piece).split(b"\n\n")
            data = b"".join(map(gateway.event, events))
            step = gateway.slice_bytes or max(len(data), 1)
            for start in range(0, len(data), step):
                await out.write(data[start : start + step])
        await out.write(left)
        await out.write_eof()
        return out


def parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
