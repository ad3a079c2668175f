"""PRE: more demand than KV memory; nobody may notice but by waiting."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from typing import Any

from harness.conformance.case import Failed, Inconclusive, case
from harness.conformance.context import Context
from harness.conformance.pressure import Outcome, Squeeze, stream
from harness.conformance.stats import slope

ORACLE = "known, else reference scoring, else self scoring, else the answer alone"
TIGHT = "the preemption counter rose, else streams stalled"


async def squeezed(ctx: Context, *, demand: float = 1.7, **fields: object) -> Outcome:
    """A judged squeeze."""
    squeeze = Squeeze.plan(ctx, demand=demand)
    asks = squeeze.asks(ctx, **fields)
    baselines = await ctx.baselines(asks)
    outcome = await squeeze.run(ctx, asks)
    ctx.saw(sequences=squeeze.count, prompt=squeeze.prompt, output=squeeze.output, **outcome.evidence())
    for ask, answer in zip(asks, outcome.answers, strict=True):
        count = answer.completion_tokens
        if ctx.features.has("ignore_eos") and count is not None and count != ask.max_tokens:
            raise Failed(
                f"{ask.label} gave {count} of {ask.max_tokens} tokens under pressure", finish=answer.first.finish
            )
        scores, ids = answer.first.scores, answer.first.ids
        if scores is not None and count is not None and len(scores) != count:
            raise Failed(f"{len(scores)} log-probabilities for {count} tokens under pressure")
        if ids is not None and count is not None and len(ids) != count:
            raise Failed(f"{len(ids)} token ids for {count} tokens under pressure")
        cached, prompt = answer.cached_tokens, answer.prompt_tokens
        if cached is not None and prompt is not None and cached > prompt:
            raise Failed(f"cached_tokens is {cached} of {prompt} prompt tokens under pressure")
    await ctx.judged(asks, outcome.answers, baselines=baselines, what="answers under pressure")
    return outcome


@case(
    "PRE-01",
    "MUST",
    "answers under preemption are the uncontended ones",
    source="vLLM: determinism under preemption",
    needs="completions stream ignore_eos",
    kills="F10 F11 F12 R2 A19",
    oracle=ORACLE,
    evidence=TIGHT,
)
async def preempted(ctx: Context) -> None:
    outcome = await squeezed(ctx)
    ctx.need_evidence(outcome.was_tight, "nothing was preempted")


@case(
    "PRE-02",
    "MUST",
    "a pool that is filled exactly, by several and by one: all finish",
    source="own; SGLang #24252 kind",
    needs="completions ignore_eos pool id_prompts",
    kills="F54 E7",
    evidence="demand of the whole pool",
)
async def exactly_full(ctx: Context) -> None:
    pool, block = ctx.features.pool_tokens or 0, ctx.block
    count = min(ctx.places, 8)
    share = pool // count // block * block
    longest = (ctx.features.max_model_len or pool) - 1
    ctx.need_evidence(
        share <= longest, f"{count} sequences cannot fill a pool of {pool} tokens with at most {longest} each"
    )
    output = min(64, share // 2)
    cost = count * share / (ctx.features.tokens_per_s * 30) + count * output / (ctx.features.tokens_per_s * 4)
    ctx.need_evidence(cost < 90, f"filling the pool of {pool} tokens would take about {cost:.0f} s")
    asks = [ctx.plain_ask(share - output, output) for _ in range(count)]
    start = time.monotonic()
    answers = await ctx.together(asks, at_once=count)
    total = sum(answer.count("total_tokens") or 0 for answer in answers)
    ctx.saw(pool=pool, demand=total, seconds=round(time.monotonic() - start, 2))
    for answer in answers:
        ctx.require(answer.first.finish == "length", f"a request of a full pool ended with {answer.first.finish!r}")
    ctx.need_evidence(total >= 0.9 * pool, f"the load held only {total} of {pool} tokens")
    if pool <= longest + 1:
        await fill_alone(ctx, pool)


async def fill_alone(ctx: Context, pool: int) -> None:
    """One sequence that needs every block: it ends by its limit, or is refused at once.

    A refusal is no failure: engines may keep a block for themselves and say so in this way only.
    """
    ask = ctx.plain_ask(pool - 24, 24)
    body = {"prompt": ask.prompt, "max_tokens": ask.max_tokens, "temperature": 0, "ignore_eos": True}
    reply = await ctx.api.post("/v1/completions", body)
    ctx.saw(alone_status=reply.status, alone_seconds=round(reply.seconds, 2))
    if reply.status is not None and 400 <= reply.status < 500:
        return
    if reply.status != 200:
        raise Failed(f"a request that needs the whole pool of {pool} tokens got no answer: {reply.words}")
    document = reply.json()
    choices = document.get("choices") if isinstance(document, dict) else None
    finish = choices[0].get("finish_reason") if isinstance(choices, list) and choices else None
    ctx.require(finish == "length", f"a request that needs the whole pool of {pool} tokens ended with {finish!r}")


@case(
    "PRE-03",
    "MUST",
    "a request larger than the pool is refused at once, and the engine lives",
    source="inference-sim#373; vLLM #45387, #45388",
    needs="completions",
    kills="F55 F54",
    oracle="structural",
    evidence="a request that can never fit",
)
async def never_fits(ctx: Context) -> None:
    await refuse_oversized(ctx, prompt_share=1.0)


@case(
    "PRE-09",
    "MUST",
    "a request whose answer cannot fit is refused or ended, and others go on",
    source="inference-sim#568 (the guard counts the prompt only); second killer of F55",
    needs="completions",
    kills="F55 F54",
    oracle=ORACLE,
    evidence="a request that can never fit, beside others",
)
async def answer_never_fits(ctx: Context) -> None:
    asks = ctx.asks(6, (8, 4 * ctx.block), 24)
    baselines = await ctx.baselines(asks)
    others = asyncio.ensure_future(ctx.together(asks))
    try:
        await refuse_oversized(ctx, prompt_share=0.5)
    finally:
        answers = await others
    await ctx.judged(asks, answers, baselines=baselines, what="answers beside a request that never fits")


async def refuse_oversized(ctx: Context, *, prompt_share: float) -> None:
    pool = ctx.features.pool_tokens or ctx.features.max_model_len or 8192
    longest = max(pool, ctx.features.max_model_len or 0)
    ctx.need_evidence(longest <= 60_000, f"a request of more than {longest} tokens is too large to be sent here")
    prompt = ctx.prompts.make_prompt(ctx.rng, int((longest + 2 * ctx.block) * prompt_share))
    body = {"prompt": prompt, "max_tokens": int((longest + 2 * ctx.block) * (1 - prompt_share)) + 8, "temperature": 0}
    limit_s = (
        5.0 if prompt_share == 1.0 else max(60.0, (longest * (1 - prompt_share)) / ctx.features.tokens_per_s * 2 + 10)
    )
    reply = await ctx.api.post("/v1/completions", {**body, **({"ignore_eos": True} if ctx.features.has("ignore_eos") else {})},
                               timeout_s=min(limit_s, 120.0))  # fmt: skip
    ctx.saw(status=reply.status, seconds=round(reply.seconds, 3))
    if reply.status is None:
        if prompt_share < 1.0 and reply.seconds < limit_s:
            raise Inconclusive(f"a long answer was not over after {reply.seconds:.0f} s")
        raise Failed(f"a request that never fits got no answer: {reply.error}")
    if reply.status == 200:
        usage = (reply.json() or {}).get("usage") or {}
        total = usage.get("total_tokens") or 0
        ctx.require(prompt_share < 1.0, f"a prompt larger than the pool is answered: {usage}")
        ctx.require(total <= longest, f"{total} tokens were made where {longest} fit")
    else:
        ctx.require(400 <= reply.status < 500, f"a request that never fits gives {reply.words}, not 4xx")
    small = await ctx.send(ctx.ask(20, 8))
    ctx.require(small.text, "the engine gives no text after a request that never fits")


async def turnaround(ctx: Context, demand: float) -> tuple[list[float], float]:
    """Seconds of every request of an oversubscribed load, and the preemptions a request."""
    squeeze = Squeeze.plan(ctx, demand=1.3)
    waves = max(round(demand / 1.3), 1)
    asks = [ask for _ in range(waves) for ask in squeeze.asks(ctx)]
    cost = len(asks) * squeeze.output / (ctx.features.tokens_per_s * 4)
    ctx.need_evidence(
        cost < 100, f"{demand} times the pool would take about {cost:.0f} s; start the engine with a smaller one"
    )
    before = await ctx.drained()
    start = time.monotonic()
    ends: list[float] = []

    async def one(number: int) -> None:
        streamed = await stream(ctx, asks[number])
        streamed.answer()
        ends.append(time.monotonic() - start)

    await asyncio.gather(*(one(number) for number in range(len(asks))))
    after = await ctx.drained()
    preempted = after.get("preemptions_total", 0.0) - before.get("preemptions_total", 0.0)
    return ends, preempted / len(asks)


@case(
    "PRE-04",
    "MUST",
    "three times the pool: every request ends, none waits out of proportion",
    source="own",
    needs="completions stream ignore_eos",
    kills="F53 F57 E8",
    evidence="demand of three times the pool",
)
async def oversubscribed(ctx: Context) -> None:
    ends, preemptions = await turnaround(ctx, 3.0)
    mean, longest = statistics.mean(ends), max(ends)
    ctx.saw(
        requests=len(ends),
        mean_s=round(mean, 3),
        longest_s=round(longest, 3),
        preemptions_a_request=round(preemptions, 2),
    )
    ctx.require(longest <= 5 * mean, f"one request took {longest:.1f} s where the mean is {mean:.1f} s")
    ctx.require(preemptions <= 8, f"every request was preempted {preemptions:.1f} times: the pool thrashes")


@case(
    "PRE-08",
    "MUST",
    "early requests are not overtaken for ever by later ones",
    source="own; second killer of F53",
    needs="completions stream ignore_eos",
    kills="F53",
    evidence="more requests than may run, and later ones that came while they waited",
)
async def no_starvation(ctx: Context) -> None:
    # Three times as many wait as run: were all seats to fall free together, old and new would still stand in the queue.
    at_once = 4 * ctx.places
    total, output = 3 * at_once, min(16, ctx.context // 4)
    cost = total * output / (ctx.features.tokens_per_s * 4)
    ctx.need_evidence(cost < 100, f"the load would take about {cost:.0f} s")
    sent: dict[int, float] = {}
    first: dict[int, float] = {}
    ends: dict[int, float] = {}
    numbers = iter(range(total))

    async def client() -> None:
        """Each end is followed by a new request: under a queue that is never empty, newest first never gets to the old."""
        for number in numbers:
            sent[number] = time.monotonic()
            streamed = await stream(ctx, ctx.plain_ask(12, output))
            streamed.answer()
            ends[number] = time.monotonic()
            first[number] = sent[number] + min(streamed.content_times(), default=ends[number] - sent[number])

    outcomes = await asyncio.gather(*(client() for _ in range(at_once)), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    away = ctx.api.log.sent_away
    ctx.need_evidence(not away, f"calls were sent away with 429, {away} times, so their order is not the engine's")
    came = max(sum(sent[n] < other < first[n] for other in sent.values()) for n in ends)
    # Those that were sent once answers had come: in which order a burst of connections reaches a server, nobody promises.
    later = [n for n in ends if n >= at_once]
    overtook = {n: sum(sent[n] < sent[m] and ends[m] < ends[n] for m in later) for n in ends}
    worst = max(overtook, key=lambda number: overtook[number])
    ctx.saw(requests=total, at_once=at_once, came_while_one_waited=came, overtook_one=overtook[worst])
    ctx.need_evidence(came >= max(at_once // 8, 2), f"at most {came} requests came while an earlier one waited")
    ctx.require(
        overtook[worst] < at_once // 2,
        f"request {worst} was overtaken by {overtook[worst]} later ones of the same size, with {at_once} at once",
    )


@case(
    "PRE-10",
    "SHOULD",
    "preempted work is not thrown away again and again",
    source="inference-sim#297; second killer of F57",
    needs="completions stream ignore_eos metric:preemptions_total",
    kills="F57",
    evidence=TIGHT,
)
async def no_thrash(ctx: Context) -> None:
    squeeze = Squeeze.plan(ctx)
    outcome = await squeeze.run(ctx)
    per = outcome.preemptions / squeeze.count
    ctx.saw(**outcome.evidence(), preemptions_a_sequence=round(per, 2))
    ctx.need_evidence(outcome.preemptions, "nothing was preempted")
    ctx.require(
        per <= 6,
        f"{outcome.preemptions:g} preemptions for {squeeze.count} sequences at {outcome.demand:.1f} times the pool",
    )


@case(
    "PRE-05",
    "MUST",
    "20 cycles of load and idleness: used KV returns to its base",
    source="own",
    needs="completions stream metric:kv_usage",
    kills="F04 F13 F59 A6 A19",
    oracle="slope of the idle level",
    evidence="loads with aborts, several choices and shared prefixes",
)
async def returns_to_base(ctx: Context) -> None:
    levels = []
    for number in range(ctx.size(20, 8)):
        asks = [ctx.plain_ask(ctx.rng.randint(4, 5 * ctx.block), 8) for _ in range(6)]
        extra: dict[str, Any] = (
            {"n": 3, "temperature": 1.0} if number % 3 == 1 and ctx.features.has("n", "sampling") else {}
        )
        cuts = [
            ctx.api.stream("/v1/completions", {"prompt": ask.prompt, **ctx.fields(200)}, cancel_after=1 + n)
            for n, ask in enumerate(asks[:3])
        ]
        await asyncio.gather(ctx.together(asks, **extra), *cuts)
        values = await ctx.drained()
        for _ in range(20):
            values = await ctx.metrics()
            if not values.get("kv_usage"):
                break
            await asyncio.sleep(0.05)
        levels.append(values.get("kv_usage", 0.0))
    rate, error = slope(levels)
    pool = ctx.features.pool_tokens or 0
    ctx.saw(
        idle_levels=[round(v, 6) for v in (levels[0], levels[-1])], slope=round(rate, 8), standard_error=round(error, 8)
    )
    ctx.require(
        rate - 4 * error <= 1e-9 or levels[-1] <= levels[0],
        f"used KV rises by {rate:.2g} of the pool{f' ({rate * pool:.1f} tokens)' if pool else ''} a cycle while nothing runs",
        levels=[round(v, 6) for v in levels],
    )
    ctx.require(
        levels[-1] < 0.02 or levels[-1] <= levels[0] + 1e-6,
        f"{levels[-1]:.1%} of the pool is in use with nothing running",
    )


@case(
    "PRE-06",
    "SHOULD",
    "KV that was moved away comes back right",
    source="LMCache #4463",
    needs="completions stream ignore_eos offload",
    kills="F11",
    oracle=ORACLE,
    evidence=TIGHT,
)
async def offloaded(ctx: Context) -> None:
    outcome = await squeezed(ctx, demand=2.0)
    ctx.need_evidence(outcome.was_tight, "nothing was preempted")


async def beside_prefill(ctx: Context) -> tuple[float, float, int]:
    """Median gap, 99th percentile while a long prompt is prefilled, and gaps counted."""
    length = min(ctx.context - 40, 8192, int(ctx.features.tokens_per_s * 60))
    runners = [asyncio.ensure_future(stream(ctx, ctx.plain_ask(12, min(160, ctx.context - 20)))) for _ in range(4)]
    await asyncio.sleep(0.15)
    await ctx.send(ctx.plain_ask(length, 1))
    gaps: list[float] = []
    for streamed in await asyncio.gather(*runners):
        streamed.answer()
        times = streamed.content_times()
        gaps += [b - a for a, b in itertools.pairwise(times)]
    ctx.need_evidence(len(gaps) >= 60, f"only {len(gaps)} gaps were seen")
    ctx.saw(prompt=length)
    return statistics.median(gaps), max(gaps), len(gaps)


@case(
    "PRE-07",
    "INFO",
    "how long one long prefill stalls the others",
    source="GRIEF: noisy neighbour",
    needs="completions stream company",
    kills="F58",
    oracle="report",
    evidence="streams under way during a long prefill",
)
async def long_prefill(ctx: Context) -> None:
    median, longest, count = await beside_prefill(ctx)
    ctx.saw(gaps=count, median_ms=round(median * 1e3, 2), longest_ms=round(longest * 1e3, 2))


@case(
    "PRE-11",
    "SHOULD",
    "a long prefill does not stop all decoding until it is done",
    source="Sarathi-Serve (stall-free schedules); second killer of F58",
    needs="completions stream id_prompts company",
    kills="F58",
    evidence="a prefill that takes long, alone, and streams under way beside it",
)
async def stall_free(ctx: Context) -> None:
    length = min(ctx.context - 40, 8192)
    alone = min([(await ctx.send(ctx.plain_ask(length, 1))).exchange.seconds for _ in range(2)])
    ctx.need_evidence(alone < 30, f"a prefill of {length} tokens takes {alone:.0f} s")
    longest = 0.0
    for _ in range(4):
        # A busy machine can make one gap long; a schedule that stalls does so every time.
        median, longest, _ = await beside_prefill(ctx)
        ctx.need_evidence(
            alone >= max(0.05, 10 * median),
            f"a prefill of {length} tokens takes only {alone:.2f} s, where a token comes every {median * 1e3:.0f} ms",
        )
        ctx.saw(prefill_alone_s=round(alone, 3), median_gap_s=round(median, 4), longest_gap_s=round(longest, 3))
        if longest < 0.8 * alone + max(0.03, 3 * median):
            return
    raise Failed(f"streams stood still for {longest:.2f} s beside a prefill of {alone:.2f} s, four times")


@case(
    "PRE-12",
    "MUST",
    "usage stays right under preemption: prompt, completion and cached tokens",
    source="vllm-project/vllm: cached_tokens above prompt_tokens after a resume",
    needs="completions stream ignore_eos",
    kills="R4 F41 F61",
    evidence=TIGHT,
)
async def usage_under_pressure(ctx: Context) -> None:
    squeeze = Squeeze.plan(ctx)
    asks = squeeze.asks(ctx)
    outcome = await squeeze.run(ctx, asks)
    ctx.saw(**outcome.evidence())
    for ask, answer in zip(asks, outcome.answers, strict=True):
        if isinstance(ask.prompt, list) and answer.prompt_tokens is not None:
            ctx.require(
                answer.prompt_tokens == len(ask.prompt),
                f"{ask.label} has {len(ask.prompt)} tokens, usage counts {answer.prompt_tokens}",
            )
        if answer.completion_tokens is not None:
            ctx.require(
                answer.completion_tokens == ask.max_tokens,
                f"{ask.label} was to give {ask.max_tokens} tokens, usage counts {answer.completion_tokens}",
            )
        if answer.cached_tokens is not None and answer.prompt_tokens is not None:
            ctx.require(
                answer.cached_tokens < answer.prompt_tokens,
                f"{ask.label} has {answer.prompt_tokens} prompt tokens, of which {answer.cached_tokens} are told to be cached",
            )
    ctx.need_evidence(outcome.was_tight, "nothing was preempted")
