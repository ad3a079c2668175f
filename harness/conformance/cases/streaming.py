"""STR: server-sent events carry the same answer, whole and in order."""

from __future__ import annotations

import asyncio
from typing import Any

from harness.conformance.answer import Answer, Streamed
from harness.conformance.case import Failed, NonStrict, case
from harness.conformance.context import Context
from harness.conformance.sentinel_asks import SentinelAsks
from harness.load.sse import SseParser

SPEC = "OpenAI OpenAPI 2026-08-21"


async def some_stream(ctx: Context, max_tokens: int = 16, **fields: Any) -> Streamed:
    """A stream of whichever endpoint there is.  Raises Failed when it is not whole."""
    if ctx.features.has("completions"):
        streamed = await ctx.api.stream_complete(ctx.prompts.make_prompt(ctx.rng, 12), max_tokens=max_tokens, **fields)
    else:
        body = {"messages": [{"role": "user", "content": ctx.prompts.text(ctx.rng, 10)}], "max_tokens": max_tokens}
        streamed = await ctx.api.stream("/v1/chat/completions", {**body, **fields})
    streamed.answer()
    return streamed


@case(
    "STR-01",
    "MUST",
    "frames parse, and the last is data: [DONE]",
    source=f"{SPEC}: stream; WHATWG HTML 9.2.6",
    needs="stream",
    kills="F40",
    structural=True,
)
async def frames(ctx: Context) -> None:
    streamed = await some_stream(ctx)
    kind = streamed.exchange.headers.get("content-type", "")
    ctx.require(kind.startswith("text/event-stream"), f"the content type of a stream is {kind!r}")
    ctx.require(not streamed.bad, f"an event is not JSON: {streamed.bad[:1]}")
    raw = bytes(streamed.raw)
    whole = [event.data for event in SseParser().feed(raw)]
    for cut in range(1, min(len(raw), 400)):
        parser = SseParser()
        parts = [event.data for event in (*parser.feed(raw[:cut]), *parser.feed(raw[cut:]))]
        ctx.require(parts == whole, "the stream reads differently when it is cut", cut=cut)
    ctx.require(
        streamed.done, f"the stream does not end with data: [DONE] but with {raw[-80:].decode('utf-8', 'replace')!r}"
    )
    ctx.require(not streamed.after_done, f"{streamed.after_done} events follow [DONE]")


@case(
    "STR-02",
    "MUST",
    "all chunks carry the same id and created, and name their object",
    source=f"{SPEC}: CreateChatCompletionStreamResponse",
    needs="stream",
    kills="F48 E5",
    structural=True,
)
async def identity(ctx: Context) -> None:
    streams = await asyncio.gather(*(some_stream(ctx, 24) for _ in range(8)))
    ids = []
    for streamed in streams:
        for name in ("id", "created", "model"):
            values = {str(event.get(name)) for event in streamed.events}
            ctx.require(len(values) == 1, f"chunks of one stream have several values of {name}: {sorted(values)[:3]}")
        kinds = {event.get("object") for event in streamed.events}
        wanted = "chat.completion.chunk" if streamed.is_chat else "text_completion"
        ctx.require(kinds == {wanted}, f"chunks have the object {kinds}, not {wanted!r}")
        ids.append(streamed.events[0].get("id"))
    ctx.require(len(set(ids)) == len(ids), f"two streams share an id: {ids}")
    if ctx.features.has("chat"):
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 6}
        chat = await ctx.api.stream("/v1/chat/completions", body)
        chat.answer()
        kinds = {event.get("object") for event in chat.events}
        ctx.require(kinds == {"chat.completion.chunk"}, f"chat chunks have the object {kinds}")


@case(
    "STR-03",
    "MUST",
    "the joined deltas are the text of the answer that is not streamed",
    source="Kimi Vendor Verifier: every case in both modes",
    needs="stream",
    kills="F39 F38",
    oracle="equality of the two modes; margin where they differ",
    structural=True,
)
async def same_text(ctx: Context) -> None:
    if ctx.features.has("completions"):
        asks = [ctx.plain_ask(8 + 3 * number, 32) for number in range(ctx.size(12, 6))]
        whole = [await ctx.send(ask) for ask in asks]
        streams = [await ctx.send(ask, stream=True) for ask in asks]
        compare_modes(ctx, whole, streams)
    if ctx.features.has("chat"):
        texts = [ctx.prompts.text(ctx.rng, 10) for _ in range(4)]
        whole = [await ctx.api.chat(text, max_tokens=24) for text in texts]
        bodies = [{"messages": [{"role": "user", "content": text}], "max_tokens": 24} for text in texts]
        streams = [(await ctx.api.stream("/v1/chat/completions", body)).answer() for body in bodies]
        compare_modes(ctx, whole, streams)


def compare_modes(ctx: Context, whole: list[Answer], streams: list[Answer]) -> None:
    """Raises Failed where streamed text differs for another reason than a tie."""
    tied = 0
    for plain, streamed in zip(whole, streams, strict=True):
        if plain.text == streamed.text:
            ctx.require(
                plain.first.finish == streamed.first.finish,
                f"finish_reason is {streamed.first.finish!r} streamed and {plain.first.finish!r} otherwise",
            )
            continue
        if ctx.part_at_a_tie(plain, streamed):
            tied += 1
            continue
        raise Failed(f"streamed {streamed.text[:120]!r} where {plain.text[:120]!r} is returned otherwise")
    ctx.saw(compared=len(whole), ties=tied)
    ctx.need_evidence(tied * 2 <= len(whole), f"{tied} of {len(whole)} answers differ and may be ties")


@case(
    "STR-04",
    "MUST",
    "include_usage adds one chunk without choices before [DONE]; usage is null elsewhere",
    source=f"{SPEC}: ChatCompletionStreamOptions",
    needs="stream",
    kills="F40 F41",
    structural=True,
)
async def usage_chunk(ctx: Context) -> None:
    streamed = await some_stream(ctx, 12, stream_options={"include_usage": True})
    with_usage = [number for number, event in enumerate(streamed.events) if event.get("usage")]
    ctx.require(with_usage, "no chunk has usage although include_usage is set")
    last = len(streamed.events) - 1
    ctx.require(with_usage == [last], f"usage is in the chunks {with_usage} of {last + 1}, not in the last one only")
    ctx.require(streamed.events[last].get("choices") == [], "the chunk with usage has choices")
    usage = streamed.events[last]["usage"]
    counted = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
    ctx.require(usage.get("total_tokens") == counted, f"usage does not add up: {usage}")
    ctx.require(usage.get("completion_tokens", 0) <= 12, f"usage counts {usage} for at most 12 tokens")
    if ctx.features.has("completions"):
        prompt = ctx.prompts.make_prompt(ctx.rng, 30)
        whole = await ctx.api.complete(prompt, **ctx.fields(10))
        again = await ctx.api.stream_complete(prompt, **ctx.fields(10, stream_options={"include_usage": True}))
        answer = again.answer()
        for name in ("prompt_tokens", "completion_tokens"):
            ctx.require(
                answer.count(name) == whole.count(name),
                f"{name} is {answer.count(name)} streamed and {whole.count(name)} otherwise",
            )
    silent = await some_stream(ctx, 4)
    loud = [event for event in silent.events if event.get("usage")]
    if loud:
        raise NonStrict("usage is streamed although it was not asked for")


@case(
    "STR-05",
    "MUST",
    "exactly one finish_reason for each index, and nothing of that index after it",
    source="SGLang: test_openai_server",
    needs="stream",
    kills="F42 F39 E6",
    structural=True,
)
async def one_end(ctx: Context) -> None:
    extra = {"n": 3, "temperature": 1} if ctx.features.has("n", "sampling") else {}
    for number in range(4):
        streamed = await some_stream(ctx, 8 + 5 * number, **(extra if number % 2 else {}))
        ended: set[Any] = set()
        for _, delta in streamed.deltas():
            index = delta.get("index")
            if index in ended:
                ctx.require(
                    not streamed.piece(delta) and not delta.get("finish_reason"),
                    f"choice {index} goes on after its end",
                )
            if delta.get("finish_reason"):
                ended.add(index)
        indices = {delta.get("index") for _, delta in streamed.deltas()}
        ctx.require(ended == indices, f"choices {sorted(map(str, indices - ended))} never end")


SCRIPTS = (
    "🙂🎉🚀🌍🔥💡🙂🎉🚀🌍🔥💡🙂🎉🚀🌍🔥💡🙂🎉🚀🌍🔥💡",
    "東京都は日本の首都です。東京都は日本の首都です。東京都は日本の首都です。",
    "é è ê ë á à â ä é è ê ë á à â ä é è ê ë á à â ä",
    "สวัสดีครับ สวัสดีครับ สวัสดีครับ สวัสดีครับ",
    "👩‍👩‍👧 👨‍👩‍👦 👩‍👩‍👧 👨‍👩‍👦 👩‍👩‍👧 👨‍👩‍👦",
)


@case(
    "STR-06",
    "MUST",
    "a character that spans tokens arrives whole",
    source="abetlen/llama-cpp-python#372",
    needs="stream completions",
    kills="F38",
    oracle="known, else equality of the two modes",
    evidence="answers with characters beyond ASCII",
    structural=True,
)
async def split_characters(ctx: Context) -> None:
    if ctx.sentinel is not None:
        await known_characters(ctx, ctx.sentinel)
        return
    seen = 0
    for script in SCRIPTS:
        bodies: list[dict[str, Any]] = [{"prompt": script, **ctx.fields(32)}]
        if ctx.features.has("logit_bias"):
            # Whatever the model, it must write these pieces, some of them parts of a character.
            ids = await ctx.judge.tokenize(script)
            if ids:
                counts = sorted(set(ids[len(ctx.prompts.start) :]))
                bias = {str(token): 60 for token in counts[:60]}
                bodies.append({"prompt": script, **ctx.fields(32, logit_bias=bias)})
        for body in bodies:
            body.pop("logprobs", None)
            whole = await ctx.api.complete(body.pop("prompt"), **body)
            streamed = (await ctx.api.stream_complete(script, **body)).answer()
            if whole.text.isascii():
                continue
            if whole.first.ids is not None and whole.first.ids != streamed.first.ids:
                continue  # a tie went the other way: the texts say nothing about characters
            seen += 1
            ctx.require(
                streamed.text == whole.text,
                f"streamed {streamed.text[:60]!r} where {whole.text[:60]!r} is returned otherwise",
                broken=streamed.text.count("\ufffd") - whole.text.count("\ufffd"),
            )
    ctx.saw(answers_beyond_ascii=seen)
    ctx.need_evidence(seen >= 2, f"only {seen} answers have characters beyond ASCII")


async def known_characters(ctx: Context, sentinel: SentinelAsks) -> None:
    """The sentinel speaks ASCII words, but knows single bytes as well, and can be asked for those of any character."""
    asks = [sentinel.characters(ctx.rng) for _ in range(ctx.size(6, 3))]
    for ask in asks:
        for stream in (False, True):
            answer = await ctx.send(ask, stream=stream)
            ctx.require(
                answer.text == ask.expected,
                f"{'streamed ' if stream else ''}{ask.label}: {answer.text[:60]!r} instead of {ask.expected!r}",
            )
    ctx.stand_on("known")
    ctx.saw(answers_beyond_ascii=2 * len(asks))


@case(
    "STR-07",
    "MUST",
    "no part of a stop string that spans tokens is sent",
    source="vllm-project/vllm#3574, PR #3672",
    needs="stream completions",
    kills="F37",
    evidence="stop strings that were really generated",
    structural=True,
)
async def split_stops(ctx: Context) -> None:
    hits = 0
    for number in range(ctx.size(12, 6)):
        prompt = ctx.prompts.make_prompt(ctx.rng, 9 + number)
        fields = ctx.fields(28)
        fields.pop("logprobs", None)
        whole = await ctx.api.complete(prompt, **fields)
        if len(whole.text) < 12:
            continue
        start = ctx.rng.randrange(2, len(whole.text) - 8)
        stop = whole.text[start : start + 7]  # longer than a token almost everywhere
        if not stop.strip() or "\ufffd" in stop:
            continue
        cut = whole.text.index(stop)
        streamed = await ctx.api.stream_complete(prompt, **fields, stop=[stop])
        text = streamed.answer().text
        if not whole.text.startswith(text[: min(len(text), cut)]):
            continue
        hits += 1
        ctx.require(
            text == whole.text[:cut],
            f"with the stop string {stop!r} the stream says {text[-24:]!r}, should end {whole.text[:cut][-24:]!r}",
            whole=whole.text,
        )
        again = await ctx.api.complete(prompt, **fields, stop=[stop])
        ctx.require(
            again.text == text, f"stopped at {again.text[-24:]!r} when not streamed, at {text[-24:]!r} streamed"
        )
    ctx.saw(stops_hit=hits)
    ctx.need_evidence(hits >= 3, f"only {hits} stop strings were reached")


@case(
    "STR-08",
    "SHOULD",
    "streamed log-probabilities are one a token and equal those not streamed",
    source=f"{SPEC}: logprobs",
    needs="stream logprobs",
    kills="F39 F33 F41",
    structural=True,
)
async def streamed_scores(ctx: Context) -> None:
    compared = 0
    for number in range(ctx.size(6, 3)):
        ask = ctx.plain_ask(10 + 7 * number, 20)
        whole, streamed = await ctx.send(ask), await ctx.send(ask, stream=True)
        first, second = whole.first.scores or [], streamed.first.scores or []
        count = whole.completion_tokens
        ctx.require(count is None or len(first) == count, f"{len(first)} log-probabilities for {count} tokens")
        if [score.token for score in first] != [score.token for score in second]:
            ctx.require(
                whole.text != streamed.text or len(first) == len(second),
                f"{len(second)} log-probabilities are streamed where {len(first)} come otherwise",
            )
            continue
        compared += len(first)
        for a, b in zip(first, second, strict=True):
            ctx.require(
                a.logprob is not None and b.logprob is not None and abs(a.logprob - b.logprob) <= ctx.limits.jump,
                f"the log-probability of {a.token!r} is {b.logprob} streamed and {a.logprob} otherwise",
            )
    ctx.saw(tokens_compared=compared)
    ctx.need_evidence(compared, "no two answers were equal")


@case(
    "STR-09",
    "MUST",
    "a stream that breaks off shows it",
    source=f"{SPEC}: ErrorEvent",
    needs="stream completions ignore_eos",
    kills="F47",
    evidence="streams that ran to their limit or showed an error",
    structural=True,
)
async def visible_errors(ctx: Context) -> None:
    # Many short ones: a request in twenty that fails on the way is met with near certainty.
    limits = [8 + ctx.rng.randrange(10) for _ in range(ctx.size(160, 100))]
    gate = asyncio.Semaphore(2 * ctx.places)

    async def one(limit: int) -> None:
        async with gate:
            await watch(limit)

    async def watch(limit: int) -> None:
        prompt = ctx.prompts.make_prompt(ctx.rng, 12)
        streamed = await ctx.api.stream_complete(prompt, **ctx.fields(limit, stream_options={"include_usage": True}))
        if streamed.exchange.status != 200 or streamed.errors:
            return
        answer_tokens = next(
            (event["usage"]["completion_tokens"] for event in streamed.events if event.get("usage")), None
        )
        ends = {delta.get("finish_reason") for _, delta in streamed.deltas()} - {None}
        if streamed.exchange.error is not None or not streamed.done:
            if ctx.features.capabilities.done_marker is False and ends:
                return
            if ends or streamed.done:
                raise Failed(f"a stream broke off after saying that it ended: {streamed.exchange.error}")
            return  # visible: the connection broke, no [DONE] and no finish_reason
        if not ends:
            raise Failed("a stream ends with [DONE] but without a finish_reason")
        if ends == {"length"} and answer_tokens is not None and answer_tokens < limit:
            raise Failed(f"a stream ended with length after {answer_tokens} of {limit} tokens")
        if "stop" in ends:
            raise Failed(f"a stream that may not stop ended cleanly after {answer_tokens} of {limit} tokens")

    outcomes = await asyncio.gather(*(one(limit) for limit in limits), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    ctx.saw(streams=len(limits))
