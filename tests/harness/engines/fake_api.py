"""A scripted OpenAI-like server for tests of the probe: what it can and cannot do are its fields."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeApi:
    """Defaults: an engine that does everything right."""

    models: Any = field(default_factory=lambda: {"data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 512}]})
    metrics: str | None = "vllm:num_requests_running 0\n"
    version: str | None = "1.2.3"
    props: dict[str, Any] | None = None
    slots: list[Any] | None = None
    openapi_paths: tuple[str, ...] = ()
    tokenize: str | None = "vllm"
    refused: tuple[str, ...] = ()  # body fields answered with 422
    ignored: tuple[str, ...] = ()  # body fields without effect
    usage_when: str = "asked"
    done: bool = True
    chat: bool = True
    completions: bool = True
    broken: dict[str, Any] = field(default_factory=dict)  # path -> status, text or "hang"
    late: dict[str, float] = field(default_factory=dict)  # path -> seconds that its first answer takes
    server: str = "fake"
    api_key: str | None = None
    short_answer: int = 5  # tokens before the end-of-sequence token
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.method == "POST" else {}
        self.asked.append((request.path, body))
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": {"message": "no key"}}, status=401)
        await asyncio.sleep(self.late.pop(request.path, 0.0))
        match self.broken.get(request.path):
            case "hang":
                await asyncio.sleep(60)
            case int(status):
                return web.Response(status=status, text="oops")
            case str(text):
                return web.Response(text=text, content_type="text/html")
        answers = {
            "/v1/models": self.models,
            "/version": {"version": self.version} if self.version else None,
            "/props": self.props,
            "/slots": self.slots,
            "/openapi.json": {"paths": {path: {} for path in self.openapi_paths}},
        }
        if answers.get(request.path) is not None:
            return web.json_response(answers[request.path])
        if request.path == "/metrics" and self.metrics is not None:
            return web.Response(text=self.metrics)
        if request.path == "/tokenize" and self.tokenize:
            return self.answer_tokenize(body)
        if request.path == "/apply-template" and self.tokenize == "llama.cpp":
            return web.json_response({"prompt": "<user>" + body["messages"][0]["content"]})
        if request.path == "/v1/completions" and self.completions:
            return await self.generate(request, body, is_chat=False)
        if request.path == "/v1/chat/completions" and self.chat:
            return await self.generate(request, body, is_chat=True)
        return web.json_response({"detail": "Not Found"}, status=404)

    def answer_tokenize(self, body: dict[str, Any]) -> web.Response:
        """One token a character; a chat message costs three more."""
        if self.tokenize == "llama.cpp":
            return web.json_response({"tokens": list(range(len(body.get("content", ""))))})
        if "prompt" in body:
            count = len(body["prompt"])
        elif "messages" in body:
            count = sum(len(message["content"]) + 3 for message in body["messages"])
        else:
            return web.json_response({"error": {"message": "prompt missing"}}, status=400)
        return web.json_response({"count": count, "tokens": [7] * count})

    async def generate(self, request: web.Request, body: dict[str, Any], *, is_chat: bool) -> web.StreamResponse:
        for name in self.refused:
            if name in body or (name == "token_ids" and isinstance(body.get("prompt"), list)):
                return web.json_response({"detail": f"Unexpected field {name}"}, status=422)
        effective = {key: value for key, value in body.items() if key not in self.ignored}
        limit = body["max_tokens"]
        forced = effective.get("ignore_eos") or effective.get("min_tokens", 0) >= limit
        count = limit if forced else min(limit, self.short_answer)
        usage = {"prompt_tokens": 3, "completion_tokens": count, "prompt_tokens_details": {"cached_tokens": 0}}
        text = {"message": {"content": "x"}} if is_chat else {"text": "x"}
        ids = {"token_ids": [1] * count} if effective.get("return_token_ids") else {}
        if not body.get("stream"):
            return web.json_response({"model": "tiny@main", "choices": [{**text, **ids}], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        wants = (effective.get("stream_options") or {}).get("include_usage")
        events: list[dict[str, Any]] = [{"choices": [{"text": "x"}]} for _ in range(count)]
        if self.usage_when == "always" or (self.usage_when == "asked" and wants):
            events.append({"choices": [], "usage": usage})
        for event in events:
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        if self.done:
            await response.write(b"data: [DONE]\n\n")
        return response


@contextlib.asynccontextmanager
async def serving(api: FakeApi) -> AsyncIterator[str]:
    """Run ``api`` on an ephemeral port; yields its URL."""

    @web.middleware
    async def name_server(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        if not response.prepared:
            response.headers["Server"] = api.server
        return response

    app = web.Application(middlewares=[name_server])
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
