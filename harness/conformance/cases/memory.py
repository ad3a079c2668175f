"""MEM: KV memory is as large as claimed, used without waste, and given back."""

from __future__ import annotations

import asyncio
import time

from harness.conformance.answer import Streamed
from harness.conformance.case import case
from harness.conformance.cases.metrics import sampled
from harness.conformance.context import Context
from harness.conformance.hooks import kv_state
from harness.conformance.pressure import Squeeze
from harness.conformance.prompts import Prompt
from harness.conformance.stats import slope


@case(
    "MEM-01",
    "MUST",
    "bytes a token are 2 x layers x KV heads x head size x bytes an element, and scales",
    source="arithmetic",
    needs="debug_hooks metric:kv_pool_bytes metric:kv_slots_reserved",
    kills="F66",
    oracle="arithmetic",
)
async def bytes_per_token(ctx: Context) -> None:
    values = await ctx.metrics()
    reply = await ctx.api.request("GET", "/debug/hooks")
    model = (reply.json() or {}).get("model") or {}
    ctx.require(model, f"GET /debug/hooks tells no model: {reply.words}")
    head = model["head_dim"] * model["element_bytes"] + model.get("head_scale_bytes", 0)
    due = 2 * model["num_layers"] * model["num_kv_heads"] * head
    told = values["kv_pool_bytes"] / values["kv_slots_reserved"]
    held = model.get("kv_bytes", 0) / values["kv_slots_reserved"]
    ctx.saw(due=due, told=told, held=held, **model)
    ctx.require(abs(told - due) <= 0.005 * due, f"the pool has {told:g} bytes a token, {due} are due")
    ctx.require(
        not held or abs(held - due) <= 0.02 * due, f"the pool's tensors hold {held:g} bytes a token, {due} are due"
    )


@case(
    "MEM-02",
    "MUST",
    "nothing is wasted but the rest of each sequence's last block",
    source="PagedAttention, arXiv 2309.06180",
    needs="completions debug_kv ignore_eos",
    kills="F04 F09 A6 A19",
    oracle="the ledger, and the pool's own audit",
    evidence="sequences under way",
)
async def waste(ctx: Context) -> None:
    block = ctx.block
    await ctx.drained()
    limit = min(ctx.context // 2, 160)
    work = asyncio.ensure_future(ctx.together([ctx.plain_ask(5 + 3 * number, limit) for number in range(8)]))
    seen = 0
    worst = 0
    try:
        while not work.done():
            state = await kv_state(ctx, audit=True)
            sequences = [s for s in state.get("sequences", []) if s.get("block_table")]
            for sequence in sequences:
                spare = len(sequence["block_table"]) * block - sequence["known"]
                worst = max(worst, spare)
                seen += 1
                ctx.require(
                    spare <= block,
                    f"a sequence of {sequence['known']} tokens holds {len(sequence['block_table'])} blocks of {block}",
                )
            await asyncio.sleep(0.02)
    finally:
        await asyncio.gather(work, return_exceptions=True)
    await ctx.drained()
    idle = await kv_state(ctx, audit=True)
    ledger = idle.get("ledger", {})
    held = sum(ledger.get(name, 0) for name in ("token_states", "internal", "reserved"))
    ctx.saw(samples=seen, largest_rest=worst, idle_ledger=ledger)
    ctx.need_evidence(seen >= 8, f"only {seen} sequences were seen under way")
    ctx.require(not held, f"{held} slots are held while nothing runs", ledger=ledger)
    ctx.require(not idle.get("sequences"), "sequences are left while nothing runs")


@case(
    "MEM-03",
    "SHOULD",
    "a soak of 30 minutes: memory does not grow",
    source="own",
    needs="completions restart",
    kills="F04 F13",
    oracle="slope of the processes' memory",
    evidence="load all the time",
    soak=True,
    limit_s=7200.0,
)
async def soak(ctx: Context) -> None:
    import psutil

    assert ctx.options.pids is not None
    samples: list[tuple[float, float]] = []
    start = time.monotonic()
    requests = 0
    while time.monotonic() - start < ctx.options.soak_s:
        await ctx.together([ctx.plain_ask(ctx.rng.randint(8, 200), 24) for _ in range(16)])
        requests += 16
        resident = sum(psutil.Process(pid).memory_info().rss for pid in ctx.options.pids())
        samples.append((time.monotonic() - start, resident / 2**20))
    warm = samples[len(samples) // 3 :]
    ctx.need_evidence(len(warm) >= 10, f"only {len(warm)} samples were taken")
    rate, error = slope([mib for _, mib in warm])
    per_hour = rate * 3600 / ((warm[-1][0] - warm[0][0]) / (len(warm) - 1))
    error_per_hour = error * 3600 / ((warm[-1][0] - warm[0][0]) / (len(warm) - 1))
    ctx.saw(requests=requests, mib_per_hour=round(per_hour, 2), standard_error=round(error_per_hour, 2))
    ctx.require(per_hour - 2 * error_per_hour <= 10, f"memory grows by {per_hour:.1f} MiB an hour")


@case(
    "MEM-04",
    "SHOULD",
    "the pool holds as many tokens as claimed",
    source="own",
    needs="completions stream ignore_eos pool id_prompts metric:preemptions_total",
    kills="F59 F66 F13",
    oracle="tokens held when the first sequence is preempted",
    evidence="a preemption was seen as it came",
)
async def capacity(ctx: Context) -> None:
    await ctx.drained()
    squeeze = Squeeze.plan(ctx, demand=1.5)
    before = (await ctx.drained()).get("preemptions_total", 0.0)
    ended: list[Streamed] = []
    tokens_so_far = [0] * squeeze.count
    low = high = 0.0  # tokens held when the counter was last seen at rest, and first seen risen
    ended_by_then = 0

    async def watch() -> None:
        nonlocal low, high, ended_by_then
        while not high:
            held = squeeze.count * squeeze.prompt + float(sum(tokens_so_far))
            values = await ctx.metrics()
            if values.get("preemptions_total", before) > before:
                ended_by_then = len(ended)
                high = squeeze.count * squeeze.prompt + float(sum(tokens_so_far))
            elif all(tokens_so_far):  # until then prompts are still being computed
                low = held
            await asyncio.sleep(0.005)

    async def one(number: int) -> None:
        ask = ctx.plain_ask(squeeze.prompt, squeeze.output)
        streamed = await ctx.api.stream("/v1/completions", {"prompt": ask.prompt, **ctx.fields(squeeze.output)},
                                        on_event=lambda: count(number))  # fmt: skip
        ended.append(streamed)

    def count(number: int) -> None:
        tokens_so_far[number] += 1

    watcher = asyncio.ensure_future(watch())
    try:
        await asyncio.gather(*(one(number) for number in range(squeeze.count)))
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    claimed = float(squeeze.pool)
    # Each sequence's last block is half empty on average; a step more may have come before the counter was read.
    partial = squeeze.count * (ctx.block - 1) / 2
    slack = 0.05 * claimed + 2 * squeeze.count + squeeze.count * ctx.block / 4
    ctx.saw(
        held_tokens=[low, high], slots=high + partial, claimed=claimed, sequences=squeeze.count, ended=ended_by_then
    )
    ctx.need_evidence(high, "no preemption was seen")
    ctx.need_evidence(not ended_by_then, f"{ended_by_then} sequences had ended when the first preemption was seen")
    ctx.need_evidence(
        high - low <= slack, f"between two looks at the counter the sequences went from {low:.0f} to {high:.0f} tokens"
    )
    ctx.require(
        low + partial - slack <= claimed <= high + partial + slack,
        f"the first preemption came with {low + partial:.0f} to {high + partial:.0f} slots in use, claimed are {claimed:.0f}",
    )


@case(
    "MEM-05",
    "INFO",
    "idle footprint after a load has gone",
    source="kvcached: bench_idle_footprint",
    needs="completions restart",
    kills="F04",
    oracle="report",
)
async def footprint(ctx: Context) -> None:
    import psutil

    pids = ctx.options.pids
    assert pids is not None

    def resident() -> float:
        return sum(psutil.Process(pid).memory_info().rss for pid in pids()) / 2**20

    before = resident()
    await ctx.together([ctx.plain_ask(100, 16) for _ in range(16)])
    await ctx.drained()
    ctx.saw(mib_before=round(before, 1), mib_after=round(resident(), 1))


@case(
    "MEM-06",
    "SHOULD",
    "n = 8 on a long prompt shares the prompt",
    source="PagedAttention: sharing",
    needs="completions n sampling ignore_eos metric:kv_usage pool",
    kills="F09",
    evidence="all eight were seen under way",
)
async def shared_prompt(ctx: Context) -> None:
    block, pool = ctx.block, ctx.features.pool_tokens or 1
    output = min(96, ctx.context // 4)
    length = min(ctx.context - output - 4, 4096, pool // 3, int(ctx.features.tokens_per_s * 40))
    length = length // block * block + 3
    ctx.need_evidence(8 * length > 2 * (length + 8 * (output + block)), "the prompt is too short for sharing to show")
    base = (await ctx.drained()).get("kv_usage", 0.0)
    prompt: Prompt = ctx.prompts.make_prompt(ctx.rng, length)
    ctx.need_evidence((ctx.features.max_num_seqs or 8) >= 8, "fewer than eight sequences may run at once")
    call = ctx.api.complete(prompt, **ctx.fields(output, n=8, temperature=1.0))
    answer, trace = await sampled(ctx, call)
    held = [(values["kv_usage"] - base) * pool for values in trace if "kv_usage" in values]
    most = length + 8 * (output + 2 * block) + block
    ctx.saw(prompt=length, most_held=round(max(held, default=0.0)), allowed=most, unshared=8 * (length + output))
    ctx.need_evidence(len(held) >= 5 and max(held) > length * 0.8, "the gauge was not seen while all eight ran")
    ctx.require(len(answer.choices) == 8, f"n=8 gave {len(answer.choices)} choices")
    ctx.require(
        max(held) <= most,
        f"eight choices of a prompt of {length} tokens hold {max(held):.0f} slots, at most {most} are due",
    )
