"""One engine with a fault in it, behind its own HTTP server, put through everything that the catalogue's triggers name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import aiohttp
import torch
from aiohttp import web

from reference_engine.attention import make_backend
from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine, EngineLimits
from reference_engine.faults.lab import Injection
from reference_engine.models.loader import LoadedModel, load_model
from reference_engine.runner import ModelRunner
from reference_engine.server.api import ServedModel
from reference_engine.server.app import create_app
from reference_engine.server.build import Serving
from reference_engine.server.loop import EngineLoop
from reference_engine.server.worker import EngineThread
from tests.reference_engine import hash_model
from workloads.sentinel import BOS, Deck, partner

LIMIT = 20.0  # seconds that one call may take; a fault that hangs is seen by it
HANG = 1.5
LONG = 190  # tokens; only the prompts that are cut in the middle are longer

Observed = dict[str, Any]


@cache
def sentinel() -> LoadedModel:
    return load_model("sentinel", dtype=torch.float32, device=torch.device("cpu"))


def serving(*, real: bool, num_blocks: int, block_size: int, window: int | None = None) -> Serving:
    """An engine on the sentinel (real attention over a real pool), or on a hash of its pool's tokens (flat, cheap)."""
    cache_config = CacheConfig(num_blocks=num_blocks, block_size=block_size)
    scheduler = SchedulerConfig(max_model_len=400, max_num_seqs=6, max_num_batched_tokens=64, watermark=0.0)
    if not real:
        engine, _ = hash_model.make_engine(
            num_blocks=num_blocks,
            block_size=block_size,
            audit_every=0,
            step_seconds=0.002,
            max_model_len=400,
            max_num_seqs=6,
            max_num_batched_tokens=64,
            watermark=0.0,
        )
        tokenizer: Any = hash_model.ByteTokenizer()
    else:
        loaded, cpu = sentinel(), torch.device("cpu")
        windows = () if window is None else (window,) * loaded.config.num_layers
        config = replace(loaded.config, sliding_windows=windows)
        runner = ModelRunner(loaded.model, config, cache_config, make_backend("gather", cpu), cpu, torch.float32)
        limits = EngineLimits(loaded.config.vocab_size, loaded.config.eos_token_ids, 1024)
        engine = Engine(runner, limits, scheduler, cache_config, TokenTable(loaded.tokenizer))
        tokenizer = loaded.tokenizer
    model = ServedModel(
        name="m", tokenizer=tokenizer, max_model_len=400, fingerprint="fp", cache_config={}, settings={"engine": "e"}
    )
    return Serving(engine, model, TokenTable(tokenizer))


@dataclass
class Client:
    """Calls whose answers are kept without what differs from run to run."""

    session: aiohttp.ClientSession
    url: str
    engine: Engine
    patience: float = 1.0  # times the limit of each call

    async def call(self, path: str, body: dict[str, Any] | bytes | None, limit: float = LIMIT) -> Any:
        sent = {"data": body} if isinstance(body, bytes) else {"json": body}
        try:
            async with asyncio.timeout(limit * self.patience):
                method = self.session.get if body is None else self.session.post
                async with method(self.url + path, **sent) as response:
                    return [response.status, _plain(await response.text())]
        except TimeoutError:
            return "hangs"
        except aiohttp.ClientError as error:
            return type(error).__name__

    async def complete(self, prompt: Any, limit: float = LIMIT, **fields: Any) -> Any:
        body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, **fields}
        return await self.call("/v1/completions", body, limit)

    async def cut(self, prompt: Any, *, after: int | None, **fields: Any) -> None:
        """Start a stream and hang up after so many events; None: in the middle of the prompt, or before its turn."""
        body = {"prompt": prompt, "max_tokens": 60, "temperature": 0, "ignore_eos": True, "stream": True, **fields}
        call = asyncio.create_task(self._read(body, after))
        if after is None:
            for _ in range(500):
                await asyncio.sleep(0.001)
                if self._is_between_chunks():
                    break
            call.cancel()
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, asyncio.CancelledError):
            await call

    def _is_between_chunks(self) -> bool:
        """Whether some long prompt is between two chunks now."""
        sequences = list(self.engine.scheduler.sequences.values())
        return any(one.prompt_len > LONG and 0 < one.computed < one.prompt_len for one in sequences)

    async def _read(self, body: dict[str, Any], events: int | None) -> None:
        async with asyncio.timeout(LIMIT), self.session.post(self.url + "/v1/completions", json=body) as response:
            seen = 0
            while events is None or seen < events:
                line = await response.content.readline()
                if not line:
                    break
                seen += line.startswith(b"data")

    async def names(self, prompt: Any) -> int:
        """How many different ids the chunks of a stream bear."""
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "stream": True}
        async with asyncio.timeout(LIMIT), self.session.post(self.url + "/v1/completions", json=body) as response:
            return len(set(re.findall(r'"id":"([^"]*)"', await response.text())))

    async def arrivals(self, prompt: Any) -> bool:
        """Whether the first event of a stream comes well before the last."""
        body = {"prompt": prompt, "max_tokens": 60, "temperature": 0, "ignore_eos": True, "stream": True}
        times = []
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(LIMIT), self.session.post(self.url + "/v1/completions", json=body) as response:
                async for piece in response.content.iter_any():
                    times += [time.monotonic()] * bool(piece)
        return len(times) > 3

    async def idle(self) -> None:
        for _ in range(300):
            await asyncio.sleep(0.005)
            if not self.engine.has_work:
                return


_VARIABLE = re.compile(r'"(id|created|system_fingerprint)":("[^"]*"|\d+),?')


def _plain(text: str) -> str:
    return _VARIABLE.sub("", text)


async def with_client(subject: Serving, injection: Injection, use: Callable[[Client], Any]) -> Any:
    """Serve ``subject`` broken by ``injection`` for as long as ``use`` takes."""
    try:
        injection.into(subject)
        return await served(subject, injection, use)
    finally:
        injection.remove()


async def served(subject: Serving, injection: Injection, use: Callable[[Client], Any]) -> Any:
    loop = EngineLoop(subject.engine, EngineThread())
    app = create_app(
        subject.model,
        loop,
        subject.tokens,
        max_body_bytes=1 << 20,
        debug_endpoints=True,
        faults=injection.report,
    )
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            # A fault may make a call hang, and then it is not waited for long.  Without one nothing hangs, and what is slow
            # is the machine.
            patience = 1.0 if injection.labs else 20.0
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            return await use(Client(session, url, subject.engine, patience))
    finally:
        await runner.cleanup()
        loop.stop()


def prompts(real: bool) -> dict[str, Any]:
    """Prompts by what they are for; of the sentinel's words, or of bytes."""
    if real:
        deck = Deck(11)
        long, other, third, *short = (deck.deal(n) for n in (140, 100, 60, 20, 24, 28))
        return {
            "long": [BOS, *long.question(70)],
            "same prefix": [[BOS, *long.question(at)] for at in (5, 40, 90, 135)],
            "others": [[BOS, *other.question(50)], [BOS, *third.question(20)], *([BOS, *p.question(9)] for p in short)],
            "same block": [[BOS, *p.tokens[:31], *third.tokens, *third.cue(30)] for p in (other, long)],
            "exact": [BOS, *long.tokens[:63]],
        }
    letters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    text = (letters * 4)[:140]
    return {
        "long": text,
        "same prefix": [text[:n] + "?" for n in (60, 90, 120, 139)],
        "others": [letters[i:] + letters[:i] for i in range(5)],
        "same block": ["x" * 31 + letters[:40], "y" * 31 + letters[:40]],
        "exact": text[:63],
    }


async def hits(client: Client, ask: dict[str, Any], real: bool) -> Observed:
    """Cold, then hits on a shared prefix, the same block after two beginnings, another salt."""
    return {
        "first": await client.complete(ask["long"], max_tokens=4),
        "again": [await client.complete(prompt) for prompt in (*ask["same prefix"], ask["exact"], ask["exact"])],
        "blocks": [await client.complete(prompt) for prompt in ask["same block"]],
        "salt": await client.complete(ask["long"], cache_salt="other"),
        "list": [await client.complete(ask["same prefix"][:2], max_tokens=5) for _ in range(2)],
        "scores": await client.complete(ask["long"], logprobs=2, prompt_logprobs=1, max_tokens=3),
    }


async def crowd(client: Client, ask: dict[str, Any], real: bool) -> Observed:
    """More than the pool and the seats hold, of different lengths; then what was evicted is asked again."""
    several = [*ask["others"], ask["long"], *ask["same prefix"][:2]]
    limits = [40, 30, 60, 20, 50, 25, 35, 45]
    await client.complete(ask["long"])
    together = (
        client.complete(prompt, max_tokens=limit, ignore_eos=True, limit=HANG * 4)
        for prompt, limit in zip(several, limits, strict=True)
    )
    answers = list(await asyncio.gather(*together))
    once_more = (client.complete([*ask["long"][:60]], max_tokens=30, ignore_eos=True, limit=HANG) for _ in range(2))
    return {
        "crowd": [_without_hits(answer) for answer in answers],
        "equal": [_without_hits(answer) for answer in await asyncio.gather(*once_more)] if real else [],
        "back": _without_hits(await client.complete(ask["long"], limit=HANG * 4)),
    }


async def drawing(client: Client, ask: dict[str, Any], real: bool) -> Observed:
    """Sampling, penalties, several choices; text to its own end."""
    drawn = {"temperature": 1.7, "top_k": 2, "seed": 5, "max_tokens": 40}
    return {
        "greedy": [await client.complete(ask["long"], max_tokens=60, logprobs=1) for _ in range(2)],
        "drawn": [await client.complete(ask["exact"], **drawn) for _ in range(2)],
        "plain": await client.complete(ask["exact"], temperature=1, seed=8, max_tokens=60),
        "nucleus": await client.complete(ask["exact"], temperature=1.5, top_p=0.6, seed=6, max_tokens=40),
        "choices": await client.complete(
            ask["exact"][:-2], n=3, temperature=1.5, seed=7, max_tokens=20, ignore_eos=True
        ),
        "penalties": await client.complete(ask["exact"], frequency_penalty=2, presence_penalty=1, max_tokens=30),
        "bias": await client.complete(ask["exact"], logit_bias={"100": 100}),
        "ends": None if real else await client.complete(ask["long"], max_tokens=200),
    }


async def wire(client: Client, ask: dict[str, Any], real: bool) -> Observed:
    """Streams, stop strings, characters of several tokens, chat, bad calls."""
    seen: Observed = {}
    streamed = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 40, "ignore_eos": True}
    known = await client.complete(ask["long"], max_tokens=12, ignore_eos=True)
    seen["stop"] = await client.complete(ask["long"], stop=_spanning(known), max_tokens=12, ignore_eos=True)
    seen["stream"] = await client.complete(ask["long"], **streamed)
    seen["scored stream"] = await client.complete(ask["exact"], logprobs=1, **streamed)
    seen["delay"] = await client.arrivals(ask["long"])
    seen["names"] = await client.names(ask["exact"])
    if real:
        seen["one text"] = await client.complete([" bali"], max_tokens=4)
        unique = list(dict.fromkeys(4 + byte for byte in "é漢".encode()))
        letters = [BOS, *(partner(one) for one in unique), *unique, *unique[:2]]
        seen["characters"] = await client.complete(letters, **streamed)
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": " bali"}]}], "max_tokens": 4}
    seen["chat"] = await client.call("/v1/chat/completions", {**chat, "temperature": 0})
    seen["limit"] = await client.call(
        "/v1/chat/completions", {"messages": chat["messages"], "max_completion_tokens": 3, "temperature": 0}
    )
    seen["list"] = await client.complete(ask["same prefix"][:2], max_tokens=5)
    twice = [await client.complete(ask["exact"], temperature=1.5) for _ in range(2)]
    seen["twice"] = twice[0] == twice[1]
    seen["bad"] = [
        await client.complete("x", temperature=3),
        await client.complete("x", n=0),
        await client.complete(list(range(5, 250)) * 2, limit=HANG),
        await client.complete("x", max_tokens=10_000, limit=HANG),
        await client.complete("x", model="no-such-model"),
        await client.call("/v1/completions", b"{no JSON"),
    ]
    return seen


async def hang_ups(client: Client, ask: dict[str, Any], real: bool) -> Observed:
    """Clients that leave: in a stream, before their turn, in the middle of a prompt; then the same prompts again."""
    survivors = (*ask["others"][:3], ask["long"])
    busy = asyncio.gather(*(client.complete(prompt, max_tokens=60, ignore_eos=True) for prompt in survivors))
    await asyncio.sleep(0.03)
    fresh = [[BOS, *Deck(50 + i).deal(200).question(100)] if real else chr(97 + i) * 250 for i in range(6)]
    await asyncio.gather(
        *(client.cut(prompt, after=4) for prompt in ask["same prefix"]),
        *(client.cut(prompt, after=None) for prompt in fresh),
    )
    await asyncio.sleep(0.05)
    left = [one for one in list(client.engine.scheduler.sequences.values()) if one.prompt_len > LONG]
    seen: Observed = {"left": bool(left), "neighbours": [_without_hits(one) for one in await busy]}
    await client.cut(fresh[0], after=None)
    await client.idle()
    seen["after"] = [_without_hits(await client.complete(p, limit=HANG * 2)) for p in (fresh[0], *ask["same prefix"])]
    return seen


async def forms(client: Client, ask: dict[str, Any], real: bool) -> Observed:
    """Answers held to a schema, calls of a forced tool, streamed and not."""
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 60, "temperature": 0}
    fields = {f"field_{n}": {"type": "boolean"} for n in range(3)}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    tool = {"type": "function", "function": {"name": "look_up", "parameters": schema}}
    call = {**chat, "tools": [tool], "tool_choice": "required"}
    found = [
        await client.call("/v1/chat/completions", {**body, "stream": stream})
        for body in ({**chat, "response_format": form}, call)
        for stream in (False, True)
    ]
    return {"forms": found}


SCENES = {"hits": hits, "crowd": crowd, "drawing": drawing, "wire": wire, "hang_ups": hang_ups, "forms": forms}


async def exercise(client: Client, scene: str, real: bool) -> Observed:
    """One scene, and what the metrics say when it is over."""
    seen: Observed = await SCENES[scene](client, prompts(real), real)
    await client.idle()
    text = (await client.call("/metrics", None))[1]
    wanted = ("kv_usage", "kv_slots_allocated", "generation_tokens_total")
    lines = [line.removeprefix("pagedbench:") for line in text.splitlines()]
    shown = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(wanted)}
    counted = client.engine.scheduler.stats().generation_tokens
    seen["free"] = client.engine.scheduler.kv.num_free_blocks
    if scene == "hits":  # elsewhere it depends on who came first
        seen["preemptions"] = client.engine.scheduler.stats().preemptions
    seen["metrics"] = [shown["kv_usage"], shown["kv_slots_allocated"], shown["generation_tokens_total"] - counted]
    return seen


def _without_hits(answer: Any) -> Any:
    """Answers of a crowd: how much of a prompt was cached depends on who came first; that it is no more than the prompt
    does not."""
    if not isinstance(answer, list):
        return answer
    counts = re.search(r'"prompt_tokens":(\d+).*"cached_tokens":(\d+)', answer[1])
    possible = counts is None or int(counts[2]) < int(counts[1])
    return [answer[0], re.sub(r'"cached_tokens":\d+', "", answer[1]), possible]


def _spanning(answer: Any) -> str:
    """A stop string that begins in the middle of one word of a known answer and ends in the next."""
    try:
        text = json.loads(answer[1])["choices"][0]["text"]
    except (ValueError, LookupError, TypeError):
        return "never"
    return text[4:8] or "never"
