"""A load that the KV pool cannot hold: sequences that all fit when they start and no longer do while they grow."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.conformance.answer import Answer, Streamed
from harness.conformance.case import Inconclusive
from harness.conformance.context import Context
from harness.conformance.prompts import Ask

START = 0.85  # of the pool that the prompts take together
DEMAND = 1.7  # times the pool that prompts and answers take together
BUDGET_S = 110.0  # a squeeze that would take longer is not begun
STALL = 8.0  # times the median gap, from which a pause counts as a stall
STALL_S = 0.05


@dataclass(slots=True)
class Outcome:
    """What a squeeze did.  ``preemptions`` is None where the engine does not count them."""

    demand: float
    answers: list[Answer]
    streams: list[Streamed]
    counted: float | None
    stalls: int

    @property
    def preemptions(self) -> float:
        return self.counted or 0.0

    @property
    def was_tight(self) -> bool:
        """Whether the pool was really fought for: by the engine's counter, else by the streams' stalls."""
        return self.counted > 0 if self.counted is not None else self.stalls > 0

    def evidence(self) -> dict[str, Any]:
        return {"demand": round(self.demand, 2), "preemptions": self.counted, "stalled_streams": self.stalls}


@dataclass(slots=True)
class Squeeze:
    """``count`` sequences of ``prompt`` + ``output`` tokens."""

    count: int
    prompt: int
    output: int
    pool: int

    @classmethod
    def plan(cls, ctx: Context, *, demand: float = DEMAND) -> Squeeze:
        """Sizes for this engine.  Raises Inconclusive when its pool is unknown or too large to be filled in time."""
        pool = ctx.features.pool_tokens
        if not pool:
            raise Inconclusive("the size of the KV pool is not known, so it cannot be filled on purpose")
        count = min(ctx.places, max(pool // (4 * ctx.block), 1))
        longest = (ctx.features.max_model_len or pool) - 2
        if count * longest < pool * demand:
            raise Inconclusive(
                f"{count} sequences of at most {longest} tokens cannot need {demand} times the pool of {pool} tokens"
            )
        # As many as may run, but no more than time allows; each must be able to fit alone.
        share = int(pool * demand / count)
        prompt = min(max(int(pool * START / count), 4), share - 8)
        output = share - prompt
        # A batch of n decodes some four times as fast as a single stream, on a CPU at least.
        estimate = count * output / (ctx.features.tokens_per_s * 4) + count * prompt / (ctx.features.tokens_per_s * 20)
        if estimate > BUDGET_S:
            raise Inconclusive(
                f"filling the pool of {pool} tokens would take about {estimate:.0f} s at this engine's speed; "
                "start it with a smaller pool"
            )
        return cls(count, prompt, output, pool)

    def asks(self, ctx: Context, **fields: Any) -> list[Ask]:
        """Questions of these sizes."""
        found = []
        for number in range(self.count):
            ask = ctx.ask(self.prompt, self.output, **fields)
            ask.label = f"prompt {number}"
            found.append(ask)
        return found

    async def run(self, ctx: Context, asks: Sequence[Ask] | None = None) -> Outcome:
        """Send all at once as streams.  Raises Failed when one of them gives no good answer."""
        asks = list(asks) if asks is not None else self.asks(ctx)
        before = await ctx.drained()
        streams = await asyncio.gather(*(stream(ctx, ask) for ask in asks))
        after = await ctx.drained()
        counted = None
        if "preemptions_total" in after:
            counted = after["preemptions_total"] - before.get("preemptions_total", 0.0)
        answers = [one.answer() for one in streams]
        used = sum((a.prompt_tokens or self.prompt) + (a.completion_tokens or len(a.first.ids or [])) for a in answers)
        return Outcome(used / self.pool, answers, list(streams), counted, sum(stalled(one) for one in streams))


async def stream(ctx: Context, ask: Ask) -> Streamed:
    """One question as a stream with everything that judging needs."""
    fields = {**ask.fields, "stream_options": {"include_usage": True}}
    return await ctx.api.stream_complete(ask.prompt, **ctx.fields(ask.max_tokens, **fields))


def stalled(streamed: Streamed) -> bool:
    """Whether a stream paused much longer than its usual gap after it had begun."""
    times = streamed.content_times()
    gaps = [b - a for a, b in itertools.pairwise(times)]
    if len(gaps) < 8:
        return False
    return max(gaps) > max(STALL * statistics.median(gaps), STALL_S)
