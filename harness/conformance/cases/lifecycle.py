"""LIF: requests that are cut off, retried, slow, and engines that are started again."""

from __future__ import annotations

import asyncio
import time

from harness.conformance.answer import Answer
from harness.conformance.case import Failed, Inconclusive, case
from harness.conformance.context import Context
from harness.conformance.pressure import Squeeze
from harness.conformance.prompts import Ask

ORACLE = "known, else reference scoring, else self scoring, else the answer alone"


@case(
    "LIF-01",
    "MUST",
    "a client that goes away frees its place within 2 s",
    source="own; ROCm/ATOM#1562",
    needs="completions stream metric:requests_running",
    kills="F52",
    evidence="the request was running when its client went",
)
async def disconnect(ctx: Context) -> None:
    await ctx.drained()
    limit = min(ctx.context - 40, 4000)
    for streamed in (True, False):
        body = {"prompt": ctx.plain_ask(12, limit).prompt, "temperature": 0, **ctx.fields(limit), "stream": streamed}
        path = "/v1/completions"
        task = asyncio.ensure_future(ctx.api.stream(path, body) if streamed else ctx.api.post(path, body))
        running = 0.0
        for _ in range(100):
            await asyncio.sleep(0.01)
            running = (await ctx.metrics()).get("requests_running", 0)
            if running:
                break
        ended = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if ended or not running:
            raise Inconclusive("the request was over before its client could go away")
        start = time.monotonic()
        while (await ctx.metrics()).get("requests_running", 0):
            if time.monotonic() - start > 2.0:
                # It may have been near its end anyway: only work that goes on is a fault.
                kind = "streaming" if streamed else "waiting"
                raise Failed(f"2 s after its {kind} client went away the request still runs")
            await asyncio.sleep(0.02)
        ctx.saw(**{f"freed_s_{'stream' if streamed else 'whole'}": round(time.monotonic() - start, 3)})


@case(
    "LIF-02",
    "MUST",
    "200 cancelled requests cost no capacity",
    source="own",
    needs="completions stream ignore_eos pool id_prompts",
    kills="F13 F52 F04 A5 A8 A6",
    oracle="the same load before and after",
    evidence="a load that just fits, before the cancels",
)
async def cancels(ctx: Context) -> None:
    squeeze = Squeeze.plan(ctx, demand=1.0)
    squeeze.prompt = int(squeeze.prompt * 0.9)
    squeeze.output = max(int(squeeze.output * 0.9) - ctx.block, 8)
    before = await squeeze.run(ctx)
    count = ctx.size(200, 60)
    gate = asyncio.Semaphore(24)

    async def one(number: int) -> None:
        ask = ctx.plain_ask(ctx.rng.randint(4, 6 * ctx.block), 300)
        async with gate:
            body = {"prompt": ask.prompt, **ctx.fields(min(300, ctx.context // 2))}
            if number % 4 == 3:
                task = asyncio.ensure_future(ctx.api.stream("/v1/completions", body))
                await asyncio.sleep(0.002 * (number % 7))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                await ctx.api.stream("/v1/completions", body, cancel_after=1 + number % 6)

    await asyncio.gather(*(one(number) for number in range(count)))
    await ctx.drained()
    after = await squeeze.run(ctx)
    ctx.saw(cancels=count, before=before.evidence(), after=after.evidence())
    ctx.need_evidence(not before.was_tight or before.counted is None, "the load did not fit before the cancels either")
    if before.counted is not None:
        ctx.require(
            not after.preemptions, f"a load that fitted is preempted {after.preemptions:g} times after {count} cancels"
        )
    slower = max(s.exchange.seconds for s in after.streams) / max(max(s.exchange.seconds for s in before.streams), 0.05)
    ctx.saw(slower=round(slower, 2))
    ctx.require(slower < 6, f"the same load takes {slower:.1f} times as long after {count} cancels")


@case(
    "LIF-03",
    "MUST",
    "a request that is cut off and sent again 60 ms later is right",
    source="vLLM #39146: pattern of finding 30",
    needs="completions stream",
    kills="F03 F13 P6 P17 A5",
    oracle=ORACLE,
    evidence="requests that were cut off while they ran",
)
async def retries(ctx: Context) -> None:
    asks = ctx.asks(ctx.afford(32, 24, 30, 8), (8, 6 * ctx.block), 20)
    baselines = await ctx.baselines(asks)
    cut = 0

    async def one(ask: Ask) -> Answer:
        nonlocal cut
        body = {"prompt": ask.prompt, **ctx.fields(120)}
        streamed = await ctx.api.stream("/v1/completions", body, cancel_after=1 + ctx.rng.randrange(4))
        cut += streamed.was_cancelled
        await asyncio.sleep(0.06)
        return await ctx.send(ask)

    for _ in range(2):
        answers = await asyncio.gather(*(one(ask) for ask in asks))
        await ctx.judged(asks, answers, baselines=baselines, what="answers after a retry")
    ctx.saw(cut_off=cut)
    ctx.need_evidence(cut >= len(asks) // 2, f"only {cut} requests were cut off while they ran")


@case(
    "LIF-04",
    "SHOULD",
    "a fast and a slow reader of one prompt, and neighbours: streams are not mixed",
    source="own",
    needs="completions stream company",
    kills="F48",
    oracle=ORACLE,
    evidence="streams under way together",
)
async def slow_reader(ctx: Context) -> None:
    asks = ctx.asks(8, (8, 3 * ctx.block), 40)
    twin = asks[0]
    baselines = await ctx.baselines(asks)

    async def one(ask: Ask, pause_s: float) -> Answer:
        body = {"prompt": ask.prompt, **ctx.fields(ask.max_tokens, **ask.fields)}
        return (await ctx.api.stream("/v1/completions", body, pause_s=pause_s)).answer()

    pauses = [0.0 if number % 2 else 0.004 for number in range(len(asks))]
    answers = await asyncio.gather(
        *(one(a, p) for a, p in zip(asks, pauses, strict=True)), one(twin, 0.004), one(twin, 0.0)
    )
    bases = [*baselines, baselines[0], baselines[0]] if baselines else None
    await ctx.judged([*asks, twin, twin], list(answers), baselines=bases, what="streams read at different speed")


@case(
    "LIF-05",
    "SHOULD",
    "the same answers after a restart",
    source="own",
    needs="completions restart",
    kills="F35",
    oracle="the answers before; margin where they differ",
    evidence="the engine was started again",
    limit_s=900.0,
)
async def restarted(ctx: Context) -> None:
    assert ctx.options.restart is not None
    asks = ctx.asks(8, (8, 5 * ctx.block), 24)
    asks += [Ask(ctx.prompts.uncertain(ctx.rng), 24, label="open prompt") for _ in range(4)]
    before = [await ctx.send(ask) for ask in asks]
    ctx.api.url = (await ctx.options.restart()).rstrip("/")
    after = [await ctx.send(ask) for ask in asks]
    for ask, a, b in zip(asks, before, after, strict=True):
        if a.text == b.text:
            continue
        ctx.need_evidence(a.first.scores and a.first.scores[0].top, "answers differ and nothing tells by how much")
        ctx.require(ctx.part_at_a_tie(a, b), f"{ask.label} is answered otherwise after a restart")
