"""SMP: sampled tokens follow the distribution that the parameters describe."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping

from harness.conformance.answer import Answer, parting
from harness.conformance.case import Failed, case
from harness.conformance.context import Context
from harness.conformance.draws import OpenPrompt, draw, drawn_as, neutral, open_prompts
from harness.conformance.prompts import Ask
from harness.conformance.stats import ALPHA, binomial_low, fisher_high, g_test

SPEC = "OpenAI OpenAPI 2026-08-21"
STRONG_G = 60  # twice what rejects at alpha 1e-4 with seven degrees of freedom (29.9)


@case(
    "SMP-01",
    "SHOULD",
    "temperature 0, alone, 20 times: one output",
    source="SGLang: test_deterministic",
    needs="completions",
    kills="F35 F36",
    oracle="equality",
)
async def repeats(ctx: Context) -> None:
    for number in range(ctx.size(4, 2)):
        prompt = ctx.prompts.uncertain(ctx.rng) if number % 2 else ctx.prompts.make_prompt(ctx.rng, 20)
        # The first fills the prefix cache; sound engines may answer a tie otherwise from it.
        await ctx.api.complete(prompt, **ctx.fields(24))
        texts = Counter([(await ctx.api.complete(prompt, **ctx.fields(24))).text for _ in range(ctx.size(20, 8))])
        ctx.require(
            len(texts) == 1, f"{len(texts)} different outputs of one prompt at temperature 0", outputs=list(texts)[:3]
        )


@case(
    "SMP-02",
    "MUST",
    "at temperature 1 first tokens come as often as softmax says",
    source="own",
    needs="logprobs sampling",
    kills="E10",
    oracle="G-test, alpha 1e-4, a second sample confirms",
    evidence="prompts whose next token is open",
)
async def frequencies(ctx: Context) -> None:
    count = ctx.afford(2000, 1, 40, 400)
    tests = []
    for prompt in await open_prompts(ctx, ctx.size(4, 2)):
        what = "draws do not follow the distribution"
        _, p = await drawn_as(ctx, prompt.prompt, prompt.probabilities, count, what, **neutral(ctx))
        tests.append(round(p, 5))
    ctx.saw(draws_each=count, p_values=tests)


@case(
    "SMP-13",
    "SHOULD",
    "what a call leaves out is temperature 1 and top_p 1: nothing is cut",
    source=f"{SPEC}: temperature, top_p (default 1)",
    needs="logprobs sampling",
    kills="E9 E10",
    oracle="G-test, alpha 1e-4, a second sample confirms",
    evidence="prompts at which a nucleus of 0.95 would show",
)
async def defaults(ctx: Context) -> None:
    count = ctx.afford(1200, 1, 30, 400)
    strength = 0.0
    for prompt in await open_prompts(ctx, ctx.size(3, 2)):
        # In a nucleus all others become likelier by so many nats; G over the draws would be near twice their sum.
        inside = sum(prompt.probabilities[token] for token in prompt.nucleus(0.95))
        strength = max(strength, -2 * count * math.log(inside / sum(prompt.probabilities.values())))
        what = "draws without sampling parameters do not follow the distribution"
        await drawn_as(ctx, prompt.prompt, prompt.probabilities, count, what)
    ctx.saw(draws_each=count, strength=round(strength))
    ctx.need_evidence(strength >= STRONG_G / 2, f"G would be near {strength:.0f} if a nucleus of 0.95 were cut")


@case(
    "SMP-03",
    "MUST",
    "the log-odds of tokens go with 1/T",
    source="own",
    needs="logprobs sampling",
    kills="F27",
    oracle="G-test among the tokens that are told, alpha 1e-4; a second sample confirms",
    evidence="prompts at which a temperature that is ignored, or applied twice, would show",
)
async def temperature_slope(ctx: Context) -> None:
    count = ctx.afford(1200, 1, 30, 400)
    prompts = await open_prompts(ctx, ctx.size(3, 2), low=0.3, high=0.8, gap=0.4)
    strength: Counter[str] = Counter()
    seen = []
    for prompt in prompts:
        for temperature in (0.5, 1.0, 1.5):
            expected = tempered(prompt.probabilities, temperature)
            what = f"draws at temperature {temperature:g} do not follow the log-probabilities over it"
            # Tokens that were not told have no known share at another temperature.
            counts, p = await drawn_as(
                ctx, prompt.prompt, expected, count, what, told=True, **neutral(ctx, temperature=temperature)
            )
            # What G would be near if the engine did something else instead.
            for name, wrong in (("ignored", 1.0), ("twice", temperature**2)):
                other = tempered(prompt.probabilities, wrong)
                distance = sum(q * math.log(q / expected[t]) for t, q in other.items() if q > 0 and expected[t] > 0)
                strength[name] = max(strength[name], round(2 * counts.total() * distance))
            seen.append((temperature, counts.total(), round(p, 5)))
    ctx.saw(temperature_draws_p=seen, strength=dict(strength))
    ctx.need_evidence(
        min(strength.values()) >= STRONG_G,
        f"too few draws, or too like distributions: G would be near {min(strength.values())} for a wrong temperature",
    )


def tempered(probabilities: Mapping[str, float], temperature: float) -> dict[str, float]:
    """The told tokens' shares among themselves at ``temperature``."""
    weights = {token: p ** (1 / temperature) for token, p in probabilities.items() if p > 0}
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


@case(
    "SMP-04",
    "MUST",
    "no token comes from outside the nucleus",
    source="Anthropic post-mortem 2025-09",
    needs="logprobs sampling",
    kills="F28 F36",
    oracle="support; a margin token is allowed",
    evidence="prompts whose next token is open",
)
async def nucleus(ctx: Context) -> None:
    total = ctx.afford(5000, 1, 50, 800)
    # A nucleus that reaches beyond the tokens whose probabilities are told cannot be judged.
    prompts = await open_prompts(ctx, 3, known=0.85)
    drawn = 0
    for prompt in prompts:
        for share in (0.5, 0.8):
            counts = await draw(ctx, prompt.prompt, total // 6, **neutral(ctx, top_p=share))
            inside = prompt.nucleus(share)
            # Rounding decides who is last: the next in rank, and whatever ties with it, is not judged.
            margin = [t for t in prompt.ranked[len(inside) :] if tie(ctx, prompt, inside[-1], t)]
            margin += prompt.ranked[len(inside) : len(inside) + 1]
            strangers = {token: n for token, n in counts.items() if token not in inside and token not in margin}
            drawn += sum(counts.values())
            ctx.require(
                not strangers,
                f"with top_p {share} {sum(strangers.values())} draws are outside the nucleus",
                tokens=strangers,
            )
    ctx.saw(draws=drawn)


def tie(ctx: Context, prompt: OpenPrompt, first: str, second: str) -> bool:
    """Whether two tokens are too near each other for their order to be certain."""
    p, q = prompt.probabilities[first], prompt.probabilities[second]
    return p <= 0 or q <= 0 or abs(math.log(p / q)) <= ctx.limits.regret


@case(
    "SMP-05",
    "MUST",
    "the best token is never lost to top_p and top_k",
    source="Anthropic post-mortem 2025-09",
    needs="logprobs sampling",
    kills="F28",
    oracle="binomial, 4 sigma; a second sample confirms",
    evidence="prompts whose next token is open",
)
async def best_token(ctx: Context) -> None:
    count = ctx.afford(1500, 1, 30, 400)
    for prompt in await open_prompts(ctx, ctx.size(3, 2)):
        best = prompt.ranked[0]
        fields: list[dict[str, object]] = [{"top_p": 0.95}]
        if ctx.features.has("top_k"):
            fields += [{"top_k": 5}, {"top_k": 20, "top_p": 0.9}]
        for one in fields:
            # Filters only add to the best token's share, so its unfiltered probability is a lower bound.
            expected = prompt.probabilities[best]
            for attempt in range(2):
                counts = await draw(ctx, prompt.prompt, count, **neutral(ctx, **one))
                p = binomial_low(counts[best], sum(counts.values()), expected)
                if p > 3e-5:
                    break
                if attempt:
                    raise Failed(
                        f"with {one} the best token came in {counts[best]} of {sum(counts.values())} draws, "
                        f"at least {expected:.1%} are due",
                        drawn=dict(counts.most_common(5)),
                    )
    ctx.saw(draws_each=count)


@case(
    "SMP-06",
    "SHOULD",
    "top_k = k lets exactly the k best through",
    source="own",
    needs="logprobs sampling top_k",
    kills="F29",
    oracle="support; ties at the border are allowed",
    evidence="prompts with k clearly ranked tokens",
)
async def top_k(ctx: Context) -> None:
    count = ctx.afford(600, 1, 20, 200)
    checked = 0
    for prompt in await open_prompts(ctx, ctx.size(6, 3)):
        for k in (1, 2, 3):
            if len(prompt.ranked) <= k or prompt.gap(k) <= max(ctx.limits.regret, 1e-4):
                continue
            counts = await draw(ctx, prompt.prompt, count, **neutral(ctx, top_k=k))
            allowed = prompt.ranked[:k]
            strangers = {token: n for token, n in counts.items() if token not in allowed}
            ctx.require(not strangers, f"with top_k {k} tokens beyond the {k} best came", tokens=strangers)
            mass = sum(prompt.probabilities[token] for token in allowed)
            missing = [t for t in allowed if counts[t] == 0 and prompt.probabilities[t] / mass * count > 20]
            ctx.require(
                not missing, f"with top_k {k} the token {missing[:1]} among the {k} best never came", drawn=dict(counts)
            )
            checked += 1
    ctx.saw(checked=checked, draws_each=count)
    ctx.need_evidence(checked >= 2, f"only {checked} prompts have a clear border")


async def open_asks(ctx: Context, count: int, max_tokens: int, **fields: object) -> list[Ask]:
    """Questions from open prompts; from any prompt where no distribution is to be had."""
    if ctx.features.has("logprobs"):
        return [Ask(one.prompt, max_tokens, fields=dict(fields)) for one in await open_prompts(ctx, count)]
    return [Ask(ctx.prompts.uncertain(ctx.rng), max_tokens, fields=dict(fields)) for _ in range(count)]


@case(
    "SMP-07",
    "SHOULD",
    "the same seed repeats, another differs",
    source=f"{SPEC}: seed (best effort)",
    needs="completions seed",
    kills="F30",
    oracle="equality",
    evidence="prompts whose next token is open",
)
async def seeds(ctx: Context) -> None:
    asks = await open_asks(ctx, 12, 8, temperature=1.0)

    async def answers(seed: int, at_once: int) -> list[Answer]:
        return await ctx.together(asks, at_once=at_once, seed=seed)

    first = await answers(41, 1)
    again = await answers(41, 1)
    pairs = [(a, b) for a, b in zip(first, again, strict=True) if not equals_explain(ctx, a, b)]
    same = sum(a.text == b.text for a, b in pairs)
    ctx.saw(compared=len(pairs))
    ctx.require(same >= len(pairs) - 1, f"the same seed gave the same output for {same} of {len(pairs)} prompts")
    ctx.need_evidence(len(pairs) >= 4, f"{len(asks) - len(pairs)} of {len(asks)} answers part at equally likely tokens")
    texts = {tuple(answer.text for answer in await answers(seed, 1)) for seed in (42, 43, 44)}
    ctx.require(texts != {tuple(answer.text for answer in first)}, "four different seeds gave the same outputs")
    crowd = await answers(41, 16)
    ctx.saw(equal_in_a_crowd=sum(a.text == b.text for a, b in zip(first, crowd, strict=True)), of=len(asks))


def equals_explain(ctx: Context, one: Answer, other: Answer) -> bool:
    """Whether two answers part at tokens that are equally likely.

    One draw finds either of them, by their order among each other: numeric noise decides it where an engine sorts.
    """
    parted = parting(one, other)
    if parted is None or parted[0].logprob is None or parted[1].logprob is None:
        return False
    return abs(parted[0].logprob - parted[1].logprob) <= ctx.limits.drift


@case(
    "SMP-08",
    "MUST",
    "64 equal prompts with different seeds do not agree more than chance lets them",
    source="own",
    needs="completions",
    kills="F30 F43",
    oracle="G-test of the first tokens, a second sample confirms; else Fisher's test of the texts against those at 0",
    evidence="prompts whose next token is open",
)
async def collisions(ctx: Context) -> None:
    if not ctx.features.has("logprobs"):
        for seeded in (True, False) if ctx.features.has("seed") else (False,):
            await livelier(ctx, seeded=seeded)
        return
    for prompt in await open_prompts(ctx, 2, high=0.7):
        for seeded in (True, False):
            for attempt in range(2):
                counts: Counter[str] = Counter()
                asks = [
                    Ask(prompt.prompt, 1, fields={"temperature": 1.0, **({"seed": s} if seeded else {})})
                    for s in range(64)
                ]
                for answer in await ctx.together(asks, at_once=64):
                    counts[answer.first.scores[0].token if answer.first.scores else answer.text] += 1
                statistic, p, _ = g_test(counts, prompt.probabilities)
                if p >= ALPHA:
                    break
                if attempt:
                    raise Failed(
                        f"64 {'seeded' if seeded else 'unseeded'} answers do not follow the distribution: "
                        f"G {statistic:.1f}, p {p:.1g}",
                        drawn=dict(counts.most_common(5)),
                    )


async def livelier(ctx: Context, *, seeded: bool) -> None:
    """Answers at temperature 1.5 differ more than those at 0, which batching alone can make differ.

    Prompt by prompt, since the answer of one may be nearly certain at any temperature.
    """
    each = ctx.size(24, 12)
    stray = {0.0: 0, 1.5: 0}
    for number in range(1, 7):
        prompt = ctx.prompts.uncertain(ctx.rng)
        for temperature in stray:
            asks = [
                Ask(prompt, 24, fields={"temperature": temperature, **({"seed": seed} if seeded else {})})
                for seed in range(each)
            ]
            texts = Counter(answer.text for answer in await ctx.together(asks))
            stray[temperature] += each - texts.most_common(1)[0][1]
        p = fisher_high(stray[1.5], stray[0.0], number * each)
        ctx.saw(
            seeded=seeded, prompts=number, answers_each=number * each, unlike_at_0=stray[0.0], unlike_at_15=stray[1.5]
        )
        if p < ALPHA:
            return
    raise Failed(
        f"temperature 1.5 does not make {'seeded' if seeded else 'unseeded'} answers differ more than 0 does: of "
        f"{number * each} to {number} prompts {stray[1.5]} were unlike the most common one, {stray[0.0]} at 0, p {p:.2g}",
        most_common=texts.most_common(1)[0][0][:80],
    )


@case(
    "SMP-09",
    "MUST",
    "penalties of one request do not touch another",
    source="own; vllm-project/vllm#5639 kind",
    needs="logprobs penalties",
    kills="F31",
    oracle="scored by the reference or the engine, else the answer given alone",
    evidence="open prompts, where a penalty would change the answer",
)
async def private_penalties(ctx: Context) -> None:
    plain = await open_asks(ctx, ctx.size(24, 12), 16)
    baselines = await ctx.baselines(plain)
    loud = [
        Ask(a.prompt, 24, fields={"frequency_penalty": 2.0, "presence_penalty": 2.0}) for a in plain for _ in range(2)
    ]
    mixed = [ask for pair in zip(loud[::2], plain, loud[1::2], strict=True) for ask in pair]
    answers = await ctx.together(mixed, at_once=len(mixed))
    quiet = answers[1::3]
    changed = sum(not b.text.startswith(a.text) for a, b in zip(quiet, answers[0::3], strict=True))
    ctx.saw(answers_changed_by_penalties=changed)
    await ctx.judged(plain, quiet, baselines=baselines, what="plain answers beside penalised ones", least=0)
    ctx.need_evidence(changed, "the penalties changed no answer, so a leak could not be seen")


@case(
    "SMP-10",
    "SHOULD",
    "a penalty is subtracted for what was generated, and for nothing else",
    source=f"{SPEC}: frequency_penalty, presence_penalty",
    needs="logprobs penalties scorer token_ids id_prompts",
    kills="F31",
    oracle="replay of the rule on scored alternatives",
    evidence="positions where the penalty decides",
)
async def penalty_size(ctx: Context) -> None:
    scorer = ctx.judge.scorer
    assert scorer is not None
    decided = positions = 0
    sizes = ((0.9, 0.0), (0.0, 1.3), (0.5, 0.4))
    alone = [one.prompt for one in await open_prompts(ctx, ctx.size(10, 6))]
    # Then one prompt several times at once: all come to the same tokens, and nobody else's may count.
    prompts = alone + alone[:1] * 6
    asks = [
        Ask(prompt, 16, fields={"frequency_penalty": sizes[n % 3][0], "presence_penalty": sizes[n % 3][1]})
        for n, prompt in enumerate(prompts)
    ]
    answers = await ctx.together(asks[: len(alone)], at_once=1) + await ctx.together(asks[len(alone) :])
    for number, (one, answer) in enumerate(zip(asks, answers, strict=True)):
        frequency, presence = sizes[number % 3]
        ids = answer.first.token_ids() or []
        prompt = one.prompt if isinstance(one.prompt, list) else await ctx.judge.tokenize(one.prompt)
        if not ids or prompt is None:
            continue
        counts: Counter[str] = Counter()
        for place, score in enumerate(await scorer.score(prompt, ids, top=20)):
            found = {**dict(score.top), score.token: score.logprob}
            due = {t: v - frequency * counts[t] - presence * (counts[t] > 0) for t, v in found.items()}
            best = max(due, key=lambda token: due[token])
            positions += 1
            shortfall = due[best] - due[score.token]
            ctx.require(
                shortfall <= ctx.limits.regret + 0.05,
                f"token {place} of a penalised answer is {score.token!r}; by the rule {best!r} is {shortfall:.2f} nats better",
                frequency_penalty=frequency,
                presence_penalty=presence,
                counts=dict(counts),
            )
            decided += best != max(found, key=lambda token: found[token])
            counts[score.token] += 1
    ctx.saw(positions=positions, decided_by_penalty=decided)
    ctx.need_evidence(decided, "no position was decided by a penalty")


@case(
    "SMP-11",
    "MUST",
    "temperature 0 takes the best of its own log-probabilities",
    source="own",
    needs="logprobs",
    kills="F35 F28 F36",
    oracle="structural",
)
async def own_best(ctx: Context) -> None:
    count = ctx.afford(64, 64, 40, 8)
    asks = [ctx.plain_ask(ctx.rng.randint(4, 60), 64) for _ in range(count)]
    asks += [Ask(ctx.prompts.uncertain(ctx.rng), 32) for _ in range(count // 4)]
    tokens = 0
    for answer in await ctx.together(asks):
        for score in answer.first.scores or []:
            tokens += 1
            if score.top and score.logprob is not None and score.logprob < score.top[0][1] - 1e-4:
                raise Failed(
                    f"{score.token!r} came at temperature 0 though {score.top[0][0]!r} is "
                    f"{score.top[0][1] - score.logprob:.3g} nats better by the engine's own count"
                )
    ctx.saw(tokens=tokens)


@case(
    "SMP-12",
    "MUST",
    "no sampled token is one that the model all but excludes",
    source="Anthropic post-mortem 2025-09; DiFR",
    needs="completions sampling token_ids scorer id_prompts",
    kills="F36 F25",
    oracle="fresh scoring of every token",
)
async def no_strangers(ctx: Context) -> None:
    scorer = ctx.judge.scorer
    assert scorer is not None
    count = ctx.afford(80, 64, 45, 12)
    asks = [ctx.plain_ask(ctx.rng.randint(8, 60), 64, temperature=1.0) for _ in range(count)]
    answers = await ctx.together(asks)
    gate = asyncio.Semaphore(4)

    async def one(ask: Ask, answer: Answer) -> int:
        ids = answer.first.token_ids()
        if not ids or not isinstance(ask.prompt, list):
            return 0
        async with gate:
            scores = await scorer.score(ask.prompt, ids)
        for place, score in enumerate(scores):
            if score.logprob < -20:
                raise Failed(f"token {place}, {score.token!r}, was sampled at a log-probability of {score.logprob:.1f}")
        return len(scores)

    outcomes = await asyncio.gather(*(one(a, b) for a, b in zip(asks, answers, strict=True)), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    tokens = sum(outcome for outcome in outcomes if isinstance(outcome, int))
    ctx.stand_on(scorer.rung)
    ctx.saw(tokens=tokens)
    ctx.need_evidence(tokens, "no sampled token could be scored")
