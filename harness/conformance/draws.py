"""Sampling many first tokens from prompts whose next token is open, beside the distribution that they should follow."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.conformance.answer import Answer
from harness.conformance.case import Failed, Inconclusive
from harness.conformance.context import Context
from harness.conformance.limits import FP32
from harness.conformance.prompts import Prompt
from harness.conformance.stats import ALPHA, g_test

TRIES = 120
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class OpenPrompt:
    """A prompt and the probabilities of its next token at temperature 1, best first; a rest may be missing."""

    prompt: Prompt
    probabilities: dict[str, float]

    @property
    def ranked(self) -> list[str]:
        return list(self.probabilities)

    def gap(self, rank: int) -> float:
        """Nats between the tokens of ranks ``rank`` and ``rank`` + 1 (from 1)."""
        values = list(self.probabilities.values())
        return math.log(values[rank - 1] / values[rank]) if len(values) > rank and values[rank] > 0 else math.inf

    def nucleus(self, share: float) -> list[str]:
        """The fewest best tokens with at least ``share`` together."""
        total, found = 0.0, []
        for token, probability in self.probabilities.items():
            found.append(token)
            total += probability
            if total >= share:
                break
        return found


async def distribution(ctx: Context, prompt: Prompt) -> dict[str, float]:
    """Next-token probabilities at temperature 1.

    By the reference where there is one and the engine computes in its precision.  An engine in bf16 or with quantised
    K/V samples, soundly, from a distribution that lies a few percent beside that, and a thousand draws would show it: it
    is held to its own log-probabilities, which LGP-04 holds to the reference's within what its precision allows.
    """
    is_exact = ctx.limits.kl <= FP32.kl
    api = ctx.reference if ctx.reference is not None and is_exact else ctx.api
    answer: Answer | None = None
    for count in (20, 5):
        try:
            answer = await api.complete(prompt, max_tokens=1, logprobs=count)
            break
        except Failed:
            if count == 5:
                raise
    scores = answer.first.scores if answer else None
    if not scores or not scores[0].top:
        raise Inconclusive("no distribution of the next token is to be had")
    ctx.stand_on("reference distribution" if api is ctx.reference else "the engine's own log-probabilities")
    return {token: math.exp(value) for token, value in scores[0].top}


async def open_prompts(
    ctx: Context, count: int, *, low: float = 0.15, high: float = 0.85, gap: float = 0.0, known: float = 0.0
) -> list[OpenPrompt]:
    """Prompts whose best token has a probability in ``low`` .. ``high`` and lies ``gap`` nats above the second.

    ``known``: what the probabilities that were told add up to at least; engines tell only those of the best few tokens.

    Raises Inconclusive when the model is too sure of itself for that.
    """
    found: list[OpenPrompt] = []
    for _ in range(TRIES):
        prompt = ctx.prompts.uncertain(ctx.rng)
        probabilities = await distribution(ctx, prompt)
        one = OpenPrompt(prompt, probabilities)
        best = next(iter(probabilities.values()))
        plain = all(token.isprintable() or token.isspace() for token in one.ranked[:4])
        told = sum(probabilities.values())
        if low <= best <= high and len(probabilities) > 2 and one.gap(1) >= gap and plain and told >= known:
            found.append(one)
        if len(found) == count:
            return found
    raise Inconclusive(f"only {len(found)} of {TRIES} prompts leave their next token open; {count} are needed")


def neutral(ctx: Context, **fields: Any) -> dict[str, Any]:
    """``fields``, and of all others that they cut nothing.  Servers have defaults of their own, which SMP-13 asks for."""
    return {"top_p": 1, **({"top_k": -1, "min_p": 0} if ctx.features.has("top_k") else {}), **fields}


async def draw(ctx: Context, prompt: Prompt, count: int, **fields: Any) -> Counter[str]:
    """``count`` sampled first tokens, each from a seed of its own."""
    per_call = ctx.features.most_choices
    gate = asyncio.Semaphore(AT_ONCE if per_call > 1 else 32)
    tokens: Counter[str] = Counter()

    async def one(number: int) -> None:
        seed = {"seed": ctx.rng.randrange(2**31)} if ctx.features.has("seed") else {}
        several = {"n": number} if number > 1 else {}
        async with gate:
            body: dict[str, Any] = {"temperature": 1.0, "max_tokens": 1, "logprobs": 1, **seed, **several, **fields}
            answer = await ctx.api.complete(prompt, **body)
        for choice in answer.choices:
            if choice.scores:
                tokens[choice.scores[0].token] += 1

    sizes = [per_call] * (count // per_call) + ([count % per_call] if count % per_call else [])
    outcomes = await asyncio.gather(*(one(size) for size in sizes), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    if not tokens:
        raise Inconclusive("sampled tokens come without log-probabilities, so they cannot be told apart")
    return tokens


async def drawn_as(
    ctx: Context,
    prompt: Prompt,
    expected: Mapping[str, float],
    count: int,
    what: str,
    *,
    told: bool = False,
    **fields: Any,
) -> tuple[Counter[str], float]:
    """``count`` draws and the p-value of their G-test against ``expected``.  A second, fresh sample confirms a rejection.

    ``told``: only draws of the tokens in ``expected`` count, whose shares then add up to 1.  Raises Failed, which names
    the draws as ``what``.
    """
    for attempt in range(2):
        counts = await draw(ctx, prompt, count, **fields)
        if told:
            counts = Counter({token: counts[token] for token in expected})
        statistic, p, freedom = g_test(counts, expected)
        if p >= ALPHA:
            break
        if attempt:
            total = counts.total()
            missing = [token for token, share in expected.items() if not counts[token] and share * total > 10]
            raise Failed(
                f"{total} {what}, twice: G {statistic:.1f} on {freedom}, p {p:.1g}"
                f"{f'; {len(missing)} likely tokens never came' if missing else ''}",
                expected={token: round(share, 4) for token, share in list(expected.items())[:6]},
                drawn={token: round(number / total, 4) for token, number in counts.most_common(6)},
            )
    return counts, p
