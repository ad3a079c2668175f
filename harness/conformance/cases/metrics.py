"""MET: the numbers that an engine tells about itself are true."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from harness.conformance.case import Failed, case
from harness.conformance.context import Context
from harness.conformance.features import read_metrics

SAMPLE_S = 0.03


async def sampled(ctx: Context, work: Any) -> tuple[Any, list[dict[str, float]]]:
    """The result of ``work``, and the metrics read all the time while it ran."""
    task = asyncio.ensure_future(work)
    trace = []
    while not task.done():
        trace.append(await read_metrics(ctx.api))
        await asyncio.sleep(SAMPLE_S)
    return await task, trace


@case(
    "MET-01",
    "MUST",
    "the exposition parses, and counters never fall",
    source="Prometheus text format",
    needs="metrics",
    kills="F60",
    structural=True,
)
async def exposition(ctx: Context) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    families = 0
    for round_number in range(6):
        reply = await ctx.api.request("GET", "/metrics")
        ctx.require(reply.status == 200, f"GET /metrics gives {reply.words}")
        try:
            parsed = list(text_string_to_metric_families(reply.text))
        except (ValueError, KeyError, IndexError) as error:
            raise Failed(f"/metrics does not parse: {error}") from None
        families = len(parsed)
        for family in parsed:
            for sample in family.samples:
                if family.type not in ("counter", "histogram", "summary") or sample.name.endswith(("_created", "_max")):
                    continue
                key = (sample.name, tuple(sorted(sample.labels.items())))
                before = last.get(key)
                ctx.require(
                    not math.isnan(sample.value) or family.type == "summary", f"the counter {sample.name} is NaN"
                )
                ctx.require(
                    before is None or sample.value >= before,
                    f"the counter {sample.name} fell from {before} to {sample.value}",
                )
                last[key] = sample.value
        if ctx.features.has("completions"):
            await ctx.together([ctx.plain_ask(10, 6) for _ in range(1 + 2 * round_number)])
    ctx.saw(families=families, counters=len(last))


@case(
    "MET-02",
    "MUST",
    "the generated-token counter rises by the tokens that were returned",
    source="own",
    needs="completions metric:generation_tokens_total",
    kills="F60 F41",
    evidence="the engine was idle before and after",
)
async def token_counter(ctx: Context) -> None:
    before = await ctx.drained()
    answers = await ctx.together([ctx.plain_ask(8 + number, 4 + number % 13) for number in range(ctx.size(24, 8))])
    streamed = [await ctx.send(ctx.plain_ask(9, 7), stream=True) for _ in range(2)]
    after = await settled(ctx, "generation_tokens_total")
    expected = sum(answer.completion_tokens or 0 for answer in answers)
    unknown = [answer for answer in streamed if answer.completion_tokens is None]
    expected += sum(answer.completion_tokens or len(answer.first.ids or []) for answer in streamed)
    rose = after.get("generation_tokens_total", 0) - before.get("generation_tokens_total", 0)
    ctx.saw(returned=expected, counter=rose)
    ctx.need_evidence(not any(not answer.first.ids for answer in unknown), "streamed tokens could not be counted")
    ctx.require(rose == expected, f"the counter rose by {rose:g} for {expected} returned tokens")
    prompts = [answer.prompt_tokens for answer in answers]
    if "prompt_tokens_total" in after and all(prompts) and all(answer.prompt_tokens for answer in streamed):
        wanted = sum(p or 0 for p in prompts) + sum(answer.prompt_tokens or 0 for answer in streamed)
        rose = after["prompt_tokens_total"] - before.get("prompt_tokens_total", 0)
        ctx.require(rose == wanted, f"the prompt-token counter rose by {rose:g} for {wanted} prompt tokens")


async def settled(ctx: Context, name: str) -> dict[str, float]:
    """Metrics once the engine is idle and a counter no longer moves; engines refresh them now and then."""
    values = await ctx.drained()
    for _ in range(40):
        await asyncio.sleep(0.1)
        again = await ctx.metrics()
        if again.get(name) == values.get(name) and not again.get("requests_running"):
            return again
        values = again
    return values


@case(
    "MET-03",
    "MUST",
    "the KV gauge stays in 0..1, moves with load and comes back",
    source="vLLM metrics design; gateway model-server protocol",
    needs="completions metric:kv_usage",
    kills="F59",
    evidence="a load that takes a visible share of the pool",
)
async def kv_gauge(ctx: Context) -> None:
    await ctx.drained()
    base = (await ctx.drained()).get("kv_usage", 0.0)
    tokens = min(ctx.context // 2, 512)
    asks = [ctx.plain_ask(tokens, 48) for _ in range(ctx.size(16, 8))]
    answers, trace = await sampled(ctx, ctx.together(asks))
    seen = [values["kv_usage"] for values in trace if "kv_usage" in values]
    after = (await settled(ctx, "kv_usage")).get("kv_usage", 0.0)
    ctx.saw(base=base, highest=max(seen, default=0.0), after=after, samples=len(seen))
    wrong = [value for value in (*seen, base, after) if not 0 <= value <= 1]
    ctx.require(not wrong, f"the KV gauge shows {wrong[:1]}, outside 0..1")
    ctx.need_evidence(len(seen) >= 4, f"only {len(seen)} samples were taken during the load")
    share = tokens * min(len(asks), ctx.places) / ctx.features.pool_tokens if ctx.features.pool_tokens else None
    ctx.need_evidence(share is None or share > 0.002, "the load is too small a share of the pool to be seen")
    ctx.require(max(seen) > base, f"the KV gauge stood at {base:g} during a load of {len(asks)} requests")
    ctx.require(
        after <= base + 0.005,
        f"the KV gauge was {base:g} before the load and is {after:g} after it, with nothing running",
    )
    _ = answers


@case(
    "MET-04",
    "SHOULD",
    "running and waiting requests are those that clients wait for",
    source="own",
    needs="completions metric:requests_running metric:requests_waiting stream",
    kills="F59 F60 F52",
    evidence="moments at which the number of open requests is known",
)
async def open_requests(ctx: Context) -> None:
    await ctx.drained()
    count = min(ctx.places + 6, 24)
    limit = min(ctx.context - 24, 400)
    streams = [
        asyncio.ensure_future(ctx.api.stream_complete(ctx.plain_ask(12, limit).prompt, **ctx.fields(limit)))
        for _ in range(count)
    ]
    highest, quiet = 0.0, 0
    try:
        for _ in range(60):
            await asyncio.sleep(0.05)
            open_before = sum(not stream.done() for stream in streams)
            values = await ctx.metrics()
            open_after = sum(not stream.done() for stream in streams)
            told = values.get("requests_running", 0) + values.get("requests_waiting", 0)
            highest = max(highest, told)
            if open_before == open_after == count:
                quiet += 1
            ctx.require(told <= count + 1, f"{told:g} requests are told to be open, {count} were sent")
            if open_after == 0:
                break
    finally:
        await asyncio.gather(*streams, return_exceptions=True)
    ctx.saw(sent=count, highest=highest, quiet_samples=quiet)
    ctx.need_evidence(quiet >= 3, f"all requests were open at only {quiet} samples")
    ctx.require(highest >= count - 1, f"at most {highest:g} of {count} open requests were told")
    idle = await ctx.drained()
    told = idle.get("requests_running", 0) + idle.get("requests_waiting", 0)
    ctx.require(told == 0, f"{told:g} requests are told to be open when none is")


@case(
    "MET-05",
    "SHOULD",
    "the KV gauge times the capacity is the live tokens, rounded up to blocks",
    source="own",
    needs="completions ignore_eos metric:kv_usage pool stream id_prompts",
    kills="F59 F66",
    evidence="moments at which every request of the load was running",
)
async def gauge_is_true(ctx: Context) -> None:
    await ctx.drained()
    base = (await ctx.drained()).get("kv_usage", 0.0)
    pool, block = ctx.features.pool_tokens or 1, ctx.block
    count = max(min(8, ctx.places), 1)
    prompt = min(ctx.context // 4, pool // (count * 3))
    limit = min(ctx.context - prompt - 8, pool // count - prompt - block, 256)
    ctx.need_evidence(limit >= 32, "the pool is too small for this load")
    asks = [ctx.plain_ask(prompt, limit) for _ in range(count)]
    answers, trace = await sampled(ctx, ctx.together(asks, stream=True))
    # While all run, a sequence holds its prompt at least, and prompt and answer at most.
    least = count * (prompt // block) * block / pool
    most = count * (math.ceil((prompt + limit) / block) + 1) * block / pool
    running = [v for v in trace if v.get("requests_running") == count and not v.get("requests_waiting")]
    seen = [v["kv_usage"] - base for v in running if "kv_usage" in v]
    ctx.saw(
        samples=len(seen), least=round(least, 5), most=round(most, 5), seen=[round(v, 5) for v in seen[:3] + seen[-3:]]
    )
    ctx.need_evidence(len(seen) >= 4, f"only {len(seen)} samples show all {count} requests running")
    _ = answers
    # A prompt may still be in its prefill at the first of them; the last ones have all of it.
    late = seen[len(seen) // 2 :]
    ctx.require(max(late) >= least * 0.98, f"the gauge shows {max(late):.4f} of the pool for at least {least:.4f}")
    ctx.require(max(seen) <= most * 1.02 + 1e-6, f"the gauge shows {max(seen):.4f} of the pool for at most {most:.4f}")


@case(
    "MET-06",
    "SHOULD",
    "hit counters agree with cached_tokens",
    source="vLLM metrics design",
    needs="completions cached_tokens metric:prefix_cache_hits_total",
    kills="F61 F60",
    evidence="hits were reported",
)
async def hit_counters(ctx: Context) -> None:
    before = await ctx.drained()
    shared = ctx.prompts.make_prompt(ctx.rng, 6 * ctx.block)
    told = 0
    for number in range(6):
        tail = ctx.prompts.make_prompt(ctx.rng, 5 + number)
        prompt = ctx.prompts.joined(shared, tail)
        told += (await ctx.api.complete(prompt, **ctx.fields(2))).cached_tokens or 0
    after = await settled(ctx, "prefix_cache_hits_total")
    rose = after.get("prefix_cache_hits_total", 0) - before.get("prefix_cache_hits_total", 0)
    ctx.saw(cached_tokens=told, counter=rose)
    ctx.need_evidence(told or rose, "no prefix hit was reported")
    ctx.require(rose == told, f"the hit counter rose by {rose:g}, usage told {told} cached tokens")
    queries = after.get("prefix_cache_queries_total")
    if queries is not None:
        ctx.require(after["prefix_cache_hits_total"] <= queries, "there are more prefix hits than queries")


@case(
    "MET-07",
    "SHOULD",
    "the preemption counter rises when the pool is oversubscribed, and only then",
    source="own",
    needs="completions ignore_eos metric:preemptions_total pool id_prompts",
    kills="F60",
    evidence="a load that the pool cannot hold",
)
async def preemption_counter(ctx: Context) -> None:
    from harness.conformance.pressure import Squeeze

    calm = await ctx.drained()
    await ctx.send(ctx.plain_ask(8, 8))
    still = await ctx.drained()
    ctx.require(
        still.get("preemptions_total") == calm.get("preemptions_total"),
        "one lone short request counted as a preemption",
    )
    squeeze = Squeeze.plan(ctx)
    outcome = await squeeze.run(ctx)
    ctx.saw(**outcome.evidence())
    ctx.need_evidence(outcome.demand > 1.2, "the load fits the pool")
    stalls = outcome.stalls
    ctx.need_evidence(stalls or outcome.preemptions, "the streams show no stall, so nothing was preempted")
    ctx.require(
        outcome.preemptions > 0,
        f"the load is {outcome.demand:.1f} times the pool, {stalls} streams stalled, but the counter stands",
    )
