"""BAT: an answer does not depend on who else is in the batch."""

from __future__ import annotations

import asyncio
from typing import Any

from harness.conformance.answer import Answer
from harness.conformance.case import Failed, Inconclusive, case
from harness.conformance.context import Context
from harness.conformance.hooks import hook, kv_state
from harness.conformance.pairwise import FACTORS, Row, covering_rows
from harness.conformance.prompts import Ask

ORACLE = "known, else reference scoring, else self scoring, else the answer alone"


@case(
    "BAT-01",
    "MUST",
    "alone, and among 8, 32 and 128 others",
    source="vLLM: needle test of batch invariance",
    needs="completions company",
    kills="F23 F24 F30 K3 K5",
    oracle=ORACLE,
    evidence="positions that precision alone cannot decide",
)
async def crowd(ctx: Context) -> None:
    sizes = [
        size for size in (8, 32, 128) if size * 24 / (ctx.features.tokens_per_s * 4) < 40 * ctx.options.effort
    ] or [8]
    needles = ctx.asks(4, (10, 6 * ctx.block), 24)
    baselines = await ctx.baselines(needles)
    alone = [await ctx.send(ask) for ask in needles]
    await ctx.judged(needles, alone, baselines=baselines, what="answers alone", least=0)
    for size in sizes:
        others = ctx.asks(size, (2, 5 * ctx.block), 24)
        if ctx.judge.rung_of(others) == "baseline":
            await ctx.together(others)
            among = (await ctx.together([*needles, *others], at_once=size + 4))[: len(needles)]
            await ctx.judged(needles, among, baselines=baselines, what=f"answers among {size} others")
        else:
            mixed = [*others[: size // 2], *needles, *others[size // 2 :]]
            await ctx.judged(mixed, await ctx.together(mixed, at_once=len(mixed)), what=f"answers among {size} others")
    ctx.saw(crowds=sizes)


async def batch_differences(ctx: Context) -> tuple[int, int]:
    """Log-probabilities of a prompt alone and among 16 that differ in any bit, and how many were compared."""
    ask = Ask(ctx.prompts.uncertain(ctx.rng), 32)
    alone = await ctx.send(ask)
    others = [ctx.plain_ask(ctx.rng.randint(4, 80), 32) for _ in range(16)]
    among = (await ctx.together([*others[:8], ask, *others[8:]]))[8]
    pairs = list(zip(alone.first.scores or [], among.first.scores or [], strict=False))
    return sum(a.token != b.token or a.logprob != b.logprob for a, b in pairs), len(pairs)


def claims_invariance(ctx: Context) -> bool:
    """Whether the engine says that it computes the same bits in any batch."""
    settings = ctx.features.info.settings
    return str(settings.get("deterministic") or settings.get("batch_invariant")).lower() in ("true", "1")


@case(
    "BAT-02",
    "INFO",
    "the same bits alone and in a batch, where that is claimed",
    source="vLLM, SGLang: deterministic modes",
    needs="logprobs company",
    oracle="equality to the bit",
)
async def invariance(ctx: Context) -> None:
    differing = compared = 0
    for _ in range(ctx.size(4, 2)):
        some, all_of = await batch_differences(ctx)
        differing, compared = differing + some, compared + all_of
    ctx.saw(compared=compared, differing=differing, claimed=claims_invariance(ctx))
    if claims_invariance(ctx):
        ctx.require(not differing, f"{differing} of {compared} log-probabilities differ between alone and in a batch")


@case(
    "BAT-03",
    "INFO",
    "inverse control: the comparison of BAT-02 sees differences where no invariance is claimed",
    source="vLLM: test_logprobs_without_batch_invariance_should_fail",
    needs="logprobs company",
    oracle="inverse control",
    evidence="an engine whose bits depend on the batch",
)
async def inverse_control(ctx: Context) -> None:
    if claims_invariance(ctx):
        raise Inconclusive("the engine claims batch invariance; run this case with the mode off")
    for _ in range(ctx.size(12, 6)):
        differing, compared = await batch_differences(ctx)
        if differing:
            ctx.saw(compared=compared, differing=differing)
            return
    # The engine may simply be invariant: then the comparison itself must be shown to see one changed token.
    first = await ctx.send(Ask(ctx.prompts.make_prompt(ctx.rng, 12), 8))
    second = await ctx.send(Ask(ctx.prompts.make_prompt(ctx.rng, 12), 8))
    pairs = zip(first.first.scores or [], second.first.scores or [], strict=False)
    seen = any(a.token != b.token or a.logprob != b.logprob for a, b in pairs)
    ctx.saw(engine_varies=False, comparison_sees_other_prompts=seen)
    ctx.require(seen, "answers to two different prompts compare as equal: the comparison is blind")


@case(
    "BAT-04",
    "MUST",
    "survivors do not notice neighbours that finish",
    source="own",
    needs="completions company",
    kills="F24 F10 K3",
    oracle=ORACLE,
    evidence="answers of very different lengths in one batch",
)
async def staggered(ctx: Context) -> None:
    count = min(ctx.afford(40, 40, 40, 12), 48)
    asks = []
    for number in range(count):
        ask = ctx.ask(ctx.rng.randint(6, 5 * ctx.block), 2 + (number * 7) % 60)
        ask.label = f"prompt {number}"
        asks.append(ask)
    baselines = await ctx.baselines(asks)
    answers = await ctx.together(asks, at_once=count)
    await ctx.judged(asks, answers, baselines=baselines, what="answers among neighbours that finish")


@case(
    "BAT-05",
    "MUST",
    "64 requests at once: nobody gets another's answer",
    source="GRIEF: cross-request contamination",
    needs="completions company",
    kills="F24 F48 F05 F06 F08 K5",
    oracle=ORACLE,
    evidence="positions that precision alone cannot decide",
    structural=True,
)
async def canaries(ctx: Context) -> None:
    count = min(ctx.afford(64, 16, 30, 16), 64)
    asks = ctx.asks(count, (8, 4 * ctx.block), 16)
    baselines = await ctx.baselines(asks)
    halves = await asyncio.gather(
        ctx.together(asks[::2], at_once=64), ctx.together(asks[1::2], at_once=64, stream=ctx.features.has("stream"))
    )
    answers: list[Answer] = [answer for pair in zip(*halves, strict=False) for answer in pair]
    answers += halves[0][len(halves[1]) :]
    await ctx.judged(asks, answers, baselines=baselines, what="answers in a crowd")


@case(
    "BAT-06",
    "SHOULD",
    "NaN in one sequence stays there",
    source="own; Dao-AILab/flash-attention#2374",
    needs="completions debug_hooks ignore_eos id_prompts",
    kills="F26",
    oracle=ORACLE,
    evidence="a running sequence whose KV was made NaN",
)
async def contained_nan(ctx: Context) -> None:
    limit = min(ctx.context // 2, 400)
    victim = asyncio.ensure_future(
        ctx.api.stream_complete(ctx.plain_ask(3 * ctx.block, limit).prompt, **ctx.fields(limit))
    )
    asks = ctx.asks(8, (8, 4 * ctx.block), 48)
    try:
        poisoned = None
        for _ in range(100):
            await asyncio.sleep(0.02)
            state = await kv_state(ctx)
            running = [s for s in state.get("sequences", []) if s.get("computed", 0) > 2 * ctx.block]
            if running:
                poisoned = await hook(ctx, "poison", {"value": "nan", "request_id": running[0]["request_id"]})
                break
        ctx.need_evidence(poisoned and poisoned.get("blocks"), "no running sequence could be poisoned")
        answers = await ctx.together(asks)
    finally:
        victim.cancel()
        await asyncio.gather(victim, return_exceptions=True)
    ctx.saw(**(poisoned or {}))
    await ctx.judged(asks, answers, what="answers beside a poisoned sequence")
    fresh = ctx.asks(8, (8, 6 * ctx.block), 16)
    await ctx.judged(fresh, await ctx.together(fresh), what="answers after the poisoned sequence has gone")


@case(
    "BAT-07",
    "MUST",
    "prompts of a token or few beside the longest",
    source="own",
    needs="completions company",
    kills="F23 K7",
    oracle=ORACLE,
    evidence="positions that precision alone cannot decide",
)
async def short_and_long(ctx: Context) -> None:
    longest = min(ctx.context - 40, int(ctx.features.tokens_per_s * 30), 2500)
    short = [ctx.plain_ask(1 + number % 3, 12) for number in range(6)] + ctx.asks(6, (9, 14), 12)
    long = ctx.asks(2, (longest - 3, longest), 12)
    asks = [*short[:6], *long, *short[6:]]
    judged = [ask for ask in asks if ctx.sentinel is None or ask.expected]
    baselines = await ctx.baselines(judged)
    answers = dict(zip(map(id, asks), await ctx.together(asks, at_once=len(asks)), strict=True))
    await ctx.judged(
        judged, [answers[id(ask)] for ask in judged], baselines=baselines, what="short prompts beside long ones"
    )
    rest = [ask for ask in asks if ask not in judged]
    if rest and ctx.judge.own is not None:
        await ctx.judge.check(
            rest, [answers[id(ask)] for ask in rest], what="prompts of few tokens", scorer=ctx.judge.own, least=0
        )


@case(
    "BAT-08",
    "MUST",
    "every pair of conditions at once: warm, aborted neighbours, edges, n > 1, seeds, penalties, log-probabilities, batch",
    source="engine bug catalogue: most corruption needs two conditions at once",
    needs="completions",
    kills="F24 F10 F12 F31 F03 F09",
    oracle=ORACLE,
    evidence="all pairs were run",
)
async def pairs(ctx: Context) -> None:
    rows = covering_rows(ctx.rng)
    if ctx.features.tokens_per_s * ctx.options.effort < 60:
        rows = rows[: max(len(rows) // 2, 4)]
    failures: list[str] = []
    for number, row in enumerate(rows):
        try:
            await run_row(ctx, row)
        except Failed as outcome:
            failures.append(f"row {number} {describe(row)}: {outcome.reason}")
            ctx.saw(**outcome.evidence)
    ctx.saw(rows=len(rows), factors=list(FACTORS), failed_rows=len(failures))
    ctx.require(
        not failures,
        f"{len(failures)} of {len(rows)} combinations fail; {failures[0] if failures else ''}",
        rows=failures[:5],
    )


def describe(row: Row) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.items())


def fields_of(ctx: Context, row: Row, number: int) -> dict[str, Any]:
    """The request's own part of a combination."""
    fields: dict[str, Any] = {}
    if row["n"] == 2 and ctx.features.has("n"):
        fields |= ctx.several(2)
    if row["seeded"] and ctx.features.has("seed"):
        fields["seed"] = number
    if row["penalties"] and ctx.features.has("penalties"):
        # Too small to change a sentinel's answer, large enough to take the penalised path.
        fields["frequency_penalty"] = 0.01
    return fields


async def run_row(ctx: Context, row: Row) -> None:
    """One combination: questions that share the row's conditions, with neighbours that are aborted if it says so."""
    length = {"page": 3 * ctx.block, "page+1": 3 * ctx.block + 1, "chunk": 260, "inside": 2 * ctx.block + 5}[
        str(row["edge"])
    ]
    length = min(length, ctx.context // 2)
    count = min(int(row["batch"]), 16 if ctx.features.tokens_per_s > 60 else 6)
    asks = []
    for number in range(count):
        ask = ctx.ask(length, 20)
        ask.fields = fields_of(ctx, row, number)
        ask.label = f"prompt {number}"
        asks.append(ask)
    # A penalty of 0.01 nats can decide a tie only, but plain scoring would not know of it.
    baselines = await ctx.baselines(asks)
    if row["warm"]:
        await ctx.together(asks, at_once=4)
    aborts = []
    if row["aborted"] and ctx.features.has("stream"):
        body = [{"prompt": ask.prompt, **ctx.fields(40)} for ask in asks]
        aborts = [asyncio.ensure_future(ctx.api.stream("/v1/completions", one, cancel_after=2)) for one in body[:6]]
    try:
        extra = {} if row["logprobs"] or not ctx.features.has("logprobs") else {"logprobs": None}
        answers = await ctx.together(asks, at_once=count, stream=bool(row["streamed"]), **extra)
    finally:
        await asyncio.gather(*aborts, return_exceptions=True)
    flat = [(ask, single) for ask, answer in zip(asks, answers, strict=True) for single in split(answer)]
    bases = (
        [base for base, answer in zip(baselines, answers, strict=True) for _ in answer.choices] if baselines else None
    )
    await ctx.judged([a for a, _ in flat], [b for _, b in flat], baselines=bases, what="answers", least=0)


def split(answer: Answer) -> list[Answer]:
    """Every choice as an answer of its own."""
    return [Answer(answer.exchange, [choice], {}, answer.document) for choice in answer.choices]
