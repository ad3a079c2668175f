"""What an engine's API can do, found by asking: a handful of tiny requests, each judged by its answer alone.

None means that it could not be found out; ``notes`` say why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.engines.asker import Asker, Reply

TokenizeDialect = Literal["vllm", "llama.cpp"]
# A field that should lengthen an answer: it did, no sign of it either way, or an error.
Obedience = Literal["honoured", "accepted", "refused"]

PROBE_PROMPT = "The capital of France is"
PROBE_TOKENS = 4
# A chat turn that instruction-tuned models, small ones too, end within these many tokens unless told to ignore the end.
SHORT_CHAT = [{"role": "user", "content": "What is the capital of France?"}]
SHORT_CHAT_TOKENS = 24


class Capabilities(BaseModel):
    """One engine's API."""

    model_config = ConfigDict(extra="forbid")

    completions: bool | None = None
    chat: bool | None = None
    stream_options: bool | None = None  # accepts ``stream_options``
    stream_usage: Literal["asked", "always", "never"] | None = None  # when a stream carries usage
    done_marker: bool | None = None  # a stream ends with [DONE]
    cached_tokens: bool | None = None  # usage tells prompt tokens found in the prefix cache
    ignore_eos: Obedience | None = None
    min_tokens: Obedience | None = None  # asked only where ignore_eos is refused
    token_id_prompts: bool | None = None
    return_token_ids: bool | None = None
    tokenize: TokenizeDialect | None = None
    metrics: bool = False  # /metrics shows something of our vocabulary
    metrics_path: str = "/metrics"
    metric_names: list[str] = Field(default_factory=list)
    slots: bool = False  # llama.cpp's /slots
    notes: list[str] = Field(default_factory=list)


class Stream:
    """The events of a text/event-stream body that was read to its end."""

    def __init__(self, text: str) -> None:
        self.done = False
        self.events: list[dict[str, Any]] = []
        for data in self._data(text):
            if data == "[DONE]":
                self.done = True
                continue
            try:
                event = json.loads(data)
            except ValueError:
                continue
            if isinstance(event, dict):
                self.events.append(event)

    @staticmethod
    def _data(text: str) -> Iterator[str]:
        for line in text.splitlines():
            if line.startswith("data:"):
                yield line.removeprefix("data:").strip()

    @property
    def has_usage(self) -> bool:
        return any(event.get("usage") for event in self.events)

    @property
    def is_good(self) -> bool:
        return any(event.get("choices") for event in self.events) and not any("error" in event for event in self.events)


class ApiProbe:
    """Asks one server, for one model, and fills a ``Capabilities``."""

    def __init__(self, asker: Asker, model: str | None, timeout_s: float) -> None:
        self._asker = asker
        self._model = {"model": model} if model else {}
        self._timeout_s = timeout_s
        self.found = Capabilities()
        self.answered_model: str | None = None  # the model that the answers name

    async def run(self) -> None:
        """All questions, one after another: an engine under probe must not see them as load."""
        await self._tokenize()
        await self._completions()
        if self.found.completions:
            await self._token_ids()
        await self._chat()
        if self.found.completions or self.found.chat:
            await self._streams()

    async def _post(self, path: str, body: Mapping[str, Any]) -> Reply:
        reply = await self._asker.post(path, {**self._model, **body}, self._timeout_s)
        if reply.status is None:
            self.found.notes.append(f"POST {path}: {reply.error}")
        return reply

    async def _complete(self, **extra: Any) -> Reply:
        body = {"prompt": PROBE_PROMPT, "max_tokens": PROBE_TOKENS, "temperature": 0, **extra}
        return await self._post("/v1/completions", body)

    async def _completions(self) -> None:
        reply = await self._complete()
        self.found.completions = works(reply)
        if reply.status is not None and not self.found.completions:
            self.found.notes.append(f"POST /v1/completions: {first_words(reply)}")
        self._learn(reply)

    def _learn(self, reply: Reply) -> None:
        data = reply.mapping()
        if isinstance(data.get("model"), str):
            self.answered_model = data["model"]
        usage = data.get("usage")
        if isinstance(usage, dict) and self.found.cached_tokens is None:
            details = usage.get("prompt_tokens_details")
            self.found.cached_tokens = isinstance(details, dict) and "cached_tokens" in details

    async def _chat(self) -> None:
        body = {"messages": SHORT_CHAT, "max_tokens": SHORT_CHAT_TOKENS, "temperature": 0}
        plain = await self._post("/v1/chat/completions", body)
        self.found.chat = works(plain)
        if plain.status is not None and not self.found.chat:
            self.found.notes.append(f"POST /v1/chat/completions: {first_words(plain)}")
            return
        self._learn(plain)
        forced = await self._post("/v1/chat/completions", {**body, "ignore_eos": True})
        self.found.ignore_eos = judge_longer(plain, forced)
        if self.found.ignore_eos == "refused":
            forced = await self._post("/v1/chat/completions", {**body, "min_tokens": SHORT_CHAT_TOKENS})
            self.found.min_tokens = judge_longer(plain, forced)

    async def _token_ids(self) -> None:
        ids = await self._complete(prompt=[1, 2, 3, 4])
        self.found.token_id_prompts = works(ids) if ids.status is not None else None
        returned = await self._complete(return_token_ids=True)
        if returned.status is not None:
            self.found.return_token_ids = bool(first_choice(returned).get("token_ids"))

    async def _streams(self) -> None:
        body: dict[str, Any] = {"max_tokens": PROBE_TOKENS, "temperature": 0, "stream": True}
        if self.found.completions:
            path, body["prompt"] = "/v1/completions", PROBE_PROMPT
        else:
            path, body["messages"] = "/v1/chat/completions", SHORT_CHAT
        plain = await self._post(path, body)
        asked = await self._post(path, {**body, "stream_options": {"include_usage": True}})
        silent, loud = Stream(plain.text), Stream(asked.text)
        if asked.status is not None:
            self.found.stream_options = asked.ok and loud.is_good
        if plain.ok and silent.is_good:
            self.found.done_marker = silent.done
        if plain.ok and asked.ok and silent.is_good:
            self.found.stream_usage = "always" if silent.has_usage else "asked" if loud.has_usage else "never"
        elif plain.ok and silent.is_good:
            self.found.stream_usage = "always" if silent.has_usage else "never"

    async def _tokenize(self) -> None:
        questions: tuple[tuple[TokenizeDialect, str], ...] = (("vllm", "prompt"), ("llama.cpp", "content"))
        for dialect, field in questions:
            reply = await self._asker.post("/tokenize", {**self._model, field: PROBE_PROMPT}, self._timeout_s)
            tokens = reply.mapping().get("tokens")
            # llama.cpp answers an empty list when the field has another name.
            if isinstance(tokens, list) and tokens:
                self.found.tokenize = dialect
                return


def works(reply: Reply) -> bool:
    """A good non-streamed answer: 200, JSON, at least one choice and no error in it."""
    return bool(first_choice(reply)) and not reply.mapping().get("error")


def first_choice(reply: Reply) -> dict[str, Any]:
    """The first entry of ``choices``; empty when the answer has none."""
    choices = reply.mapping().get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def completion_tokens(reply: Reply) -> int | None:
    usage = reply.mapping().get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def judge_longer(plain: Reply, forced: Reply) -> Obedience | None:
    """Compare a short answer with the one that a field should lengthen: as long as the limit means that it works."""
    if forced.status is None:
        return None
    if not works(forced):
        return "refused"
    short, long = completion_tokens(plain), completion_tokens(forced)
    if short is not None and long is not None and short < SHORT_CHAT_TOKENS <= long:
        return "honoured"
    return "accepted"


def first_words(reply: Reply) -> str:
    """The start of an answer that was not as it should be, on one line."""
    text = " ".join(reply.text.split())
    return f"HTTP {reply.status}" + (f", {text[:120]!r}" if text else "")
