"""ERR: bad calls are refused in the API's own words, and disturb nobody."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

from harness.conformance.api import Exchange
from harness.conformance.case import Failed, NonStrict, case
from harness.conformance.context import Context

SPEC = "OpenAI OpenAPI 2026-08-21"


def target(ctx: Context) -> tuple[str, dict[str, Any]]:
    """An endpoint that answers, and a good small body for it."""
    if ctx.features.has("completions"):
        return "/v1/completions", {"prompt": "Hello", "max_tokens": 2}
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


def error_fault(reply: Exchange) -> tuple[str | None, list[str]]:
    """What breaks ``{error: {message, type, param, code}}``, and which of the nullable keys are left out."""
    document = reply.json()
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return f"the body is no {{error: {{...}}}}: {reply.text[:120]!r}", []
    if not isinstance(error.get("message"), str) or not error["message"]:
        return f"the error has no message: {error}", []
    if not isinstance(error.get("type"), str):
        return f"the error has no type: {error}", []
    return None, [key for key in ("param", "code") if key not in error]


def refused(ctx: Context, reply: Exchange, what: str) -> None:
    """Raises Failed unless a call got a 4xx."""
    ctx.require(reply.status is not None, f"{what}: {reply.error}")
    ctx.require(reply.status != 200, f"{what} is answered as if it were right: {reply.text[:120]!r}")
    ctx.require(400 <= (reply.status or 0) < 500, f"{what} gives {reply.words}, not 4xx")


async def still_answers(ctx: Context) -> None:
    path, body = target(ctx)
    reply = await ctx.api.post(path, body)
    ctx.require(reply.status == 200, f"the engine no longer answers a good call: {reply.words}")


@case(
    "ERR-01",
    "MUST",
    "broken JSON gives 4xx and an error object",
    source=f"{SPEC}: ErrorResponse",
    needs="generate",
    kills="F46 F47",
    structural=True,
)
async def broken_json(ctx: Context) -> None:
    path, _ = target(ctx)
    missing: list[str] = []
    for raw in (b'{"prompt": "x", ', b"[1, 2", b"nonsense", b"", b"\xff\xfe\x00", b'"text"', b"[]", b"null"):
        reply = await ctx.api.request("POST", path, raw=raw)
        refused(ctx, reply, f"the body {raw!r}")
        fault, absent = error_fault(reply)
        ctx.require(fault is None, f"the body {raw!r} is refused without an error object: {fault}")
        missing += absent
    await still_answers(ctx)
    if missing:
        raise NonStrict(f"error objects leave out {', '.join(sorted(set(missing)))}")


OUT_OF_RANGE: tuple[dict[str, Any], ...] = (
    {"temperature": 3},
    {"temperature": -1},
    {"top_p": 2},
    {"top_p": -0.5},
    {"n": 0},
    {"n": -1},
    {"max_tokens": -5},
    {"presence_penalty": 5},
    {"frequency_penalty": -5},
    {"max_tokens": "many"},
    {"temperature": "hot"},
    {"n": 1.5},
    {"stop": 7},
    {"logit_bias": [1]},
)
# Of fields that engines share beyond the API, where they act.
BEYOND: dict[str, tuple[dict[str, Any], ...]] = {
    "min_p": ({"min_p": 1.5}, {"min_p": -0.1}),
    "repetition_penalty": ({"repetition_penalty": 0}, {"repetition_penalty": -1}),
    "min_tokens": ({"min_tokens": -1},),
}


@case(
    "ERR-02",
    "MUST",
    "values out of range or of a wrong type give 4xx",
    source=f"{SPEC}: minimum and maximum of each field",
    needs="generate",
    kills="F46",
    structural=True,
)
async def out_of_range(ctx: Context) -> None:
    path, body = target(ctx)
    beyond = [bad for name, values in BEYOND.items() if ctx.features.has(name) for bad in values]
    tries = [(path, {**body, **bad}, bad) for bad in (*OUT_OF_RANGE, *beyond)]
    if ctx.features.has("chat"):
        chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "logprobs": True}
        tries.append(("/v1/chat/completions", {**chat, "top_logprobs": 21}, {"top_logprobs": 21}))
    wrong = []
    for path, sent, bad in tries:
        reply = await ctx.api.post(path, sent)
        if reply.status is None or not 400 <= reply.status < 500:
            wrong.append(f"{json.dumps(bad)} -> {reply.status if reply.status is not None else reply.error}")
    ctx.saw(tried=len(tries), accepted=len(wrong))
    ctx.require(
        not wrong,
        f"{len(wrong)} of {len(tries)} bad values are not refused with 4xx: {'; '.join(wrong[:4])}",
        all=wrong,
    )


@case(
    "ERR-03",
    "MUST",
    "a prompt beyond the context is refused, never cut in silence",
    source=f"{SPEC}: max_tokens, on the context length",
    needs="completions context",
    kills="F45",
    structural=True,
)
async def beyond_context(ctx: Context) -> None:
    longest = ctx.features.max_model_len or 0
    for extra in (1, 40, longest // 2):
        prompt = ctx.prompts.make_prompt(ctx.rng, longest + extra + (0 if ctx.prompts.takes_ids else longest // 4))
        reply = await ctx.api.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
        if reply.status == 200:
            usage = (reply.json() or {}).get("usage") or {}
            count = usage.get("prompt_tokens")
            if not ctx.prompts.takes_ids and isinstance(count, int) and count < longest:
                continue  # words were fewer tokens than thought
            raise Failed(f"a prompt of {longest + extra} tokens is accepted where {longest} fit; usage counts {count}")
        refused(ctx, reply, f"a prompt of {longest + extra} tokens, {extra} too many,")
    # At the limit itself the prompt must count whole.
    prompt = ctx.prompts.make_prompt(ctx.rng, longest - 2)
    if isinstance(prompt, list) and longest <= 8192:
        reply = await ctx.api.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
        if reply.status == 200:
            count = ((reply.json() or {}).get("usage") or {}).get("prompt_tokens")
            ctx.require(count == len(prompt), f"a prompt of {len(prompt)} tokens counts as {count}")
    await still_answers(ctx)


@case(
    "ERR-04",
    "SHOULD",
    "prompt and limit together beyond the context: refused, or ended by length there",
    source=f"{SPEC}: max_tokens; two outcomes are allowed",
    needs="completions context",
    kills="F45 F44",
    structural=True,
)
async def limit_beyond_context(ctx: Context) -> None:
    longest = ctx.features.max_model_len or 0
    ctx.need_evidence(longest <= 16384, f"a context of {longest} tokens is too long to be filled here")
    prompt = ctx.prompts.make_prompt(ctx.rng, longest - 24)
    fields = ctx.fields(200)
    reply = await ctx.api.post("/v1/completions", {"prompt": prompt, "temperature": 0, **fields})
    if reply.status != 200:
        refused(ctx, reply, "a limit beyond the context")
        return
    from harness.conformance.answer import parse_answer

    answer = parse_answer(reply, is_chat=False)
    total = answer.count("total_tokens") or 0
    ctx.require(total <= longest + 1, f"{total} tokens were made where the context holds {longest}")
    if isinstance(prompt, list):
        ctx.require(
            answer.prompt_tokens == len(prompt), f"a prompt of {len(prompt)} tokens was cut to {answer.prompt_tokens}"
        )
    ctx.require(
        answer.first.finish == "length" or total < longest,
        f"cut at the context with finish_reason {answer.first.finish!r}",
    )
    raise NonStrict(f"accepted, and ended by {answer.first.finish} after {answer.completion_tokens} tokens")


@case(
    "ERR-05",
    "SHOULD",
    "a wrong method or path gives 404 or 405",
    source="Schemathesis: unsupported_method",
    needs="generate",
    kills="F46",
    structural=True,
)
async def wrong_method(ctx: Context) -> None:
    path, body = target(ctx)
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        reply = await ctx.api.request(method, path, body if method != "GET" else None)
        ctx.require(reply.status in (404, 405, 400, 501), f"{method} {path} gives {reply.words}, not 405")
    reply = await ctx.api.request("POST", "/v1/no-such-endpoint", body)
    ctx.require(reply.status in (404, 405), f"POST /v1/no-such-endpoint gives {reply.words}, not 404")
    raw = json.dumps(ctx.api.filled(body)).encode()
    reply = await ctx.api.request(
        "POST", path, raw=b"a=b&c=d", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    refused(ctx, reply, "a form instead of JSON")
    reply = await ctx.api.request("POST", path, raw=raw, headers={"Content-Type": "application/json; charset=utf-8"})
    ctx.require(reply.status == 200, f"a content type with a charset gives {reply.words}")


WRONG_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 2**63, -(2**70), 1e308, "", "x", "\x00", "é" * 300, [], [None], [[]], [1, "a"], [[1], "b"],
    {}, {"a": {}}, [-1], [2**40], [[2**31]], "\ud7ff", 10**9, [""], [[1, -1]],
)  # fmt: skip
FIELDS = (
    "prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "n", "stream", "stop", "logprobs", "echo",
    "logit_bias", "seed", "presence_penalty", "frequency_penalty", "stream_options", "best_of", "min_p", "user", "suffix",
    "response_format", "tools", "tool_choice", "top_logprobs", "ignore_eos", "min_tokens", "model", "stop_token_ids",
)  # fmt: skip


def spoiled(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """A body with one to three fields set to values that hardly any of them may have; never a large job."""
    found = dict(body)
    for name in rng.sample(FIELDS, rng.randint(1, 3)):
        found[name] = rng.choice(WRONG_VALUES)
    for name in ("n", "best_of", "max_tokens", "min_tokens"):
        value = found.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 128:
            found[name] = "many"
    found.pop("stream", None)
    if rng.random() < 0.2:
        found.pop(rng.choice(list(found)), None)
    if found.get("max_tokens") is None:
        found["max_tokens"] = 2
    return found


@case(
    "ERR-06",
    "MUST",
    "500 generated bad calls: none gives 5xx, and the engine lives",
    source="Schemathesis: not_a_server_error",
    needs="generate",
    kills="F46 F54",
    structural=True,
)
async def generated_calls(ctx: Context) -> None:
    targets = [target(ctx)]
    if ctx.features.has("completions", "chat"):
        targets.append(("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}))
    bodies = []
    for _ in range(ctx.size(500, 200)):
        path, body = ctx.rng.choice(targets)
        bodies.append((path, spoiled(ctx.rng, body)))
    gate = asyncio.Semaphore(8)
    failures: list[tuple[str, Exchange]] = []

    async def one(path: str, body: dict[str, Any]) -> None:
        async with gate:
            reply = await ctx.api.post(path, body, timeout_s=30.0)
        if reply.status is None or reply.status >= 500:
            failures.append((path, reply))

    await asyncio.gather(*(one(path, body) for path, body in bodies))
    ctx.saw(calls=len(bodies), server_errors=len(failures))
    await still_answers(ctx)
    if failures:
        path, reply = failures[0]
        raise Failed(
            f"{len(failures)} of {len(bodies)} bad calls are not refused but fail: POST {path} gives {reply.words}",
            sent=[(exchange.sent or "")[:300] for _, exchange in failures[:5]],
        )


@case(
    "ERR-07",
    "MUST",
    "bad calls do not disturb good ones beside them",
    source="own",
    needs="completions",
    kills="F26 F24 F47",
    oracle="known, else scored, else each answer given alone",
    evidence="bad calls and good ones in flight together",
    structural=True,
)
async def undisturbed(ctx: Context) -> None:
    asks = ctx.asks(ctx.size(16, 8), (8, 4 * ctx.block), 20)
    baselines = await ctx.baselines(asks)
    path, body = target(ctx)
    stop = asyncio.Event()
    sent = 0

    async def disturb() -> None:
        nonlocal sent
        while not stop.is_set():
            await ctx.api.post(path, spoiled(ctx.rng, body), timeout_s=30.0)
            sent += 1

    noise = [asyncio.ensure_future(disturb()) for _ in range(3)]
    try:
        answers = await ctx.together(asks)
    finally:
        stop.set()
        await asyncio.gather(*noise, return_exceptions=True)
    ctx.saw(bad_calls=sent)
    ctx.need_evidence(sent >= 3, "hardly any bad call was in flight")
    await ctx.judged(asks, answers, baselines=baselines, what="answers beside bad calls")


@case(
    "ERR-08",
    "SHOULD",
    "a wrong key is refused with 401",
    source="Schemathesis: ignored_auth",
    needs="api_key",
    kills="F46",
    structural=True,
)
async def wrong_key(ctx: Context) -> None:
    path, body = target(ctx)
    for header in ("Bearer wrong", "", "Basic d3Jvbmc6d3Jvbmc="):
        reply = await ctx.api.request("POST", path, ctx.api.filled(body), headers={"Authorization": header})
        ctx.require(reply.status in (401, 403), f"the authorisation {header!r} gives {reply.words}, not 401")
