"""INT: what was measured is what it seems: no answer cache, no early end, no other model, under load as idle."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter

from harness.conformance.case import Failed, Inconclusive, case
from harness.conformance.context import Context
from harness.conformance.draws import open_prompts
from harness.conformance.prompts import Ask
from harness.conformance.stats import k3

ORACLE = "known, else reference scoring, else self scoring, else the answer alone"


@case(
    "INT-01",
    "MUST",
    "no cache of whole answers: a repeated prompt is not answered faster than its tokens can be made",
    source="MLPerf inference TEST04",
    needs="completions",
    kills="F62 F30",
    oracle="paired times; sampled outputs differ",
    evidence="answers that take measurable time",
)
async def no_answer_cache(ctx: Context) -> None:
    output = min(64, ctx.context // 4)
    fields = ctx.fields(output)
    prompt = ctx.prompts.make_prompt(ctx.rng, 12)
    await ctx.api.complete(prompt, **fields)
    for attempt in range(3):
        distinct: list[float] = []
        repeated: list[float] = []
        for _ in range(ctx.size(6, 3)):
            # In turn, so that a busy machine slows both; the fastest of each is what the engine can do.
            distinct.append((await ctx.api.complete(ctx.prompts.make_prompt(ctx.rng, 12), **fields)).exchange.seconds)
            repeated.append((await ctx.api.complete(prompt, **fields)).exchange.seconds)
        first, second = min(distinct), min(repeated)
        ctx.saw(distinct_s=round(first, 4), repeated_s=round(second, 4), attempts=attempt + 1)
        ctx.need_evidence(first > 0.02, f"an answer takes only {first:.3f} s")
        # A short prompt leaves nothing for a prefix cache to save but a step.
        if second > 0.4 * first:
            return
    raise Failed(
        f"a repeated prompt takes {second:.3f} s, distinct ones {first:.3f} s, three times: answers are cached"
    )


@case(
    "INT-07",
    "MUST",
    "a repeated prompt is sampled anew",
    source="MLPerf inference TEST04; second killer of F62",
    needs="logprobs sampling",
    kills="F62 F30",
    oracle="probability that all draws agree",
    evidence="prompts whose next token is open",
)
async def sampled_anew(ctx: Context) -> None:
    chance = 1.0
    for one in await open_prompts(ctx, 5, high=0.7):
        asks = [Ask(one.prompt, 4, fields={"temperature": 1.0}) for _ in range(12)]
        texts = Counter(answer.text for answer in await ctx.together(asks, at_once=4))
        if len(texts) > 1:
            ctx.saw(different=len(texts))
            return
        chance *= sum(p**12 for p in one.probabilities.values())
    raise Failed(f"12 draws of each of 5 open prompts are all equal; chance of that is {chance:.1g}")


@case(
    "INT-02",
    "MUST",
    "a hundred answers out of a loaded run are right",
    source="MLPerf inference TEST01, TEST07",
    needs="completions",
    kills="F63 F36 F28 F64 F47",
    oracle=ORACLE,
    evidence="many requests in flight",
)
async def loaded_answers(ctx: Context) -> None:
    count = ctx.afford(120, 32, 60, 16)
    asks = []
    for number in range(count):
        ask = ctx.ask(ctx.rng.randint(6, min(20 * ctx.block, ctx.context // 3)), 12 + number % 40)
        ask.label = f"request {number}"
        asks.append(ask)
    baselines = await ctx.baselines(asks)
    answers = await ctx.together(asks, at_once=min(2 * ctx.places, 48), stream=ctx.features.has("stream"))
    if ctx.features.has("ignore_eos"):
        for ask, answer in zip(asks, answers, strict=True):
            tokens = answer.completion_tokens or len(answer.first.ids or []) or len(answer.first.scores or [])
            ctx.require(
                not tokens or tokens == ask.max_tokens,
                f"{ask.label} gave {tokens} of {ask.max_tokens} tokens under load",
            )
    await ctx.judged(asks, answers, baselines=baselines, what="answers of a loaded run")


@case(
    "INT-03",
    "MUST",
    "no end-of-sequence inside an answer, at most one at its end; counts agree",
    source="MLPerf inference TEST06, and inside",
    needs="completions",
    kills="F34 F41 F63",
    structural=True,
)
async def ends(ctx: Context) -> None:
    markers = ("<|im_end|>", "</s>", "<|endoftext|>", "<|eot_id|>", "<|eos|>", "<|end|>")
    stopped = 0
    for number in range(ctx.size(16, 8)):
        if ctx.features.has("chat") and number % 2:
            answer = await ctx.api.chat(f"What is {number} and one?", max_tokens=40)
        else:
            fields = {**ctx.fields(24), "ignore_eos": False} if ctx.features.has("ignore_eos") else ctx.fields(24)
            answer = await ctx.api.complete(ctx.prompts.make_prompt(ctx.rng, 10), **fields)
        stopped += answer.first.finish == "stop"
        inside = [marker for marker in markers if marker in answer.text]
        ctx.require(not inside, f"the text holds the end marker {inside[:1]}: {answer.text[:100]!r}")
        ids = answer.first.ids
        if ids is not None and answer.completion_tokens is not None:
            ctx.require(
                len(ids) == answer.completion_tokens, f"{len(ids)} token ids, usage counts {answer.completion_tokens}"
            )
    ctx.saw(stopped=stopped)


@case(
    "INT-04",
    "MUST",
    "answers under load are as long as idle",
    source="MLPerf inference TEST09",
    needs="completions",
    kills="F63 F34",
    oracle="mean length within 10 %",
    evidence="the same prompts idle and loaded",
)
async def lengths(ctx: Context) -> None:
    count = ctx.afford(48, 48, 40, 12)
    fields = {"max_tokens": 48, "temperature": 0}
    prompts = [ctx.prompts.make_prompt(ctx.rng, ctx.rng.randint(6, 60)) for _ in range(count)]

    async def length(prompt: object) -> int:
        return (await ctx.api.complete(prompt, **fields)).completion_tokens or 0

    idle = [await length(prompt) for prompt in prompts[: max(count // 3, 4)]]
    loaded = await asyncio.gather(*(length(prompt) for prompt in prompts))
    first, second = statistics.mean(idle), statistics.mean(loaded[: len(idle)])
    ctx.saw(idle=round(first, 2), loaded=round(second, 2), requests=count)
    ctx.need_evidence(first, "usage counts no tokens")
    ctx.require(abs(second - first) <= 0.1 * first, f"answers have {second:.1f} tokens under load and {first:.1f} idle")
    if ctx.features.has("ignore_eos"):
        forced = await ctx.together([ctx.plain_ask(10, 40) for _ in range(count)])
        short = [a.completion_tokens for a in forced if a.completion_tokens not in (None, 40)]
        ctx.require(not short, f"{len(short)} of {count} answers under load have {short[:1]} of 40 tokens")


def fingerprint_prompts(ctx: Context) -> list[object]:
    """A few short prompts whose next-token distributions tell models apart."""
    return ["x", *(ctx.prompts.uncertain(ctx.rng) for _ in range(3))]


@case(
    "INT-05",
    "SHOULD",
    "the next-token distribution of short prompts is the reference's",
    source="arXiv 2512.03816 (logprob tracking)",
    needs="logprobs reference",
    kills="F64 F15",
    oracle="reference: differences of log-probabilities",
)
async def identity(ctx: Context) -> None:
    assert ctx.reference is not None
    mine: list[float] = []
    theirs: list[float] = []
    for prompt in fingerprint_prompts(ctx):
        tops = []
        for api in (ctx.api, ctx.reference):
            answer = await api.complete(prompt, max_tokens=1, logprobs=5)
            tops.append(dict((answer.first.scores or [])[0].top) if answer.first.scores else {})
        shared = [token for token in tops[0] if token in tops[1] and tops[1][token] > -12]
        likely = [token for token, value in tops[1].items() if value > -2]
        ctx.require(
            all(token in tops[0] for token in likely) or not tops[0],
            f"after {str(prompt)[:40]!r} the reference's likely tokens are not among the engine's best",
            engine=tops[0],
            reference=tops[1],
        )
        mine += [tops[0][token] for token in shared]
        theirs += [tops[1][token] for token in shared]
    ctx.need_evidence(len(mine) >= 4, f"only {len(mine)} tokens could be compared")
    worst = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
    ctx.stand_on("reference")
    ctx.saw(tokens=len(mine), largest_difference=round(worst, 5), k3=round(k3(theirs, mine), 7))
    ctx.require(
        worst <= 2 * ctx.limits.jump,
        f"log-probabilities of short prompts differ by {worst:.3g} nats from the reference's",
    )


@case(
    "INT-06",
    "SHOULD",
    "600 fingerprints are of one model",
    source="Anthropic post-mortem 2025-09 (misrouting of 0.8 %)",
    needs="logprobs",
    kills="F64",
    oracle="one cluster of log-probabilities",
    evidence="enough requests to see 0.8 % with 99 %",
)
async def one_cluster(ctx: Context) -> None:
    count = ctx.afford(600, 1, 90, 100)
    prompt = (await open_prompts(ctx, 1))[0].prompt
    gate = asyncio.Semaphore(16)

    async def one() -> tuple[tuple[str, float], ...]:
        async with gate:
            answer = await ctx.api.complete(prompt, max_tokens=1, logprobs=5)
        return tuple((answer.first.scores or [])[0].top) if answer.first.scores else ()

    prints = await asyncio.gather(*(one() for _ in range(count)))
    full = [dict(found) for found in prints if found]
    ctx.need_evidence(len(full) == count, "log-probabilities are missing from some answers")
    centre = {token: statistics.median(f.get(token, -30.0) for f in full) for token in full[0]}
    far = []
    for found in full:
        shared = [token for token in centre if token in found and centre[token] > -8]
        if not shared or max(abs(found[token] - centre[token]) for token in shared) > ctx.limits.jump:
            far.append(found)
    ctx.saw(fingerprints=count, outside=len(far), power_at_0_8_percent=round(1 - 0.992**count, 4))
    if far:
        raise Failed(
            f"{len(far)} of {count} fingerprints are not of the model that gave the others", one=far[0], centre=centre
        )
    if count < 574:
        raise Inconclusive(f"{count} fingerprints show 0.8 % of foreign traffic with only {1 - 0.992**count:.0%}")
