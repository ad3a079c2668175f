"""What an engine offers, found by asking before any case runs: ``find_features``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import Any

from harness.conformance.answer import Answer
from harness.conformance.api import Api
from harness.conformance.case import Failed
from harness.conformance.features import CLAIMED, KNOWABLE, Features, whole
from harness.conformance.prompts import Prompt, Prompts, detokenize
from harness.conformance.sentinel_asks import SentinelPrompts, is_sentinel
from harness.engines.asker import Asker
from harness.engines.errors import UnreachableError
from harness.engines.probe import Probe, probe

TEXT = "The quick brown fox jumps over the lazy dog. The capital of France is"
NOT_SERVED = (None, 404, 405, 501)  # statuses of an endpoint that is not there
CHAT = [{"role": "user", "content": "Tell me about the sea."}]


async def find_features(
    url: str, *, name: str | None, model: str | None, api_key: str | None, timeout_s: float, known: Probe | None = None
) -> Features:
    """Ask the server at ``url``.  Raises UnreachableError when there is no OpenAI API there."""
    served, streaming = await require_api(url, model, api_key, timeout_s)
    found = known or await probe(url, api_key, model, name=name, timeout_s=timeout_s)
    features = Features(found.info, found.capabilities, served=served)
    if streaming:
        features.names |= {*streaming, "generate"}
    async with Api(url, found.info.model, api_key=api_key, timeout_s=timeout_s) as api:
        await Questions(api, features).ask()
    if not features.has("generate"):
        # An endpoint that is there and never answers well is broken, not absent: its cases find out how.
        features.names |= {*served, "generate"}
    if api_key is not None:
        await ask_key(url, features)
    return features


async def require_api(url: str, model: str | None, api_key: str | None, timeout_s: float) -> tuple[set[str], set[str]]:
    """One look before the long probe: a dead, hanging or foreign server is told at once.

    Returns which of ``completions`` and ``chat`` there are, and which answer a plain call by a stream: that is an API, and
    a broken one.
    """
    async with Asker(url, api_key) as asker:
        named = {"model": model} if model else {}
        probes = [
            asker.get("/v1/models", timeout_s),
            asker.post("/v1/completions", {**named, "prompt": "Hello", "max_tokens": 1}, timeout_s),
            asker.post(
                "/v1/chat/completions",
                {**named, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1},
                timeout_s,
            ),
        ]
        models, completion, chat = await asyncio.gather(*probes)
    if all(reply.status is None for reply in (models, completion, chat)):
        raise UnreachableError(f"no HTTP server answers at {url}: {completion.error}")
    # A server that wants its model named refuses here with 4xx and JSON; that is an API all the same.
    speaks = [reply for reply in (completion, chat) if isinstance(reply.json(), dict) and reply.status != 404]
    endpoints = (("completions", completion), ("chat", chat))
    served = {name for name, reply in endpoints if reply.status not in NOT_SERVED}
    streaming = {
        name for name, reply in endpoints if reply.status == 200 and any(map(_is_chunk, reply.text.splitlines()))
    }
    if not speaks and not streaming:
        words = completion.error or f"HTTP {completion.status}, {' '.join(completion.text.split())[:80]!r}"
        raise UnreachableError(f"there is no OpenAI API at {url}: POST /v1/completions: {words}")
    return served, streaming


def _is_chunk(line: str) -> bool:
    """Whether a line is an event of an OpenAI stream."""
    if not line.startswith("data:"):
        return False
    with contextlib.suppress(ValueError):
        event = json.loads(line.removeprefix("data:"))
        return isinstance(event, dict) and "choices" in event
    return False


async def served_model(url: str, timeout_s: float) -> str | None:
    """The first model that a server lists, without any other question.  Raises UnreachableError when there is no API."""
    await require_api(url, None, None, timeout_s)
    async with Asker(url, None) as asker:
        document = (await asker.get("/v1/models", timeout_s)).json()
    listed = document.get("data") if isinstance(document, dict) else None
    first = listed[0] if isinstance(listed, list) and listed else None
    name = first.get("id") if isinstance(first, dict) else None
    return name if isinstance(name, str) else None


async def ask_key(url: str, features: Features) -> None:
    async with Asker(url, None) as asker:
        reply = await asker.get("/v1/models")
    if reply.status in (401, 403):
        features.names.add("api_key")


class Questions:
    """Fills ``features`` by small requests, one after another."""

    def __init__(self, api: Api, features: Features) -> None:
        self._api = api
        self._features = features
        self._is_sentinel = is_sentinel(features.info)
        self._text = sentinel_question() if self._is_sentinel else TEXT

    async def ask(self) -> None:
        capabilities, names = self._features.capabilities, self._features.names
        for name, has in (
            ("completions", capabilities.completions),
            ("chat", capabilities.chat),
            ("generate", capabilities.completions or capabilities.chat),
            ("stream", capabilities.stream_usage is not None),
            ("id_prompts", capabilities.token_id_prompts),
            ("return_ids", capabilities.return_token_ids),
            # The sentinel never ends by itself, so the probe cannot see more than that the field is accepted.
            ("ignore_eos", capabilities.ignore_eos in ("honoured", *(["accepted"] if self._is_sentinel else []))),
            ("cached_tokens", capabilities.cached_tokens),
            ("tokenize", capabilities.tokenize is not None),
            ("metrics", capabilities.metrics),
        ):
            if has:
                names.add(name)
        if capabilities.completions:
            await self._completions()
        if capabilities.chat:
            await self._chat()
        await self._debug()
        self._numbers()

    async def _try(self, **fields: Any) -> Answer | None:
        """A completion, or None when the engine refuses it."""
        try:
            return await self._api.complete(
                fields.pop("prompt", self._text), max_tokens=fields.pop("max_tokens", 4), **fields
            )
        except Failed:
            return None

    def _note(self, name: str, holds: bool | None) -> None:
        if holds is None:
            self._features.unknown.add(name)
        elif holds:
            self._features.names.add(name)

    async def _completions(self) -> None:
        features = self._features
        speed = await self._try(max_tokens=24)
        if speed is not None and speed.completion_tokens:
            features.tokens_per_s = max(speed.completion_tokens / max(speed.exchange.seconds, 1e-3), 0.5)
            features.latency_s = speed.exchange.seconds
        scored = await self._try(logprobs=5)
        scores = scored.first.scores if scored else None
        has_scores = bool(scores) and all(score.logprob is not None for score in scores or [])
        self._note("logprobs", has_scores)
        features.top_logprobs = max((len(score.top) for score in scores or []), default=0)
        if features.has("return_ids") or (scored is not None and has_scores and scored.first.token_ids()):
            features.names.add("token_ids")
        await self._echo()
        several = await self._try(n=2)
        self._note("n_greedy", several is not None and len(several.choices) == 2)
        if several is None:
            several = await self._try(n=2, temperature=1.0)
        self._note("n", several is not None and len(several.choices) == 2)
        if features.has("n"):
            features.most_choices = await self._most_choices()
        batch = await self._try(prompt=[self._text, self._text])
        self._note("batch", batch is not None and len(batch.choices) == 2)
        await self._sampling()
        await self._bias()
        await self._stop()
        await self._stop_tokens()
        self._note("detokenize", await detokenize(self._api, [40, 41]) is not None)

    async def _most_choices(self) -> int:
        """Engines bound ``n`` by what may run at once, which not all of them tell."""
        for number in (64, 32, 16, 8, 4):
            answer = await self._try(n=number, temperature=1.0, max_tokens=1)
            if answer is not None and len(answer.choices) == number:
                return number
        return 2

    async def _echo(self) -> None:
        echoed = await self._try(echo=True, max_tokens=1)
        self._note("echo", echoed is not None and echoed.text.startswith(self._text[:20]))
        scored = await self._try(echo=True, logprobs=2, max_tokens=1)
        scores = scored.first.scores if scored else None
        known = [score for score in scores or [] if score.logprob is not None]
        self._note("echo_logprobs", len(known) >= 4)
        told = await self._try(prompt_logprobs=1, max_tokens=1)
        self._note("prompt_logprobs", told is not None and isinstance(told.first.raw.get("prompt_logprobs"), list))

    async def _sampling(self) -> None:
        texts = []
        for seed in (11, 11, 12, 13):
            # Several prompts in one judgement: one alone may have a nearly certain answer at any temperature.
            answers = [await self._try(prompt=text, temperature=1.5, max_tokens=12, seed=seed) for text in self._open()]
            texts.append(None if None in answers else tuple(answer.text for answer in answers if answer))
        if None in texts:
            return
        self._note("sampling", len(set(texts)) > 1)
        self._note("seed", len(set(texts)) > 1 and texts[0] == texts[1])

    def _open(self) -> list[Prompt]:
        """Prompts that can go on in many ways."""
        rng = random.Random(5)
        return [self._text, *(self._uncertain(rng) for _ in range(6))] if self._is_sentinel else [self._text]

    async def _bias(self) -> None:
        ids = {"return_token_ids": True} if self._features.has("return_ids") else {}
        plain = await self._try(max_tokens=1, logprobs=2, **ids)
        if plain is None:
            return
        best = plain.first.token_ids()
        if best:
            banned = await self._try(max_tokens=1, logit_bias={str(best[0]): -100})
            self._note("logit_bias", banned is not None and banned.text != plain.text)
        else:
            # Ids of single bytes or early pieces almost everywhere; +100 must force each of them.
            forced = [await self._try(max_tokens=1, logit_bias={str(token): 100}) for token in (40, 41)]
            texts = {answer.text for answer in forced if answer}
            self._note("logit_bias", len(texts) == 2 and plain.text not in texts)
        self._note("penalties", await self._changes_greedy(frequency_penalty=2.0))
        self._note("repetition_penalty", await self._changes_greedy(repetition_penalty=1.8))
        await self._cuts()

    async def _changes_greedy(self, **fields: Any) -> bool:
        """Whether the fields change the greedy answer to a prompt that could go on in several ways."""
        for prompt in self._open():
            plain = await self._try(prompt=prompt, max_tokens=24, **self._no_end())
            other = await self._try(prompt=prompt, max_tokens=24, **fields, **self._no_end())
            if plain is not None and other is not None and plain.text != other.text:
                return True
        return False

    def _no_end(self) -> dict[str, Any]:
        return {"ignore_eos": True} if self._features.has("ignore_eos") else {}

    async def _cuts(self) -> None:
        """With top_k or min_p 1 a prompt that could go on in several ways goes on in one."""
        rng = random.Random(9)
        prompts = []
        for prompt in [*self._open(), *(self._uncertain(rng) for _ in range(30))]:
            scored = await self._try(prompt=prompt, max_tokens=1, logprobs=2)
            gap = scored.first.scores[0].gap if scored and scored.first.scores else None
            if gap is not None and 0.05 < gap < 1.5:
                prompts.append(prompt)
            if len(prompts) == 3:
                break
        for name in ("top_k", "min_p"):
            held = [await self._one_way(prompt, **{name: 1}) for prompt in prompts]
            self._note(name, all(held) if held else None)

    async def _one_way(self, prompt: Prompt, **fields: Any) -> bool:
        """Whether eight seeds draw the same token."""
        answers = [
            await self._try(prompt=prompt, temperature=2.0, max_tokens=1, seed=seed, **fields) for seed in range(8)
        ]
        return None not in answers and len({answer.text for answer in answers if answer}) == 1

    def _uncertain(self, rng: random.Random) -> Prompt:
        takes_ids = bool(self._features.capabilities.token_id_prompts)
        if self._is_sentinel:
            return SentinelPrompts([0], [0], takes_ids=takes_ids).uncertain(rng)
        return Prompts([], [], takes_ids=False).uncertain(rng)

    async def _stop(self) -> None:
        plain = await self._try(max_tokens=16)
        if plain is None or len(plain.text.strip()) < 4:
            self._note("stop", None)
            return
        middle = plain.text[len(plain.text) // 2 :][:2]
        stopped = await self._try(max_tokens=16, stop=[middle])
        self._note("stop", stopped is not None and middle not in stopped.text and len(stopped.text) < len(plain.text))
        told = await self._try(max_tokens=16, stop=[middle], include_stop_str_in_output=True)
        self._note("stop_in_output", told is not None and told.text.endswith(middle))

    async def _stop_tokens(self) -> None:
        """A token of the greedy answer ends it; with ``min_tokens`` it does not."""
        telling = {"return_token_ids": True} if self._features.has("return_ids") else {"logprobs": 1}
        plain = await self._try(max_tokens=12, **telling)
        ids = plain.first.token_ids() if plain else None
        if not ids or len(ids) < 8:
            return
        stopped = await self._try(max_tokens=12, stop_token_ids=[ids[3]], **telling)
        acts = stopped is not None and len(stopped.first.token_ids() or ids) <= 4
        self._note("stop_token_ids", acts)
        if acts:
            longer = await self._try(max_tokens=12, stop_token_ids=[ids[3]], min_tokens=8, **telling)
            self._note("min_tokens", longer is not None and len(longer.first.token_ids() or []) >= 8)

    async def _chat(self) -> None:
        try:
            answer = await self._api.chat(CHAT, max_tokens=4, logprobs=True, top_logprobs=2)
        except Failed:
            answer = None
        scores = answer.first.scores if answer else None
        self._note("chat_logprobs", bool(scores) and all(score.logprob is not None for score in scores or []))
        if not self._features.has("completions") and answer is not None:
            self._features.latency_s = answer.exchange.seconds
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
        body = {"messages": CHAT, "max_tokens": 64, "temperature": 0, "response_format": form}
        reply = await self._api.post("/v1/chat/completions", body)
        self._note("json_schema", reply.status == 200 and starts_object(reply.json()))
        tool = {"type": "function", "function": {"name": "look_up", "parameters": schema}}
        choice = {"type": "function", "function": {"name": "look_up"}}
        body = {"messages": CHAT, "max_tokens": 64, "temperature": 0, "tools": [tool], "tool_choice": choice}
        reply = await self._api.post("/v1/chat/completions", body)
        self._note("tools", reply.status == 200 and "tool_calls" in reply.text and has_call(reply.json()))

    async def _debug(self) -> None:
        reply = await self._api.request("GET", "/debug/kv")
        document = reply.json() if reply.status == 200 else None
        self._note("debug_kv", isinstance(document, dict) and "ledger" in document)
        hooks = await self._api.request("GET", "/debug/hooks")
        self._note("debug_hooks", hooks.status == 200 and isinstance(hooks.json(), dict))

    def _numbers(self) -> None:
        features, settings = self._features, self._features.info.settings
        # What an engine is known to offer counts as offered: that it has no effect here would be a finding.  All of it is
        # about completions, which a gateway in front of the engine may keep to itself.
        if "completions" in features.served:
            features.names |= CLAIMED.get(features.info.kind or "", set()) & KNOWABLE
        features.window = whole(settings.get("sliding_window"))
        if features.window:
            features.names.add("window")
        if str(settings.get("preemption")) == "swap" or whole(settings.get("swap_blocks")):
            features.names.add("offload")
        features.metric_names = set(features.capabilities.metric_names)
        features.max_model_len = features.info.max_model_len
        features.block_size = whole(settings.get("block_size")) or whole(settings.get("kv_block_size"))
        features.max_num_seqs = whole(settings.get("max_num_seqs"))
        features.pool_tokens = whole(settings.get("kv_slots_reserved")) or whole(settings.get("kv_tokens"))
        blocks = whole(settings.get("kv_blocks")) or whole(settings.get("num_blocks"))
        if features.pool_tokens is None and blocks and features.block_size:
            features.pool_tokens = blocks * features.block_size
        if features.pool_tokens:
            features.names.add("pool")
        if features.max_model_len:
            features.names.add("context")


def sentinel_question() -> str:
    """English has one answer for the sentinel, "?"; it is asked in its own words instead."""
    return SentinelPrompts([], [], takes_ids=False).text(random.Random(3), 24)


def starts_object(document: Any) -> bool:
    """Whether a chat answer's content looks like a JSON object."""
    try:
        content = document["choices"][0]["message"]["content"]
    except (TypeError, KeyError, IndexError):
        return False
    return isinstance(content, str) and content.strip().startswith("{")


def has_call(document: Any) -> bool:
    try:
        return bool(document["choices"][0]["message"]["tool_calls"])
    except (TypeError, KeyError, IndexError):
        return False
