"""API, continued: several choices and several prompts in one call."""

from __future__ import annotations

import math
from typing import Any

from harness.conformance.answer import Answer, Choice
from harness.conformance.case import Failed, Inconclusive, Unsupported, case
from harness.conformance.context import Context
from harness.conformance.prompts import Ask

SPEC = "OpenAI OpenAPI 2026-08-21"


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
