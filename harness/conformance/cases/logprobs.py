"""LGP: log-probabilities are what they say, and asking for them changes nothing."""

from __future__ import annotations

import math

from harness.conformance.case import Failed, Inconclusive, NonStrict, case
from harness.conformance.context import Context
from harness.conformance.draws import distribution, open_prompts
from harness.conformance.prompts import Ask
from harness.conformance.stats import k3

SPEC = "OpenAI OpenAPI 2026-08-21"

# The k3 mean estimates a divergence over tokens that the model would sample.  A prompt also holds others, far down, where
# a low precision moves the logits of sound engines by tenths of a nat: those are judged one by one, until they are noise.
UNLIKELY = -6.0  # nats
EXCLUDED = -15.0  # nats


@case(
    "LGP-01",
    "MUST",
    "log-probabilities are at most 0, sorted, sum to at most 1, and hold the chosen token",
    source=f"{SPEC}: logprobs",
    needs="logprobs",
    kills="F33",
    structural=True,
)
async def well_formed(ctx: Context) -> None:
    seen = 0
    for number in range(ctx.size(12, 6)):
        prompt = ctx.prompts.uncertain(ctx.rng) if number % 2 else ctx.prompts.make_prompt(ctx.rng, 12)
        sampled = {"temperature": 1.0} if number % 3 == 2 else {}
        answer = await ctx.api.complete(prompt, **ctx.fields(12, **sampled))
        for score in answer.first.scores or []:
            seen += 1
            ctx.require(
                score.logprob is not None and score.logprob <= 1e-5,
                f"the log-probability of {score.token!r} is {score.logprob}",
            )
            values = [value for _, value in score.top]
            ctx.require(values == sorted(values, reverse=True), f"alternatives are not sorted: {score.top}")
            mass = sum(math.exp(min(value, 1.0)) for value in values)
            ctx.require(mass <= 1.001, f"the alternatives' probabilities sum to {mass:.4f}", top=score.top)
            names = {token for token, _ in score.top}
            # A token below the last one is named apart, and of equals somebody has to be left out.
            better = bool(score.top) and score.logprob is not None and score.logprob > score.top[-1][1] + 1e-4
            ctx.require(score.token in names or not better, f"the chosen {score.token!r} is missing in {score.top}")
    ctx.saw(tokens=seen)
    # All that a small vocabulary allows, or a sure model says, must come near to 1.
    wide = await distribution(ctx, ctx.prompts.make_prompt(ctx.rng, 12))
    ctx.saw(mass_of_twenty=round(sum(wide.values()), 4))
    if ctx.sentinel is not None:
        ctx.require(
            sum(wide.values()) > 0.99, f"a certain answer's alternatives sum to {sum(wide.values()):.4f}, not 1"
        )


@case(
    "LGP-02",
    "SHOULD",
    "chat returns as many alternatives as asked for, 0 to 20",
    source=f"{SPEC}: top_logprobs",
    needs="chat_logprobs",
    kills="F33",
    structural=True,
)
async def counts(ctx: Context) -> None:
    for count in (0, 1, 5, 20):
        answer = await ctx.api.chat("Say hello.", max_tokens=6, logprobs=True, top_logprobs=count)
        scores = answer.first.scores or []
        ctx.require(scores, f"no log-probabilities came with top_logprobs {count}")
        wrong = {len(score.top) for score in scores} - {count}
        ctx.require(not wrong, f"top_logprobs {count} gave {sorted(wrong)} alternatives")
        tokens = answer.completion_tokens
        if tokens is not None and len(scores) not in (tokens, tokens - 1):
            raise NonStrict(f"{len(scores)} log-probabilities for {tokens} tokens")


@case(
    "LGP-03",
    "MUST",
    "log-probabilities of a decode are those of a fresh prefill of the same tokens",
    source="SGLang: KL tests; vLLM: decode against prefill",
    needs="logprobs echo_logprobs id_prompts token_ids",
    kills="F02 F10 F17 F22 F19 K15 B4 B5",
    oracle="self: teacher forcing, k3-KL",
    evidence="positions scored, of different log-probability",
)
async def decode_is_prefill(ctx: Context) -> None:
    block = ctx.block
    lengths = [block - 1, block, 2 * block + 1, 5 * block - 2, 9 * block]
    count = ctx.afford(20, 48, 40, 6)
    asks = [ctx.plain_ask(min(lengths[n % 5] + n // 5, ctx.context // 2), 48) for n in range(count)]
    asks += [Ask(ctx.prompts.uncertain(ctx.rng), 3 * block) for _ in range(max(count // 2, 4))]
    answers = await ctx.together(asks, at_once=8)
    report = await ctx.judged(asks, answers, what="decoded tokens", scorer=ctx.judge.own, least=0)
    ctx.need_evidence(report.positions, "nothing was scored")
    ctx.need_evidence(
        not report.before or max(report.before) - min(report.before) > 0.1,
        "every token has the same log-probability, so that a wrong one could not show",
    )


@case(
    "LGP-04",
    "MUST",
    "prompt log-probabilities are those of naive fp32 attention",
    source="own",
    needs="echo_logprobs id_prompts reference",
    kills="F16 F18 F20 F21 F25 B4 B5",
    oracle="reference: k3-KL and largest difference",
)
async def prompt_scores(ctx: Context) -> None:
    reference, own = ctx.judge.reference, ctx.judge.own
    assert reference is not None
    assert own is not None
    pairs: list[tuple[float, float]] = []
    for number in range(ctx.size(10, 4)):
        prompt = ctx.prompts.uncertain(ctx.rng) if number % 2 else ctx.prompts.make_prompt(ctx.rng, 30 + 40 * number)
        if not isinstance(prompt, list):
            raise Inconclusive("the prompt could not be made of ids")
        start = max(len(ctx.prompts.start), 1)
        mine = await own.score(prompt[:start], prompt[start:])
        theirs = await reference.score(prompt[:start], prompt[start:])
        pairs += [(a.logprob, b.logprob) for a, b in zip(mine, theirs, strict=True) if b.logprob > EXCLUDED]
    likely = [(a, b) for a, b in pairs if b > UNLIKELY]
    ctx.need_evidence(len(likely) >= 16, f"only {len(likely)} tokens could be compared")
    jump = max(abs(a - b) for a, b in pairs)
    divergence = k3([a for a, _ in likely], [b for _, b in likely])
    ctx.stand_on("reference")
    ctx.saw(tokens=len(pairs), likely=len(likely), k3=round(divergence, 7), largest_difference=round(jump, 5))
    ctx.require(
        divergence <= ctx.limits.kl, f"prompt log-probabilities differ from the reference's, k3 {divergence:.2g}"
    )
    ctx.require(jump <= ctx.limits.jump, f"a prompt log-probability differs by {jump:.3g} nats from the reference's")


@case(
    "LGP-05",
    "INFO",
    "whether the temperature changes reported log-probabilities",
    source="own",
    needs="logprobs sampling",
    kills="F33 F27",
    oracle="report",
)
async def temperature_in_scores(ctx: Context) -> None:
    prompt = (await open_prompts(ctx, 1))[0].prompt
    tops = {}
    for temperature in (0, 0.5, 2.0):
        answer = await ctx.api.complete(prompt, max_tokens=1, logprobs=5, temperature=temperature)
        tops[temperature] = dict((answer.first.scores or [])[0].top) if answer.first.scores else {}
    shared = set.intersection(*(set(top) for top in tops.values()))
    moved = max((abs(tops[0.5][t] - tops[2.0][t]) for t in shared), default=0.0)
    ctx.saw(largest_change=round(moved, 4), scores="after temperature" if moved > 0.05 else "before temperature")


@case(
    "LGP-06",
    "SHOULD",
    "asking for log-probabilities does not change the answer",
    source="own",
    needs="logprobs",
    kills="F33 F39",
    oracle="equality of the two; margin where they differ",
    structural=True,
)
async def no_side_effect(ctx: Context) -> None:
    for number in range(ctx.size(8, 4)):
        ask = ctx.plain_ask(10 + 9 * number, 20)
        if number % 2 and ctx.features.has("seed"):
            ask.fields = {"temperature": 1.0, "seed": number}
        scored = await ctx.send(ask)
        fields = ctx.fields(20, **ask.fields)
        fields.pop("logprobs", None)
        plain = await ctx.api.complete(ask.prompt, **fields)
        if plain.text == scored.text:
            continue
        place = 0
        for score in scored.first.scores or []:
            place += len(score.token)
            if plain.text[:place] != scored.text[:place]:
                gap = score.gap if score.gap is not None else 0.0
                ctx.require(
                    gap <= ctx.limits.regret,
                    f"with logprobs the answer is {scored.text[:60]!r}, without {plain.text[:60]!r}",
                )
                break


@case(
    "LGP-07",
    "SHOULD",
    "prompt_logprobs tells of a prompt's tokens what echo with logprobs tells",
    source="vLLM: docs, SamplingParams",
    needs="completions prompt_logprobs echo_logprobs id_prompts",
    kills="E12",
    oracle="equality of the two ways",
    structural=True,
)
async def own_prompt_field(ctx: Context) -> None:
    compared = 0
    for number in range(ctx.size(6, 3)):
        prompt = ctx.prompts.make_prompt(ctx.rng, 9 + 3 * number)
        assert isinstance(prompt, list)
        answer = await ctx.api.complete(prompt, max_tokens=1, prompt_logprobs=2)
        told = answer.first.raw.get("prompt_logprobs")
        if not isinstance(told, list) or len(told) != len(prompt) or told[0] is not None:
            raise Failed(
                f"prompt_logprobs of {len(prompt)} tokens is no list of as many entries with null as its first"
            )
        echoed = (await ctx.api.complete(prompt, max_tokens=1, echo=True, logprobs=2)).first.scores or []
        for token, entry, score in zip(prompt[1:], told[1:], echoed[1:], strict=False):
            one = entry.get(str(token)) if isinstance(entry, dict) else None
            value = one.get("logprob") if isinstance(one, dict) else None
            if not isinstance(value, int | float):
                raise Failed(f"an entry of prompt_logprobs has no log-probability of its own token {token}: {entry}")
            ctx.require(len(entry) >= 2, f"prompt_logprobs 2 tells {len(entry)} token of a position")
            if score.logprob is None or score.logprob < EXCLUDED:
                continue
            compared += 1
            ctx.require(
                abs(value - score.logprob) <= ctx.limits.jump,
                f"the log-probability of the prompt's {score.token!r} is {value:.4f}, by echo {score.logprob:.4f}",
            )
    ctx.saw(compared=compared)
