"""API: the shape of answers and the meaning of the fields that every client sends."""

from __future__ import annotations

from typing import Any

from harness.conformance.answer import Answer, Choice, parse_answer
from harness.conformance.case import Failed, NonStrict, case
from harness.conformance.context import Context
from harness.conformance.prompts import Ask
from harness.conformance.schemas import shape_faults

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
