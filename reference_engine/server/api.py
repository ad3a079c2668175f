"""The endpoints that generate: /v1/completions and /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson
from aiohttp import web

from reference_engine.constraint import Constraint
from reference_engine.detokenizer import TokenSource, TokenTable
from reference_engine.grammar import Compiler, GrammarError
from reference_engine.models.errors import ChatTemplateError, ChatTemplateMissing
from reference_engine.request import Request
from reference_engine.server.calls import Call, Prompt, check_model, parse_chat, parse_completion
from reference_engine.server.errors import ApiError
from reference_engine.server.fields import wrong
from reference_engine.server.forms import Form
from reference_engine.server.loop import EngineLoop, Ticket
from reference_engine.server.wire import Wire

# Texts longer than this (characters) are tokenized in a worker thread: the event loop must not stand still for them.
_LONG_TEXT = 20_000

STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
JSON = "application/json"


class ChatTokenizer(TokenSource, Protocol):
    """What the server needs of a tokenizer."""

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str: ...

    def render_chat(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True, **kwargs: Any) -> str: ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is served, as clients are told."""

    name: str
    tokenizer: ChatTokenizer
    max_model_len: int  # tokens, prompt + output
    fingerprint: str
    cache_config: dict[str, object]  # labels of the metric cache_config_info
    settings: dict[str, object]  # shown by /v1/models: version, device, dtype, policy, ...
    created: int = field(default_factory=lambda: int(time.time()))


async def read_json(request: web.Request) -> dict[str, Any]:
    """The body as an object, whatever its content type says.  Raises ApiError (400) or HTTPRequestEntityTooLarge."""
    raw = await request.read()
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(f"the body is not valid JSON: {error}") from None
    if type(body) is not dict:
        raise ApiError("the body must be a JSON object")
    return body


class GenerationApi:
    """Turns calls into engine requests and their outputs into answers."""

    def __init__(self, model: ServedModel, loop: EngineLoop, tokens: TokenTable) -> None:
        self._model = model
        self._loop = loop
        self._tokens = tokens
        self._compiler = Compiler(
            model.tokenizer,
            model.tokenizer.encode,
            tokens,
            vocab_size=loop.limits.vocab_size,
            eos_token_ids=loop.limits.eos_token_ids,
        )

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request)
        check_model(body, self._model.name)
        return await self._answer(request, parse_completion(body))

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request)
        check_model(body, self._model.name)
        return await self._answer(request, parse_chat(body, self.render_chat))

    def render_chat(self, messages: list[dict[str, Any]], **arguments: Any) -> str:
        """The prompt text of a chat.  Raises ApiError if the template is missing or refuses the messages."""
        try:
            return self._model.tokenizer.render_chat(messages, **arguments)
        except (ChatTemplateMissing, ChatTemplateError) as error:
            raise ApiError(str(error), param="messages") from None

    async def tokenize(self, prompt: Prompt, *, add_special_tokens: bool) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return prompt
        encode = self._model.tokenizer.encode
        if len(prompt) > _LONG_TEXT:
            return tuple(await asyncio.to_thread(encode, prompt, add_special_tokens))
        return tuple(encode(prompt, add_special_tokens))

    async def _constrain(self, form: Form) -> Constraint:
        """The compiled form.  In a worker thread: the first one reads the whole vocabulary, large ones take seconds."""
        try:
            return await asyncio.to_thread(self._compiler.compile, form.grammar)
        except GrammarError as error:
            raise wrong(form.param, str(error)) from None

    async def _answer(self, request: web.Request, call: Call) -> web.StreamResponse:
        constraint = None if call.form is None else await self._constrain(call.form)
        prompts = [await self.tokenize(prompt, add_special_tokens=call.add_special_tokens) for prompt in call.prompts]
        wire = Wire(call, prompts, model=self._model.name, fingerprint=self._model.fingerprint, tokens=self._tokens)
        ticket = self._loop.submit(
            self._requests(call, prompts, wire, constraint), show_special_tokens=call.show_special_tokens
        )
        # Also runs when the client goes away: aiohttp then cancels the handler, wherever it waits.
        try:
            await ticket.accepted
            if call.stream:
                return await self._stream(request, ticket, wire)
            while not ticket.is_drained:
                for output in await ticket.next():
                    wire.absorb(output)
            return web.Response(body=wire.document(), content_type=JSON)
        finally:
            self._loop.release(ticket)

    def _requests(
        self, call: Call, prompts: list[tuple[int, ...]], wire: Wire, constraint: Constraint | None
    ) -> list[Request]:
        now = time.monotonic_ns()
        requests = []
        for number, prompt in enumerate(prompts):
            params = call.params
            if not params.max_tokens:
                params = replace(params, max_tokens=max(self._model.max_model_len - len(prompt), 1))
            requests.append(
                Request(
                    request_id=wire.request_id(number),
                    prompt=prompt,
                    params=params,
                    arrival_ns=now,
                    priority=call.priority,
                    cache_salt=call.cache_salt,
                    constraint=constraint,
                )
            )
        return requests

    async def _stream(self, request: web.Request, ticket: Ticket, wire: Wire) -> web.StreamResponse:
        response = web.StreamResponse(headers={**STREAM_HEADERS, "X-Request-Id": wire.id})
        await response.prepare(request)
        try:
            while not ticket.is_drained:
                data = b"".join([wire.chunk(output) for output in await ticket.next()])
                if ticket.is_drained:
                    data += wire.closing()
                if data:
                    await response.write(data)
        except ApiError as error:
            # The status line is out: the failure goes into the stream, which then lacks its mark of completeness.
            await response.write(b"data: " + error.body() + b"\n\n")
        await response.write_eof()
        return response
