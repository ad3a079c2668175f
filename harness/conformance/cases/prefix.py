"""PFX: a prefix cache makes prompts cheaper and changes nothing else.

Every case needs proof that a hit happened: ``cached_tokens`` in usage, else the engine's hit counter.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence

from harness.conformance.answer import Answer
from harness.conformance.case import Failed, Inconclusive, Unsupported, case
from harness.conformance.context import Context
from harness.conformance.hooks import hook
from harness.conformance.pressure import Squeeze
from harness.conformance.prompts import Ask

ORACLE = "known, else reference scoring, else self scoring, else the answer alone"
# How long after its start a long prompt is given up: one of these falls into the prefill of a slow engine or a fast one.
PREFILL_PAUSES_S = (0.01, 0.03, 0.1, 0.3)
HIT = "a prefix hit: cached_tokens above 0, or the hit counter rose"


class Hits:
    """Counts cached prompt tokens while a case runs, from usage or from the counter."""

    def __init__(self, ctx: Context, before: dict[str, float]) -> None:
        self._ctx = ctx
        self._before = before
        self.told = 0

    @classmethod
    async def begin(cls, ctx: Context) -> Hits:
        if not ctx.features.has("cached_tokens") and "prefix_cache_hits_total" not in ctx.features.metric_names:
            raise Inconclusive("the engine tells neither cached_tokens nor prefix hits, so a hit cannot be proved")
        return cls(ctx, await ctx.drained())

    def note(self, answers: Sequence[Answer]) -> None:
        self.told += sum(answer.cached_tokens or 0 for answer in answers)

    async def require(self, least: int = 1) -> int:
        """Tokens that were hit.  Raises Inconclusive when fewer than ``least``."""
        after = await self._ctx.drained()
        counted = after.get("prefix_cache_hits_total", 0.0) - self._before.get("prefix_cache_hits_total", 0.0)
        tokens = max(self.told, int(counted))
        self._ctx.saw(cached_tokens=tokens)
        self._ctx.need_evidence(tokens >= least, f"only {tokens} prompt tokens were found in the prefix cache")
        return tokens


def family(ctx: Context, tokens: int, max_tokens: int, count: int) -> list[Ask]:
    """Questions that share a long beginning and differ at their end."""
    if ctx.sentinel is not None:
        return ctx.sentinel.family(ctx.rng, tokens, max_tokens, count)
    shared = ctx.prompts.make_prompt(ctx.rng, tokens)
    tails = [ctx.prompts.make_prompt(ctx.rng, 4 + number % 5) for number in range(count)]
    return [Ask(ctx.prompts.joined(shared, tail), max_tokens, label=f"suffix {n}") for n, tail in enumerate(tails)]


@case(
    "PFX-01",
    "MUST",
    "hot equals cold",
    source="vLLM, SGLang; tenstorrent/vllm#415",
    needs="completions",
    kills="F05 F07 F02 P8 P14",
    oracle=ORACLE,
    evidence=HIT,
)
async def hot_is_cold(ctx: Context) -> None:
    hits = await Hits.begin(ctx)
    lengths = [k * ctx.block + d for k in (1, 2, 4, 7) for d in (-1, 0, 1, 5)]
    asks = [ctx.ask(length, 16) for length in lengths if 2 < length < ctx.context - 20]
    if ctx.judge.scorer is not None:
        asks += [Ask(ctx.prompts.uncertain(ctx.rng), 16) for _ in range(4)]
    for group in (asks[:-4], asks[-4:]):
        cold = await ctx.together(group, at_once=4)
        # Three times: an error may show only when the blocks of a hit are hit again.
        hot = [await ctx.together(group, at_once=4) for _ in range(3)]
        for answers in hot:
            hits.note(answers)
        await ctx.judged(group, cold, baselines=cold, what="cold answers", least=0)
        for number, answers in enumerate(hot, 1):
            await ctx.judged(group, answers, baselines=cold, what=f"answers of repeat {number}", least=0)
        compare_scores(ctx, cold, hot[-1])
    await hits.require(ctx.block)


def compare_scores(ctx: Context, cold: Sequence[Answer], hot: Sequence[Answer]) -> None:
    """Raises Failed when a token's log-probability moved more than precision explains."""
    for first, second in zip(cold, hot, strict=True):
        for a, b in zip(first.first.scores or [], second.first.scores or [], strict=False):
            if a.token != b.token or a.logprob is None or b.logprob is None or a.logprob < -15:
                break
            if abs(a.logprob - b.logprob) > ctx.limits.jump:
                raise Failed(f"the log-probability of {a.token!r} is {a.logprob:.4f} cold and {b.logprob:.4f} hot")


@case(
    "PFX-02",
    "MUST",
    "shared prefixes of every length from 1 to four blocks",
    source="SGLang: prefix mode of test_deterministic",
    needs="completions id_prompts",
    kills="F07 F02 P8 P14",
    oracle=ORACLE,
    evidence=HIT,
)
async def every_length(ctx: Context) -> None:
    hits = await Hits.begin(ctx)
    block = ctx.block
    lengths = (
        list(range(1, 4 * block + 2))
        if block <= 32
        else [k * block + d for k in range(4) for d in (-2, -1, 0, 1, 2, 9)]
    )
    lengths = [length for length in lengths if 1 <= length < ctx.context // 2]
    if ctx.features.tokens_per_s < 100:
        lengths = lengths[:: max(len(lengths) // 24, 1)]
    base = ctx.prompts.exact(ctx.rng, 4 * block + 2)
    await ctx.generate(base, 1)
    asks = []
    for length in lengths:
        fresh = ctx.ask(max(9, 2 * block), 6)
        assert isinstance(fresh.prompt, list)
        # The shared beginning is filler to the question that follows it; with the sentinel, whose answers need their
        # words once only, it must not hold any of them.
        shared = neutral(ctx, base[:length], fresh.prompt)
        prompt = [*shared, *fresh.prompt[len(ctx.prompts.start) :]]
        asks.append(Ask(prompt, 6, label=f"{length} shared", expected=fresh.expected))
    warm = [await ctx.generate(ask.prompt[:length], 1) for ask, length in zip(asks, lengths, strict=True)]
    hits.note(warm)
    baselines = await ctx.baselines(asks)
    answers = await ctx.together(asks, at_once=8)
    hits.note(answers)
    await ctx.judged(asks, answers, baselines=baselines, what="answers behind a shared prefix")
    again = await ctx.together(asks, at_once=8)
    hits.note(again)
    await ctx.judged(asks, again, baselines=baselines, what="repeated answers behind a shared prefix")
    await hits.require()


def neutral(ctx: Context, shared: list[int], question: list[int]) -> list[int]:
    """``shared`` without effect on the answer: for the sentinel its words become bytes."""
    if ctx.sentinel is None:
        return shared
    start = len(ctx.prompts.start)
    return shared[:start] + [4 + token % 250 for token in shared[start:]]


@case(
    "PFX-03",
    "MUST",
    "the same prefix with different suffixes, in parallel",
    source="own",
    needs="completions",
    kills="F05 F09 K9",
    oracle=ORACLE,
    evidence=HIT,
)
async def parallel_suffixes(ctx: Context) -> None:
    hits = await Hits.begin(ctx)
    asks = family(ctx, min(8 * ctx.block, ctx.context // 2), 12, ctx.afford(24, 30, 30, 6))
    baselines = await ctx.baselines(asks)
    hits.note([await ctx.send(asks[0])])
    answers = await ctx.together(asks, at_once=len(asks))
    hits.note(answers)
    await ctx.judged(asks, answers, baselines=baselines, what="answers that share a prefix")
    await hits.require()


@case(
    "PFX-04",
    "MUST",
    "the content of a block alone is not its key: equal blocks behind different parents",
    source="GHSA-rm76-4mrf-v9r8; vLLM: docs/design/prefix_caching.md",
    needs="completions id_prompts",
    kills="F05 F06",
    oracle=ORACLE,
    evidence="the equal blocks were in the cache when they came behind another parent",
)
async def other_parent(ctx: Context) -> None:
    hits = await Hits.begin(ctx)
    block, start = ctx.block, len(ctx.prompts.start)
    asks: list[Ask] = []
    if ctx.sentinel is not None:
        from workloads.sentinel import Deck, spell

        for _ in range(ctx.size(6, 3)):
            deck = Deck(ctx.rng.randrange(2**31))
            # Cue words whose successor lies in the first block, different in each parent; the rest is the same.
            passage = deck.deal((4 * block - 8) // 2 * 2)
            head, tail = list(passage.tokens[: block - start]), list(passage.tokens[block - start :])
            for _ in range(3):
                mixed = head[:]
                ctx.rng.shuffle(mixed)
                at = ctx.rng.randrange(len(mixed) - 3)
                prompt = [*ctx.prompts.start, *mixed, *tail, mixed[at], mixed[at + 1]]
                asks.append(Ask(prompt, 1, label="a parent", expected=spell([mixed[at + 2]])))
    else:
        tail = ctx.prompts.exact(ctx.rng, 3 * block)[start:]
        asks = [
            Ask([*ctx.prompts.exact(ctx.rng, block), *tail], 12, label=f"parent {n}") for n in range(ctx.size(12, 6))
        ]
    baselines = await ctx.baselines(asks)
    answers = [await ctx.send(ask) for ask in asks]
    again = [await ctx.send(ask) for ask in asks]
    hits.note([*answers, *again])
    await ctx.judged([*asks, *asks], [*answers, *again], baselines=[*baselines, *baselines] if baselines else None,
                     what="answers behind different parents", least=4)  # fmt: skip
    await hits.require()
    fresh = [answer.cached_tokens or 0 for answer in answers[:1]]
    ctx.saw(first_cached=fresh)


@case(
    "PFX-05",
    "SHOULD",
    "another cache salt gets no hit",
    source="vLLM PR #17045, #44701",
    needs="completions cache_salt cached_tokens",
    kills="F08",
    evidence="the same salt does get one",
)
async def salts(ctx: Context) -> None:
    prompt = ctx.prompts.make_prompt(ctx.rng, 6 * ctx.block)
    await ctx.api.complete(prompt, **ctx.fields(2, cache_salt="first"))
    same = await ctx.api.complete(prompt, **ctx.fields(2, cache_salt="first"))
    other = await ctx.api.complete(prompt, **ctx.fields(2, cache_salt="second"))
    none = await ctx.api.complete(prompt, **ctx.fields(2))
    ctx.saw(same_salt=same.cached_tokens, other_salt=other.cached_tokens, no_salt=none.cached_tokens)
    ctx.need_evidence(same.cached_tokens, "even the same salt got no hit")
    ctx.require(not other.cached_tokens, f"another salt found {other.cached_tokens} tokens in the cache")
    ctx.require(not none.cached_tokens, f"a call without salt found {none.cached_tokens} tokens of a salted one")


@case(
    "PFX-06",
    "MUST",
    "a second turn that reuses generated tokens",
    source="SGLang: decode-cache-hit test",
    needs="completions id_prompts token_ids",
    kills="F10 F17",
    oracle=ORACLE,
    evidence="the hit reaches into the generated tokens",
)
async def second_turn(ctx: Context) -> None:
    hits = await Hits.begin(ctx)
    deep = 0
    asks, answers = [], []
    for number in range(ctx.size(8, 4)):
        ask = ctx.ask(ctx.block + 3 + number, 3 * ctx.block)
        first = await ctx.send(ask)
        ids = first.first.token_ids() or []
        ctx.need_evidence(ids, "no token ids were returned")
        assert isinstance(ask.prompt, list)
        turn = Ask([*ask.prompt, *ids], 12, label=f"conversation {number}")
        if ctx.sentinel is not None and ask.expected:
            # Its rule goes on repeating the passage: what is due is what a longer first answer would have been.
            turn.expected = await longer(ctx, ask, first, 12)
        second = await ctx.send(turn)
        deep += (second.cached_tokens or 0) > len(ask.prompt)
        hits.note([second])
        asks.append(turn)
        answers.append(second)
    await ctx.judged(asks, answers, baselines=answers, what="second turns", least=0)
    await hits.require()
    ctx.saw(hits_into_generated=deep)


async def longer(ctx: Context, ask: Ask, first: Answer, more: int) -> str | None:
    """The next tokens of a known answer: a circle, read from the expected text once it has come round; else unknown."""
    from workloads.sentinel import continuation, spell

    ids = first.first.token_ids() or []
    if not isinstance(ask.prompt, list) or first.text.strip() != (ask.expected or "").strip():
        return None
    due = continuation([*ask.prompt, *ids], more)
    return spell(due) if len(due) == more else None


@case(
    "PFX-07",
    "MUST",
    "an evicted prefix is computed again and right",
    source="GRIEF; vLLM #37076",
    needs="completions pool id_prompts",
    kills="F12 F03 P1 A3",
    oracle=ORACLE,
    evidence="the pool was filled over in between",
)
async def evicted(ctx: Context) -> None:
    pool = ctx.features.pool_tokens or 0
    asks = family(ctx, min(10 * ctx.block, ctx.context // 2, pool // 6), 10, 6)
    baselines = await ctx.baselines(asks)
    hits = await Hits.begin(ctx)
    first = await ctx.together(asks, at_once=2)
    hits.note(first)
    await hits.require()  # without a cache nothing can be evicted from it
    # Fill the pool one and a half times with prompts that share nothing.
    length = min(ctx.context - 10, max(pool // 8, 64))
    fillers = [ctx.plain_ask(length, 1) for _ in range(int(1.6 * pool / length) + 1)]
    cost = len(fillers) * length / (ctx.features.tokens_per_s * 30)
    ctx.need_evidence(
        cost < 90, f"filling the pool of {pool} tokens would take about {cost:.0f} s; start it with a smaller one"
    )
    await ctx.together(fillers, at_once=4)
    again = await ctx.together(asks, at_once=2)
    kept = sum(answer.cached_tokens or 0 for answer in again[:1])
    ctx.saw(filled_tokens=len(fillers) * length, pool=pool, still_cached=kept)
    await ctx.judged([*asks, *asks], [*first, *again], baselines=[*baselines, *baselines] if baselines else None,
                     what="answers after eviction")  # fmt: skip


@case(
    "PFX-08",
    "MUST",
    "hits while the pool is nearly full and churning",
    source="vLLM #50702",
    needs="completions pool id_prompts",
    kills="F12 F03 F14 F15 P1 A3",
    oracle=ORACLE,
    evidence=HIT,
)
async def churn(ctx: Context) -> None:
    hits = await Hits.begin(ctx)
    plan = Squeeze.plan(ctx, demand=1.3)
    size = min(max(plan.prompt, 3 * ctx.block), ctx.context // 2)
    groups = [family(ctx, size, 16, 6) for _ in range(max(int(1.3 * plan.pool / size) + 1, 4))]
    groups = groups[: ctx.afford(len(groups), 6 * 30, 60, 4)]
    # Near each other in time: the members of a group come while its prefix may still be cached.
    order = sorted((n + 0.6 * m, n, m) for n in range(len(groups)) for m in range(6))
    asks = [groups[group][member] for _, group, member in order]
    baselines = await ctx.baselines(asks)
    answers = await ctx.together(asks, at_once=max(plan.count, 8))
    hits.note(answers)
    await ctx.judged(asks, answers, baselines=baselines, what="answers while the cache churns")
    await hits.require()


@case(
    "PFX-09",
    "SHOULD",
    "cached_tokens is whole blocks, and less than the prompt",
    source="vLLM: only full blocks are cached",
    needs="completions cached_tokens",
    kills="F61 F07",
    evidence=HIT,
)
async def whole_blocks(ctx: Context) -> None:
    seen, odd = [], []
    for length in sorted({k * ctx.block + d for k in (1, 2, 3, 5) for d in (-1, 0, 1)}):
        prompt = ctx.prompts.make_prompt(ctx.rng, length)
        cold = await ctx.api.complete(prompt, **ctx.fields(2))
        hot = await ctx.api.complete(prompt, **ctx.fields(2))
        total = hot.prompt_tokens or length
        cached = hot.cached_tokens or 0
        seen.append(cached)
        ctx.require(
            (cold.cached_tokens or 0) < max(ctx.block, 2) * 2,
            f"a prompt that was never sent before has {cold.cached_tokens} of {total} tokens cached",
        )
        ctx.require(cached <= total, f"{cached} of {total} prompt tokens are told to be cached")
        ctx.require(cached < total, f"all {total} tokens of a prompt are told to be cached; the last must be computed")
        if ctx.features.block_size and cached % ctx.features.block_size:
            odd.append((total, cached))
    ctx.saw(cached=seen, block_size=ctx.features.block_size)
    ctx.need_evidence(any(seen), "no hit was reported")
    paged = ctx.features.info.kind in ("pagedbench", "vllm", "sglang")
    ctx.require(
        not odd or not paged, f"cached_tokens {odd[:1]} is no multiple of the block of {ctx.features.block_size}"
    )


@case(
    "PFX-10",
    "MUST",
    "colliding hashes do not mix prompts",
    source="vLLM PR #12621",
    needs="completions debug_hooks id_prompts",
    kills="F06",
    oracle=ORACLE,
    evidence="hashes cut to a few bits, and hits by them",
)
async def forced_collisions(ctx: Context) -> None:
    await hook(ctx, "hash_bits", {"bits": 4})
    try:
        asks = ctx.asks(ctx.size(64, 32), (2 * ctx.block, 4 * ctx.block), 4)
        baselines = await ctx.baselines(asks)
        answers = [await ctx.send(ask) for ask in asks]
        again = await ctx.together(asks, at_once=8)
        if ctx.features.has("cached_tokens"):
            hits = sum(answer.cached_tokens or 0 for answer in again)
            ctx.need_evidence(hits, "no prompt was found in the prefix cache, so no hash decided anything")
        await ctx.judged([*asks, *asks], [*answers, *again], baselines=[*baselines, *baselines] if baselines else None,
                         what="answers with colliding hashes")  # fmt: skip
    finally:
        await hook(ctx, "hash_bits", {"bits": None})


@case(
    "PFX-11",
    "INFO",
    "claimed hits are real: a hot prefix answers in less than half the time",
    source="own",
    needs="completions cached_tokens",
    kills="F61",
    oracle="paired times",
    evidence=HIT,
)
async def hits_are_real(ctx: Context) -> None:
    length = min(ctx.context - 8, 4096, int(ctx.features.tokens_per_s * 60))
    short = [await ctx.api.complete(ctx.prompts.make_prompt(ctx.rng, 9), **ctx.fields(1)) for _ in range(4)]
    way_s = min(answer.exchange.seconds for answer in short)  # what a call takes whatever its prompt
    cold_s: list[float] = []
    hot_s: list[float] = []
    told = 0
    for _ in range(3):
        prompt = ctx.prompts.make_prompt(ctx.rng, length)
        cold_s.append((await ctx.api.complete(prompt, **ctx.fields(1))).exchange.seconds - way_s)
        hot = [await ctx.api.complete(prompt, **ctx.fields(1)) for _ in range(3)]
        told += hot[-1].cached_tokens or 0
        hot_s.append(min(answer.exchange.seconds for answer in hot) - way_s)
    ctx.saw(
        prompt=length, short_call_s=round(way_s, 4), cold_s=rounded(cold_s), hot_s=rounded(hot_s), cached_tokens=told
    )
    if not told:
        raise Inconclusive("no hit was claimed")
    if min(cold_s) < 0.05:
        raise Inconclusive(f"a cold prompt of {length} tokens takes only {min(cold_s):.3f} s more than a short one")
    ratio = statistics.median(hot / cold for hot, cold in zip(hot_s, cold_s, strict=True))
    if ratio >= 0.5:
        raise Failed(
            f"{told // 3} of {length} tokens are told to be cached, but a hot prompt takes {ratio:.2f} of a cold one"
        )


def rounded(seconds: list[float]) -> list[float]:
    return [round(value, 4) for value in seconds]


@case(
    "PFX-12",
    "MUST",
    "equal prompts that start together, and again after one was cut off",
    source="vLLM #43569, #41400 (a block visible before it is computed)",
    needs="completions stream",
    kills="F12 F03 P6 P12 P17 A5",
    oracle=ORACLE,
    evidence="equal prompts in flight together",
)
async def together_and_cut(ctx: Context) -> None:
    asks = []
    for _ in range(ctx.size(4, 2)):
        ask = ctx.ask(min(6 * ctx.block + 3, ctx.context // 2), 12)
        baselines = await ctx.baselines([ask])
        body = {"prompt": ask.prompt, **ctx.fields(40)}
        long = {"prompt": ctx.prompts.make_prompt(ctx.rng, min(ctx.context // 2, 2048)), **ctx.fields(40)}
        cut = [ctx.api.stream("/v1/completions", body, cancel_after=1), hang_up_early(ctx, body, 0.005)]
        cut += [hang_up_early(ctx, long, pause_s) for pause_s in PREFILL_PAUSES_S]
        copies = [ctx.send(ask) for _ in range(6)]
        answers = await asyncio.gather(*copies, *cut)
        later = [await ctx.send(ask) for _ in range(2)]
        good = [*(answer for answer in answers if isinstance(answer, Answer)), *later]
        await ctx.judged([ask] * len(good), good, baselines=baselines * len(good) if baselines else None,
                         what="equal prompts that start together", least=0)  # fmt: skip
        asks.append(ask)
    if not asks:
        raise Unsupported("nothing was asked")


async def hang_up_early(ctx: Context, body: dict[str, object], pause_s: float) -> None:
    """Leave while the prompt is still being computed."""
    task = asyncio.ensure_future(ctx.api.stream("/v1/completions", body))
    await asyncio.sleep(pause_s)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@case(
    "PFX-13",
    "SHOULD",
    "a prompt that was just answered is found whole: every full block before its last token",
    source="vLLM: hits are the longest cached prefix; nano-vllm commit 9fa256a",
    needs="completions cached_tokens id_prompts",
    kills="P2",
    evidence=HIT,
)
async def whole_prefix(ctx: Context) -> None:
    found = []
    for blocks in (2, 3, 5):
        prompt = ctx.prompts.make_prompt(ctx.rng, blocks * ctx.block + 3)
        await ctx.api.complete(prompt, **ctx.fields(2))
        # Idle in between, so that nothing can have been evicted; the second asking may be the first to be cached.
        cached = max([(await ctx.api.complete(prompt, **ctx.fields(2))).cached_tokens or 0 for _ in range(2)])
        found.append((blocks, cached))
    ctx.saw(blocks_and_cached_tokens=found, block_size=ctx.features.block_size)
    ctx.need_evidence(any(cached for _, cached in found), "no hit was reported")
    short = [(blocks, cached) for blocks, cached in found if cached < blocks * ctx.block]
    if short and ctx.features.block_size is None:
        raise Inconclusive("the size of a block is not known, so neither is how much should be found")
    for blocks, cached in short:
        raise Failed(f"of a prompt with {blocks} full blocks of {ctx.block} only {cached} tokens are found again")
