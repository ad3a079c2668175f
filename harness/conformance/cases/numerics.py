"""NUM: what comes out is what naive attention over the whole sequence gives, at every length and every edge."""

from __future__ import annotations

import asyncio

from harness.conformance.case import Failed, Inconclusive, Unsupported, case
from harness.conformance.context import Context
from harness.conformance.features import whole
from harness.conformance.hooks import attention_errors, poison_free, shuffle_free
from harness.conformance.prompts import Ask

ORACLE = "known, else reference scoring, else self scoring, else the answer alone"


async def sweep(ctx: Context, lengths: list[int], max_tokens: int, what: str, *, at_once: int = 8) -> None:
    """Fresh questions of exactly these lengths, judged."""
    longest = ctx.context - max_tokens - 1
    fitting = sorted({length for length in lengths if 2 <= length <= longest})
    ctx.need_evidence(fitting, f"none of the lengths fits into the context of {ctx.context} tokens")
    asks = []
    for length in fitting:
        ask = ctx.ask(length, max_tokens)
        ask.label = f"{length} tokens"
        asks.append(ask)
    baselines = await ctx.baselines(asks)
    answers = await ctx.together(asks, at_once=at_once)
    ctx.saw(lengths=[fitting[0], fitting[-1]], questions=len(asks))
    await ctx.judged(asks, answers, baselines=baselines, what=what)


def affordable(ctx: Context, lengths: list[int], max_tokens: int, seconds: float) -> list[int]:
    """As many of ``lengths`` as the engine answers in time, spread evenly.

    Decoding is counted at four, prefilling at thirty times the speed of a single stream.
    """
    speed = ctx.features.tokens_per_s
    cost = sum(length / (30 * speed) + max_tokens / (4 * speed) for length in lengths)
    keep = min(1.0, seconds * ctx.options.effort / cost) if cost else 1.0
    count = max(int(len(lengths) * keep), min(len(lengths), 3))
    return [lengths[number * len(lengths) // count] for number in range(count)]


@case(
    "NUM-01",
    "MUST",
    "greedy answers are those of naive attention",
    source="vLLM: check_logprobs_close, made stricter",
    needs="completions",
    kills="F16 F17 F18 F19 F20 F21 F22 F27 F25",
    oracle=ORACLE,
    evidence="positions that precision alone cannot decide",
)
async def greedy(ctx: Context) -> None:
    count = ctx.afford(200, 64, 50, 12)
    longest = min(ctx.context - 80, 600)
    lengths = affordable(ctx, [ctx.rng.randint(3, longest) for _ in range(count)], 64, 60)
    asks = [ctx.ask(length, 64) for length in lengths]
    # Open prompts have soft attention, which small errors of scale and position move.
    if ctx.judge.scorer is not None:
        asks_open = [Ask(ctx.prompts.uncertain(ctx.rng), 48) for _ in range(max(count // 8, 4))]
        await ctx.judged(asks_open, await ctx.together(asks_open, at_once=8), what="open prompts", least=0)
    baselines = await ctx.baselines(asks)
    answers = await ctx.together(asks, at_once=16)
    await ctx.judged(asks, answers, baselines=baselines, what="greedy answers")


@case(
    "NUM-02",
    "MUST",
    "prompt lengths one below, at and one above each multiple of a block",
    source="vLLM: known gaps of its batch invariance",
    needs="completions",
    kills="F01 F02 F07 K15 R13",
    oracle=ORACLE,
    evidence="positions that precision alone cannot decide",
)
async def block_edges(ctx: Context) -> None:
    edges = {k * size + d for size in (8, 16, 32, 64, 128, ctx.block) for k in range(1, 6) for d in (-1, 0, 1)}
    lengths = affordable(ctx, sorted(edges), 8, 60)
    must = [k * ctx.block + d for k in (1, 2, 3) for d in (-1, 0, 1)]
    await sweep(ctx, [*lengths, *must], 8, "answers at block edges")


@case(
    "NUM-03",
    "MUST",
    "decoding across three block edges from every alignment",
    source="own",
    needs="completions",
    kills="F02 F22 F17",
    oracle=ORACLE,
    evidence="positions that precision alone cannot decide",
)
async def decode_edges(ctx: Context) -> None:
    block = min(ctx.block, 64)
    alignments = list(range(block)) if block <= 32 else sorted({*range(0, block, 8), 1, 2, block - 1})
    lengths = affordable(ctx, [block + a for a in alignments], 3 * block + 2, 60)
    await sweep(ctx, lengths, 3 * block + 2, "decoding across block edges", at_once=16)


@case(
    "NUM-04",
    "MUST",
    "every KV block of a long context can be recalled",
    source="own (sentinel model)",
    needs="completions sentinel",
    kills="F01 F05 F12 F21 F22 F14 K22",
    oracle="known",
)
async def recall(ctx: Context) -> None:
    assert ctx.sentinel is not None
    length = min(ctx.context - 40, 2_000)
    blocks = max(length // ctx.block, 1)
    asks = ctx.sentinel.family(ctx.rng, length, 4, ctx.afford(blocks, length // 8, 60, 24))
    first = asks[: len(asks) // 2 : 4] or asks[:1]
    cold = [await ctx.send(ask) for ask in first]
    answers = await ctx.together(asks, at_once=8)
    ctx.saw(context=length, blocks=blocks, asked=len(asks))
    await ctx.judged([*first, *asks], [*cold, *answers], what="recall")
    whole = ctx.sentinel.ask(ctx.rng, min(length // 2, 400), min(length // 2, 400) - 8)
    await ctx.judged([whole], [await ctx.send(whole)], what="recall of a whole passage")


@case(
    "NUM-05",
    "MUST",
    "contexts around 256, 512, 1,024 and 4,096 tokens",
    source="own; where split attention changes its plan",
    needs="completions",
    kills="F22 K22",
    oracle=ORACLE,
    evidence="positions that precision alone cannot decide",
)
async def long_contexts(ctx: Context) -> None:
    lengths = [size + d for size in (256, 512, 1024, 2048, 4096) for d in (-8, -1, 0, 1)]
    fitting = [length for length in lengths if length < ctx.context - 20]
    ctx.need_evidence(fitting, f"the context of {ctx.context} tokens reaches none of the lengths")
    await sweep(ctx, affordable(ctx, fitting, 12, 90), 12, "answers in long contexts", at_once=4)


@case(
    "NUM-06",
    "SHOULD",
    "the order of the prompt's tokens counts",
    source="own",
    needs="completions",
    kills="F17 F18",
    oracle=ORACLE,
    evidence="answers that change when two tokens are swapped",
)
async def order_counts(ctx: Context) -> None:
    asks: list[Ask] = []
    changed = 0
    for _ in range(ctx.size(8, 4)):
        ask = ctx.ask(40, 12)
        twin = Ask(list(ask.prompt) if isinstance(ask.prompt, list) else ask.prompt, 12)
        if isinstance(twin.prompt, list):
            # Swap the two tokens that follow the cue's first occurrence, so that the answer must follow.
            cue = twin.prompt[-2:]
            places = [i for i in range(len(twin.prompt) - 6) if twin.prompt[i : i + 2] == cue]
            at = places[0] if places else len(twin.prompt) // 2
            if ctx.sentinel is not None and not places:
                continue  # the cue stands at the passage's end, where nothing follows to be swapped
            twin.prompt[at + 2], twin.prompt[at + 3] = twin.prompt[at + 3], twin.prompt[at + 2]
            words = (ask.expected or "").split()
            if ctx.sentinel is not None and len(words) >= 2:
                # After the swap the cue gives the second word; what follows is not certain, so one is asked for.
                twin.max_tokens, twin.expected = 1, f" {words[1]}"
        else:
            words = twin.prompt.split()
            words[2], words[3] = words[3], words[2]
            twin.prompt = " ".join(words)
        asks += [ask, twin]
    answers = await ctx.together(asks, at_once=4)
    for a, b in zip(answers[::2], answers[1::2], strict=True):
        changed += a.text[: len(b.text)] != b.text
    ctx.saw(changed=changed)
    known = [(ask, answer) for ask, answer in zip(asks, answers, strict=True) if ctx.sentinel is None or ask.expected]
    if ctx.sentinel is None and ctx.judge.scorer is None:
        raise Inconclusive("nothing scores the answers to swapped prompts")
    await ctx.judged(
        [ask for ask, _ in known], [answer for _, answer in known], what="answers to swapped prompts", least=4
    )
    ctx.need_evidence(changed, "no answer changed when two tokens were swapped")


@case(
    "NUM-07",
    "MUST",
    "the engine's attention is naive attention over a grid of shapes",
    source="own",
    needs="debug_hooks",
    kills="F16 F20",
    oracle="naive fp32 attention inside the engine",
)
async def kernel_grid(ctx: Context) -> None:
    rows = await attention_errors(ctx, ctx.size(200, 60))
    limit = {"fp32": 1e-4, "fp16": 2e-3}.get(ctx.limits.name, 2e-2)
    worst = max(rows, key=lambda row: row["error"])
    ctx.saw(shapes=len(rows), worst=worst, limit=limit)
    ctx.need_evidence(rows, "no shape was checked")
    ctx.require(
        worst["error"] <= limit,
        f"attention differs from naive attention by {worst['error']:.2g}, limit {limit:g}",
        shape=worst,
    )


@case(
    "NUM-08",
    "SHOULD",
    "contexts one below, at and one above the sliding window",
    source="own",
    needs="completions window",
    kills="F21",
    oracle=ORACLE,
    evidence="positions that precision alone cannot decide",
)
async def window_edges(ctx: Context) -> None:
    window = ctx.features.window or 0
    if ctx.judge.scorer is None:
        raise Unsupported("a model with a window can only be judged by scoring")
    lengths = [window + d for d in (-2, -1, 0, 1, 2, ctx.block)] + [2 * window + 1]
    await sweep(ctx, lengths, 12, "answers around the window", at_once=2)


@case(
    "NUM-09",
    "MUST",
    "a prefill that is cut into chunks equals a whole one",
    source="vLLM: test_chunked_prefill_batch_invariance",
    needs="completions",
    kills="F19 F17 R13",
    oracle=ORACLE,
    evidence="prompts longer than a step's token budget, or prefilled beside others",
)
async def chunked_prefill(ctx: Context) -> None:
    budget = whole(ctx.features.info.settings.get("max_num_batched_tokens")) or 0
    longest = ctx.context - 40
    base = budget if 0 < budget <= longest // 2 else min(512, longest // 2)
    lengths = [base - 1, base, base + 1, base + ctx.block + 3, 2 * base - 1, 2 * base, 2 * base + 1]
    lengths = affordable(ctx, [length for length in lengths if length <= longest], 8, 60)
    asks = [ctx.ask(length, 8) for length in lengths]
    runners = [ctx.ask(20, 96) for _ in range(4)]
    baselines = await ctx.baselines([*asks, *runners])
    beside = asyncio.ensure_future(ctx.together(runners))
    await asyncio.sleep(0.02)
    answers = await ctx.together(asks, at_once=len(asks))
    others = await beside
    ctx.saw(lengths=lengths, step_budget=budget or None)
    ctx.need_evidence(not budget or max(lengths) > budget or len(lengths) > 2, "no prompt was long enough to be cut")
    await ctx.judged([*asks, *runners], [*answers, *others], baselines=baselines, what="answers after chunked prefills")


@case(
    "NUM-10",
    "SHOULD",
    "the declared precision is the real one",
    source="DiFR, arXiv 2511.20621",
    needs="logprobs reference token_ids id_prompts",
    kills="F15 F25",
    oracle="reference: mean absolute difference of log-probabilities",
    evidence="tokens whose log-probabilities can differ at all",
)
async def declared_precision(ctx: Context) -> None:
    reference = ctx.judge.reference
    assert reference is not None
    count = ctx.afford(48, 64, 60, 16)
    differences: list[float] = []
    asks = [Ask(ctx.prompts.uncertain(ctx.rng), 64, fields={"temperature": 1.0}) for _ in range(count)]
    asks += [ctx.plain_ask(ctx.rng.randint(40, 300), 32) for _ in range(max(count // 4, 4))]
    answers = await ctx.together(asks, at_once=16)
    for ask, answer in zip(asks, answers, strict=True):
        ids, scores = answer.first.token_ids(), answer.first.scores
        prompt = ask.prompt if isinstance(ask.prompt, list) else await ctx.judge.tokenize(ask.prompt)
        if not ids or not scores or prompt is None or len(ids) != len(scores):
            continue
        for mine, theirs in zip(scores, await reference.score(prompt, ids), strict=True):
            # A token that is certain stays certain at any precision, and says nothing.
            if mine.logprob is not None and -15 < theirs.logprob < -1e-3:
                differences.append(abs(mine.logprob - theirs.logprob))
    ctx.stand_on("reference")
    ctx.need_evidence(len(differences) >= 50, f"only {len(differences)} tokens are uncertain enough to tell")
    mean = sum(differences) / len(differences)
    ctx.saw(tokens=len(differences), mean_difference=round(mean, 6), limit=ctx.limits.drift, declared=ctx.limits.name)
    if mean > ctx.limits.drift:
        raise Failed(
            f"log-probabilities are {mean:.2g} nats from the fp32 reference on average; declared {ctx.limits.name} explains "
            f"{ctx.limits.drift:g}"
        )


async def same_after(ctx: Context, disturb: object, what: str) -> None:
    """Answers before and after a disturbance of the pool must agree to the bit."""
    asks = ctx.asks(ctx.size(12, 6), (8, 12 * ctx.block), 24)
    before = await ctx.together(asks, at_once=1)
    await ctx.drained()
    seen = await disturb(ctx)  # type: ignore[operator]
    ctx.saw(**seen)
    after = await ctx.together(asks, at_once=1)
    for ask, a, b in zip(asks, before, after, strict=True):
        ctx.require(
            a.text == b.text, f"{what}: the answer to {ask.label} changed", before=a.text[:80], after=b.text[:80]
        )
        for one, two in zip(a.first.scores or [], b.first.scores or [], strict=False):
            ctx.require(
                two.logprob is not None
                and one.logprob is not None
                and abs(one.logprob - two.logprob) <= ctx.limits.jump,
                f"{what}: a log-probability of {ask.label} changed from {one.logprob} to {two.logprob}",
            )
    crowd = ctx.asks(ctx.size(16, 8), (4, 6 * ctx.block), 24)
    await ctx.judged(crowd, await ctx.together(crowd), what=what, least=0)


@case(
    "NUM-11",
    "MUST",
    "the physical order of blocks does not matter",
    source="own",
    needs="completions debug_hooks",
    kills="F01 F02 F11",
    oracle="equality before and after",
)
async def block_order(ctx: Context) -> None:
    await same_after(ctx, shuffle_free, "after the free blocks were shuffled")


@case(
    "NUM-12",
    "MUST",
    "what lies in free blocks does not matter",
    source="own; Dao-AILab/flash-attention#1745",
    needs="completions debug_hooks",
    kills="F03 F14 F23 K1",
    oracle="equality before and after",
)
async def poisoned_blocks(ctx: Context) -> None:
    await same_after(ctx, poison_free, "after the free blocks were filled with NaN")
