"""API: the shape of answers and the meaning of the fields that every client sends."""

from __future__ import annotations

import math
from typing import Any

from harness.conformance.answer import Answer, Choice, parse_answer
from harness.conformance.case import Failed, Inconclusive, NonStrict, Unsupported, case
from harness.conformance.context import Context
from harness.conformance.prompts import Ask
from harness.conformance.schemas import ARGUMENT_SCHEMAS, OUTPUT_SCHEMAS, shape_faults, validate_json

SPEC = "OpenAI OpenAPI 2026-08-21"


@case(
    "API-01",
    "MUST",
    "a chat answer has the required fields",
    source=f"{SPEC}: CreateChatCompletionResponse",
    needs="chat",
    kills="F40 F42 B13",
    structural=True,
)
async def chat_fields(ctx: Context) -> None:
    answer = await ctx.api.chat("Say hello.", max_tokens=8)
    missing, odd = shape_faults(answer.document, "chat")
    ctx.require(not missing, f"the answer breaks the schema: {'; '.join(missing)}")
    if odd:
        raise NonStrict(f"nullable fields are left out: {', '.join(odd)}")


@case(
    "API-02",
    "MUST",
    "a completion answer has the required fields",
    source=f"{SPEC}: CreateCompletionResponse",
    needs="completions",
    kills="F42 B13",
    structural=True,
)
async def completion_fields(ctx: Context) -> None:
    answer = await ctx.api.complete("Say hello", max_tokens=8)
    missing, odd = shape_faults(answer.document, "completion")
    ctx.require(not missing, f"the answer breaks the schema: {'; '.join(missing)}")
    if odd:
        raise NonStrict(f"nullable fields are left out: {', '.join(odd)}")


@case(
    "API-03",
    "MUST",
    "finish_reason is length at the limit, and stop at the end of sequence or a stop string",
    source=f"{SPEC}: finish_reason",
    needs="completions",
    kills="F42 F34",
    evidence="answers that end by the limit and answers that end before it",
    structural=True,
)
async def finish_reasons(ctx: Context) -> None:
    seen = {"length": 0, "stop": 0}
    for number in range(ctx.size(6, 3)):
        prompt = ctx.prompts.make_prompt(ctx.rng, 12 + number)
        limited = await ctx.api.complete(prompt, **ctx.fields(6 + number))
        check_reason(limited, 6 + number, stopped=False)
        if ctx.features.has("ignore_eos") and limited.completion_tokens == 6 + number:
            ctx.require(
                limited.first.finish == "length",
                f"nothing but the limit could end the answer, but finish_reason is {limited.first.finish!r}",
            )
        seen["length"] += limited.first.finish == "length"
        stop = inner_piece(limited.text)
        if stop is not None and ctx.features.has("stop"):
            stopped = await ctx.api.complete(prompt, **ctx.fields(6 + number, stop=[stop]))
            check_reason(stopped, 6 + number, stopped=True)
            seen["stop"] += 1
    for number in range(ctx.size(6, 3)):
        # Without ignore_eos, at both endpoints: whatever ends here before the limit must say stop.
        free = await ctx.api.complete(ctx.prompts.make_prompt(ctx.rng, 8), max_tokens=24, temperature=1, seed=number)
        check_reason(free, 24, stopped=False)
        seen["stop"] += free.first.finish == "stop"
    if ctx.features.has("chat"):
        chat = await ctx.api.chat("What is the capital of France?", max_tokens=48)
        check_reason(chat, 48, stopped=False)
        seen["stop"] += chat.first.finish == "stop"
    ctx.saw(**seen)
    ctx.need_evidence(seen["length"] and seen["stop"], "not both ends were seen", **seen)


def check_reason(answer: Answer, limit: int, *, stopped: bool) -> None:
    """Raises Failed unless reason and token count agree."""
    finish, count = answer.first.finish, answer.completion_tokens
    if finish not in ("length", "stop"):
        raise Failed(f"finish_reason is {finish!r}, neither length nor stop")
    if stopped and finish != "stop":
        raise Failed(f"a stop string was generated but finish_reason is {finish!r}", text=answer.text)
    if count is not None and finish == "length" and count != limit:
        raise Failed(f"finish_reason is length after {count} of {limit} tokens")
    if count is not None and count > limit:
        raise Failed(f"{count} tokens were returned where at most {limit} were asked for")


def inner_piece(text: str) -> str | None:
    """Two to four characters from the middle of a text that do not stand at its start."""
    for size in (4, 3, 2):
        middle = text[len(text) // 2 : len(text) // 2 + size]
        if len(middle) == size and middle.strip() and "\ufffd" not in middle and text.find(middle) > 0:
            return middle
    return None


@case(
    "API-04",
    "MUST",
    "the token limit is exact for 1, 2, around a block, and 64",
    source=f"{SPEC}: max_tokens",
    needs="completions",
    kills="F44 F34",
    evidence="answers that reached their limit",
    structural=True,
)
async def exact_limit(ctx: Context) -> None:
    block = ctx.block
    reached = 0
    for limit in sorted({1, 2, block - 1, block, block + 1, 64} - {0}):
        answer = await ctx.api.complete(ctx.prompts.make_prompt(ctx.rng, 10), **ctx.fields(limit))
        count, finish = answer.completion_tokens, answer.first.finish
        ids = answer.first.ids
        ctx.require(count is None or count <= limit, f"max_tokens {limit} gave {count} tokens")
        ctx.require(ids is None or len(ids) <= limit, f"max_tokens {limit} gave {len(ids or [])} token ids")
        if ctx.features.has("ignore_eos"):
            ctx.require(
                count is None or count == limit, f"max_tokens {limit} gave {count} tokens past the end of sequence"
            )
            ctx.require(finish == "length", f"an answer of {limit} tokens at its limit says finish_reason {finish!r}")
        reached += count == limit
        scores = answer.first.scores
        ctx.require(
            scores is None or count is None or len(scores) == count,
            f"{len(scores or [])} log-probabilities for {count} tokens",
        )
    ctx.saw(reached=reached)
    ctx.need_evidence(reached >= 3, f"only {reached} answers reached their limit")


@case(
    "API-05",
    "MUST",
    "usage adds up and counts the tokens that were returned",
    source=f"{SPEC}: CompletionUsage; MLPerf inference TEST06",
    needs="completions",
    kills="F41",
    structural=True,
)
async def usage_adds_up(ctx: Context) -> None:
    for number in range(ctx.size(8, 4)):
        tokens = ctx.rng.randint(3, 5 * ctx.block)
        prompt = ctx.prompts.make_prompt(ctx.rng, tokens)
        answer = await ctx.api.complete(prompt, **ctx.fields(5 + number))
        check_usage(answer)
        if isinstance(prompt, list):
            ctx.require(
                answer.prompt_tokens == len(prompt), f"{len(prompt)} prompt tokens count as {answer.prompt_tokens}"
            )
    if ctx.features.has("n"):
        prompt = ctx.prompts.make_prompt(ctx.rng, 20)
        several = await ctx.api.complete(prompt, **ctx.fields(7, n=3, temperature=1))
        returned = [len(ids) for choice in several.choices if (ids := returned_tokens(choice)) is not None]
        if len(returned) == len(several.choices) and several.completion_tokens != sum(returned):
            reason = f"usage counts {several.completion_tokens} tokens where the choices hold {sum(returned)}"
            raise Failed(reason, choices=returned)


def returned_tokens(choice: Choice) -> list[Any] | None:
    """Whatever lists the tokens of a choice one by one."""
    return choice.ids if choice.ids is not None else choice.scores


def check_usage(answer: Answer) -> None:
    """Raises Failed unless the counts agree with each other and with the tokens returned."""
    prompt, completion, total = answer.prompt_tokens, answer.completion_tokens, answer.count("total_tokens")
    if prompt is None or completion is None or total is None:
        raise Failed(f"usage lacks whole numbers: {dict(answer.usage)!r}")
    if prompt + completion != total:
        raise Failed(f"usage does not add up: {prompt} + {completion} is not {total}")
    returned = [tokens for choice in answer.choices if (tokens := returned_tokens(choice)) is not None]
    if len(returned) == len(answer.choices) and sum(map(len, returned)) != completion:
        raise Failed(f"usage counts {completion} tokens, the answer holds {sum(map(len, returned))}")
    cached = answer.cached_tokens
    if cached is not None and not 0 <= cached <= prompt:
        raise Failed(f"cached_tokens is {cached} of {prompt} prompt tokens")


@case(
    "API-06",
    "MUST",
    "n choices are n independent continuations with the indices 0 to n-1",
    source=f"{SPEC}: n (1..128)",
    needs="completions sampling",
    kills="F43 F30 F09",
    oracle="structural; returned log-probabilities against a fresh scoring where there is one",
    evidence="continuations long enough that equal ones cannot be chance",
    structural=True,
)
async def several_choices(ctx: Context) -> None:
    reply = await ctx.api.post("/v1/completions", {"prompt": "Hello", "max_tokens": 2, "n": 2})
    if reply.status is not None and 400 <= reply.status < 500:
        raise Unsupported(f"n = 2 is refused: {reply.words}")
    n = ctx.features.most_choices if 1 < ctx.features.most_choices < 8 else 8
    asks, parts = [], []
    chance, equal = 1.0, 0
    for number in range(ctx.size(8, 4)):
        # A prompt that ends inside a block: its last block must be copied before the continuations write to it.
        ask = Ask(ctx.prompts.uncertain(ctx.rng), 24, fields={"temperature": 1.0})
        if number % 2:
            ask = ctx.plain_ask(ctx.block + 3 + number, 24, temperature=1.0)
        answer = await ctx.api.complete(ask.prompt, **ctx.fields(24, n=n, temperature=1.0))
        indices = [choice.index for choice in answer.choices]
        ctx.require(sorted(map(str, indices)) == [str(i) for i in range(n)], f"n={n} gave the indices {indices}")
        if len({choice.text for choice in answer.choices}) == 1:
            equal += 1
            chance *= await chance_of(ctx, ask, answer.first) ** (n - 1)
        for choice in answer.choices:
            asks.append(ask)
            parts.append(single(answer, choice))
    ctx.saw(prompts_with_all_equal=equal, chance_of_that=chance)
    if chance < 1e-6:
        raise Failed(
            f"all {n} continuations are equal for {equal} prompts; the chance of that is {chance:.1g}",
            text=parts[-1].text,
        )
    if ctx.judge.scorer is not None and ctx.features.has("logprobs", "token_ids"):
        await ctx.judged(asks, parts, what=f"the continuations of n={n}", least=0)
    if equal == ctx.size(8, 4):
        raise Inconclusive("every prompt has one near certain continuation, so equal choices prove nothing")


async def chance_of(ctx: Context, ask: Ask, choice: Choice) -> float:
    """Probability of a sampled continuation: by its own log-probabilities, else by how often it is sampled alone."""
    if choice.scores:
        return min(math.exp(sum(score.logprob or 0.0 for score in choice.scores)), 1.0)
    alone = [(await ctx.api.complete(ask.prompt, **ctx.fields(24, temperature=1.0))).text for _ in range(8)]
    return (alone.count(choice.text) + 1) / (len(alone) + 1)  # of nine that were seen


def single(answer: Answer, choice: Choice) -> Answer:
    """One choice as an answer of its own."""
    return Answer(answer.exchange, [choice], {}, answer.document)


@case(
    "API-07",
    "MUST",
    "a string, a list of one, its token ids and a list of them are the same prompt",
    source=f"{SPEC}: prompt oneOf",
    needs="completions id_prompts tokenize",
    kills="F41 F49 E4",
    oracle="equality of forms; margin where the text differs",
    structural=True,
)
async def prompt_forms(ctx: Context) -> None:
    text = ctx.prompts.text(ctx.rng, 12)
    ids = await ctx.judge.tokenize(text)
    ctx.need_evidence(ids, "the text could not be tokenized")
    answers = {}
    for name, prompt in (("string", text), ("list", [text]), ("ids", ids), ("list of ids", [ids])):
        answers[name] = await ctx.api.complete(prompt, **ctx.fields(12))
    counts = {name: answer.prompt_tokens for name, answer in answers.items()}
    ctx.require(len(set(counts.values())) == 1, f"the same prompt counts differently: {counts}", counts=counts)
    base = answers["string"]
    asks = [ctx.plain_ask(1, 12, form=name) for name in answers]
    for ask in asks:
        ask.prompt = ids or []
    await ctx.judged(asks, list(answers.values()), baselines=[base] * len(answers), what="forms of one prompt", least=0)


@case(
    "API-08",
    "MUST",
    "a list of prompts is answered in its order",
    source=f"{SPEC}: choices.index",
    needs="batch",
    kills="F56 F24",
    oracle="known, else scored by the reference or the engine, else each prompt's own answer alone",
    structural=True,
)
async def batched_prompts(ctx: Context) -> None:
    asks = ctx.asks(16, (6, 3 * ctx.block), 10)
    baselines = await ctx.baselines(asks)
    await check_batch(ctx, [ask.prompt for ask in asks], asks, baselines, "a list of 16 prompts")


@case(
    "API-16",
    "MUST",
    "a list of prompts keeps its order with several choices each",
    source=f"{SPEC}: choices.index; second killer of F56",
    needs="batch n",
    kills="F56 F43",
    oracle="known, else scored, else each prompt's own answer alone",
    structural=True,
)
async def batched_choices(ctx: Context) -> None:
    asks = [ask for ask in ctx.asks(5, (4, 2 * ctx.block), 8) for _ in range(2)]
    baselines = await ctx.baselines(asks)
    await check_batch(ctx, [ask.prompt for ask in asks[::2]], asks, baselines, "5 prompts with n=2", **ctx.several(2))


async def check_batch(
    ctx: Context, prompts: list[Any], asks: list[Any], baselines: Any, what: str, **extra: Any
) -> None:
    """One call with all prompts; choice i must answer ask i."""
    fields = ctx.fields(asks[0].max_tokens, **asks[0].fields, **extra)
    answer = await ctx.api.complete(prompts, **fields)
    indices = [choice.index for choice in answer.choices]
    ctx.require(
        sorted(map(str, indices), key=int) == [str(i) for i in range(len(asks))]
        if all(isinstance(i, int) for i in indices)
        else False,
        f"{what} gave the indices {indices}",
    )
    ordered = sorted(answer.choices, key=lambda choice: int(choice.index))
    await ctx.judged(asks, [single(answer, choice) for choice in ordered], baselines=baselines, what=what)


@case(
    "API-09",
    "SHOULD",
    "echo returns the prompt, and the offsets line up",
    source=f"{SPEC}: echo",
    needs="echo",
    kills="F41 F38",
    structural=True,
)
async def echo(ctx: Context) -> None:
    texts = [ctx.prompts.text(ctx.rng, words) for words in (30, 9, 16)]
    if ctx.sentinel is None:  # its tokens do not spell other text, and engines may echo what the tokens spell
        texts += ["The quick brown fox", "naïve café, 東京 and 🙂 end", "  two  spaces\n\nand lines"]
    fields = ctx.fields(6, echo=True, **({"logprobs": 1} if ctx.features.has("logprobs") else {}))
    tells_ids = fields.pop("return_token_ids", None)
    for text in texts:
        answer = await ctx.api.complete(text, **fields)
        ctx.require(answer.text.startswith(text), f"echo of {text!r} begins with {answer.text[: len(text)]!r}")
        logprobs = answer.first.raw.get("logprobs")
        offsets = logprobs.get("text_offset") if isinstance(logprobs, dict) else None
        if isinstance(offsets, list) and offsets:
            tokens = [str(score.token) for score in answer.first.scores or []]
            ctx.require(offsets == sorted(offsets), "text_offset goes backwards", offsets=offsets[:40])
            whole = [
                (o, t) for o, t in zip(offsets, tokens, strict=False) if t and "\ufffd" not in t and "bytes:" not in t
            ]
            wrong = [(o, t) for o, t in whole if not answer.text.startswith(t.lstrip("<"), o) and t in answer.text]
            ctx.require(len(wrong) <= len(whole) // 4, "tokens are not at their text_offset", wrong=wrong[:5])
        count = answer.completion_tokens
        ctx.require(count is None or count <= 6, f"echoed tokens are counted as generated: {count} of at most 6")
    if tells_ids:
        answer = await ctx.api.complete(texts[0], **fields, return_token_ids=True)
        if not answer.text.startswith(texts[0]):
            raise NonStrict("with return_token_ids, a field beyond the API, echo leaves out the prompt")


@case(
    "API-10",
    "MUST",
    "up to 4 stop strings end the text, which does not contain them",
    source=f"{SPEC}: StopConfiguration",
    needs="completions",
    kills="F37",
    evidence="stop strings that were really generated",
    structural=True,
)
async def stop_strings(ctx: Context) -> None:
    hits = 0
    for number in range(ctx.size(24, 16)):
        prompt = ctx.prompts.make_prompt(ctx.rng, 10)
        fields = ctx.fields(24)
        fields.pop("logprobs", None)
        plain = await ctx.api.complete(prompt, **fields)
        # A single string in every other call: of several, one inside a token would hide that another is not seen.
        stops = pick_stops(ctx, plain.text, 1 if number % 2 else ctx.rng.randint(2, 4))
        if not stops:
            continue
        again = await ctx.api.complete(prompt, **{**fields, "stop": stops})
        inside = [stop for stop in stops if stop in again.text]
        ctx.require(not inside, f"the text holds the stop string {inside[:1]}: {again.text!r}", stops=stops)
        # Where two of them overlap either may count as the first.
        cuts = [plain.text[: plain.text.index(stop)] for stop in stops]
        if plain.text.startswith(again.text):
            ctx.require(
                again.text in cuts and min(map(len, cuts)) <= len(again.text),
                f"stopped after {again.text[-20:]!r}, should have stopped after {min(cuts, key=len)[-20:]!r}",
                stops=stops,
                whole=plain.text,
            )
            hits += 1
    ctx.saw(stops_hit=hits)
    ctx.need_evidence(hits >= 3, f"only {hits} stop strings were reached")


def pick_stops(ctx: Context, text: str, count: int) -> list[str]:
    """Up to ``count`` pieces of ``text`` at random places, most of them across token borders."""
    stops = []
    for _ in range(count):
        if len(text) < 6:
            break
        start = ctx.rng.randrange(1, len(text) - 3)
        piece = text[start : start + (ctx.rng.randint(3, 6) if count == 1 else ctx.rng.randint(1, 5))]
        if piece.strip() and "\ufffd" not in piece:
            stops.append(piece)
    return stops


@case(
    "API-11",
    "MUST",
    "the served model is listed, and an unknown one is refused",
    source=f"{SPEC}: models; error 404",
    needs="generate",
    kills="F46 F64",
    structural=True,
)
async def models(ctx: Context) -> None:
    reply = await ctx.api.request("GET", "/v1/models")
    document = reply.json()
    entries = document.get("data") if isinstance(document, dict) else None
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else None
    ctx.require(reply.status == 200 and names, f"GET /v1/models gives no list of models: {reply.words}")
    ctx.require(ctx.api.model in (names or []), f"the model {ctx.api.model!r} that answers is not listed: {names}")
    if ctx.features.has("completions"):
        path, body = "/v1/completions", {"prompt": "x", "max_tokens": 1}
    else:
        path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    wrong = await ctx.api.post(path, {**body, "model": "no-such-model-here"})
    ctx.require(wrong.status != 200, "a model that does not exist is served anyway")
    ctx.require(wrong.status in (400, 404), f"an unknown model gives {wrong.words}, not 404 or 400")


@case(
    "API-12",
    "INFO",
    "parameters left out equal their documented defaults",
    source="vLLM documentation: generation_config overrides; OpenAPI defaults",
    needs="logprobs",
    kills="F27",
    structural=True,
)
async def defaults(ctx: Context) -> None:
    prompt = ctx.prompts.make_prompt(ctx.rng, 16)
    body = {"prompt": prompt, "max_tokens": 4, "logprobs": 2, "seed": 7}
    omitted = await ctx.api.post("/v1/completions", body)
    explicit = {"temperature": 1, "top_p": 1, "n": 1, "presence_penalty": 0, "frequency_penalty": 0}
    stated = await ctx.api.complete(prompt, max_tokens=4, logprobs=2, seed=7, **explicit)
    plain = parse_answer(omitted, is_chat=False)
    same = plain.text == stated.text
    ctx.saw(same_output=same, omitted=plain.text, explicit=stated.text)
    ctx.require(
        same or not ctx.features.has("seed"), "leaving out the sampling parameters does not equal their defaults"
    )


@case(
    "API-13",
    "SHOULD",
    "a forced tool call has valid arguments, streamed or not",
    source="Kimi Vendor Verifier; OpenAPI tool_choice",
    needs="tools",
    kills="F50 F39",
    oracle="JSON schema",
)
async def tool_calls(ctx: Context) -> None:
    await check_tools(ctx, list(ARGUMENT_SCHEMAS.items())[: ctx.size(20, 8)], "Use the tool for item {}.")


@case(
    "API-17",
    "SHOULD",
    "forced tool calls issued side by side are all there",
    source="vLLM blog 2025-10-28 (lost tool calls); second killer of F50",
    needs="tools",
    kills="F50",
    oracle="JSON schema",
)
async def tool_calls_together(ctx: Context) -> None:
    import asyncio

    name, schema = next(iter(ARGUMENT_SCHEMAS.items()))
    calls = [
        one_tool(ctx, name, schema, f"Call the tool, order {number}.", stream=bool(number % 2)) for number in range(8)
    ]
    await asyncio.gather(*calls)


async def check_tools(ctx: Context, schemas: list[tuple[str, Any]], text: str) -> None:
    for number, (name, schema) in enumerate(schemas):
        for stream in (False, True):
            await one_tool(ctx, name, schema, text.format(number), stream=stream)


async def one_tool(ctx: Context, name: str, schema: Any, text: str, *, stream: bool) -> None:
    tool = {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": schema}}
    choice = {"type": "function", "function": {"name": name}}
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        "tools": [tool],
        "tool_choice": choice,
        "max_tokens": 256,
        "temperature": 0,
    }
    if stream:
        streamed = await ctx.api.stream("/v1/chat/completions", body)
        fault = streamed.fault()
        ctx.require(fault is None, f"a streamed tool call failed: {fault}")
        pieces = [
            call
            for _, delta in streamed.deltas()
            if isinstance(delta.get("delta"), dict)
            for call in delta["delta"].get("tool_calls") or []
            if isinstance(call, dict)
        ]
        ctx.require(pieces, f"the streamed call of {name} is missing")
        arguments: Any = "".join((piece.get("function") or {}).get("arguments") or "" for piece in pieces)
        called = next((n for piece in pieces if (n := (piece.get("function") or {}).get("name"))), None)
        finish = next((d.get("finish_reason") for _, d in streamed.deltas() if d.get("finish_reason")), None)
    else:
        answer = await ctx.api.chat(**body)
        calls = (answer.first.raw.get("message") or {}).get("tool_calls")
        function = (
            calls[0].get("function") if isinstance(calls, list) and calls and isinstance(calls[0], dict) else None
        )
        ctx.require(isinstance(function, dict), f"the call of {name} is missing: {str(answer.first.raw)[:160]}")
        called, arguments = (function or {}).get("name"), (function or {}).get("arguments")
        finish = answer.first.finish
    if finish == "length":
        raise Inconclusive(f"the arguments of {name} did not end within 256 tokens")
    ctx.require(called == name, f"the tool {called!r} was called where {name!r} was forced")
    fault = validate_json(arguments, schema)
    ctx.require(fault is None, f"arguments of {name} are not valid: {fault}", arguments=arguments)
    ctx.require(finish in ("tool_calls", "stop"), f"finish_reason of a forced tool call is {finish!r}")


@case(
    "API-14",
    "SHOULD",
    "output held to a JSON schema is valid",
    source=f"{SPEC}: response_format json_schema",
    needs="json_schema",
    kills="F51",
    oracle="JSON schema",
    evidence="answers that ended before the limit",
)
async def json_output(ctx: Context) -> None:
    await check_output(ctx, OUTPUT_SCHEMAS[: ctx.size(50, 10)], stream=False)


@case(
    "API-18",
    "SHOULD",
    "streamed output held to a long JSON schema is valid to its end",
    source=f"{SPEC}: response_format; second killer of F51",
    needs="json_schema stream",
    kills="F51 F39",
    oracle="JSON schema",
    evidence="answers that ended before the limit",
)
async def json_streamed(ctx: Context) -> None:
    await check_output(ctx, OUTPUT_SCHEMAS[-ctx.size(8, 4) :], stream=True)


ENDLESS = 8  # answers none of which ends


async def check_output(ctx: Context, schemas: list[Any], *, stream: bool) -> None:
    asked = ended = 0
    for schema in schemas:
        if not ended and asked == ENDLESS:
            break  # a model that goes on writing within the form would do so in all of them
        asked += 1
        form = {"type": "json_schema", "json_schema": {"name": f"form{asked}", "schema": schema, "strict": True}}
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"Fill in form {asked} with any values."}],
            "response_format": form,
            "max_tokens": min(384, ctx.context // 2),
            "temperature": 0,
        }
        if stream:
            answer = (await ctx.api.stream("/v1/chat/completions", body)).answer()
        else:
            answer = await ctx.api.chat(**body)
        if answer.first.finish == "length":
            # Unfinished JSON is not invalid; text that cannot begin any JSON is.
            ctx.require(answer.text.lstrip()[:1] in ("{", ""), f"output for a schema begins {answer.text[:40]!r}")
            continue
        fault = validate_json(answer.text, schema)
        ctx.require(fault is None, f"output does not match its schema: {fault}", text=answer.text, schema=schema)
        ended += 1
    ctx.saw(ended=ended, asked=asked)
    ctx.need_evidence(ended * 2 >= asked, f"only {ended} of {asked} answers ended before the limit")


@case(
    "API-15",
    "SHOULD",
    "logit_bias -100 bans a token and +100 forces it, and no neighbour",
    source=f"{SPEC}: logit_bias",
    needs="completions token_ids logit_bias",
    kills="F32",
    structural=True,
)
async def logit_bias(ctx: Context) -> None:
    for number in range(ctx.size(8, 4)):
        prompt = ctx.prompts.make_prompt(ctx.rng, 12 + number)
        best = (await ctx.api.complete(prompt, **ctx.fields(1))).first.token_ids() or []
        ctx.need_evidence(best, "no token ids were returned")
        # Neighbours of the best token: a table that is read one off gives another of them.
        base = max(best[0] & ~3, 8)
        for token in range(base, base + 4):
            answer = await ctx.api.complete(prompt, **ctx.fields(1, logit_bias={str(token): 100}))
            ids = answer.first.token_ids() or []
            ctx.require(ids == [token], f"a bias of +100 on token {token} gave the tokens {ids}")
        banned = await ctx.api.complete(prompt, **ctx.fields(1, logit_bias={str(best[0]): -100}))
        ids = banned.first.token_ids() or []
        ctx.require(best[0] not in ids, f"token {best[0]} came although its bias is -100")
    # Side by side, biased and plain in turn: each gets its own bias, and the plain ones none.
    prompts = [ctx.prompts.make_prompt(ctx.rng, 12) for _ in range(12)]
    alone = [(await ctx.api.complete(prompt, **ctx.fields(1))).first.token_ids() or [] for prompt in prompts]
    tokens = [max(ids[0] ^ 1, 8) if ids else 8 for ids in alone]
    pairs = [
        (Ask(prompt, 1, fields={"logit_bias": {str(token): 100}}), Ask(prompt, 1))
        for prompt, token in zip(prompts, tokens, strict=True)
    ]
    answers = [answer.first.token_ids() or [] for answer in await ctx.together([ask for pair in pairs for ask in pair])]
    wrong = [(token, ids) for token, ids in zip(tokens, answers[::2], strict=True) if ids != [token]]
    ctx.require(not wrong, f"beside others, a bias of +100 on a token gave another: {wrong[:1]}")
    taken = [ids for ids, own in zip(answers[1::2], alone, strict=True) if ids != own and set(ids) & set(tokens)]
    ctx.require(not taken, f"a neighbour's bias forced the tokens {taken[:1]} on a request without one")


@case(
    "API-19",
    "SHOULD",
    "logit_bias changes the biased token's log-probability and leaves the order of the others",
    source=f"{SPEC}: logit_bias; second killer of F32",
    needs="logprobs logit_bias token_ids",
    kills="F32",
    structural=True,
)
async def logit_bias_order(ctx: Context) -> None:
    for _ in range(ctx.size(6, 3)):
        prompt = ctx.prompts.make_prompt(ctx.rng, 14)
        plain = await ctx.api.complete(prompt, **ctx.fields(1))
        ids = plain.first.token_ids() or []
        top = (plain.first.scores or [])[0].top if plain.first.scores else []
        ctx.need_evidence(ids and len(top) >= 3, "too few alternatives were returned")
        banned = await ctx.api.complete(prompt, **ctx.fields(1, logit_bias={str(ids[0]): -100}))
        scores = banned.first.scores or []
        ctx.require(scores, "no log-probabilities came with a logit_bias")
        if top[0][1] - top[1][1] < 0.01 or top[1][1] - top[2][1] < max(ctx.limits.regret, 0.01):
            continue
        ctx.require(
            scores[0].token == top[1][0],
            f"with the best token banned {scores[0].token!r} came, the second best is {top[1][0]!r}",
        )
