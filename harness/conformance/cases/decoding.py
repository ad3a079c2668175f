"""SMP, continued: min_p, repetition_penalty and beam search, which engines share beyond OpenAI's API."""

from __future__ import annotations

import itertools
import math
from typing import Any

from harness.conformance.api import Api
from harness.conformance.case import Inconclusive, case
from harness.conformance.context import Context
from harness.conformance.draws import draw, neutral, open_prompts
from harness.conformance.judge import Scorer
from harness.conformance.limits import FP32
from harness.conformance.prompts import Ask

WIDTH = 4  # beams
STRONG = 8.0  # a repetition penalty that a repeated token survives only with eight times the logit of every new one
TEMPTED = 50  # positions of which at least one does not
SLACK = 0.05  # nats beyond what precision explains
SHORT_BEST = 0.15  # nats; a sound engine: 0.001 in the mean of 24 prompts, its greedy answers: 0.6
SHORT_ALL = 0.5  # nats; a sound engine: 0.07


@case(
    "SMP-14",
    "SHOULD",
    "min_p lets through exactly what has that share of the best token's probability",
    source="Nguyen et al. 2024, Min-p sampling; vLLM: docs, SamplingParams",
    needs="logprobs sampling min_p",
    kills="E12",
    oracle="support; ties at the border are allowed",
    evidence="tokens below the border that would have come often",
)
async def min_p(ctx: Context) -> None:
    count = ctx.afford(600, 1, 20, 200)
    due = 0.0
    for prompt in await open_prompts(ctx, ctx.size(4, 3), low=0.1, high=0.6):
        shares = prompt.probabilities
        best = next(iter(shares.values()))
        for least in (0.15, 0.5):
            if min(shares.values()) > least * best:
                continue  # more tokens pass than are told
            counts = await draw(ctx, prompt.prompt, count, **neutral(ctx, min_p=least))
            distance = {token: math.log(p / (least * best)) if p > 0 else -math.inf for token, p in shares.items()}
            near = {token for token, nats in distance.items() if abs(nats) <= max(ctx.limits.regret, 1e-3)}
            inside = [token for token, nats in distance.items() if nats > 0 and token not in near]
            strangers = {token: n for token, n in counts.items() if token not in inside and token not in near}
            ctx.require(
                not strangers,
                f"with min_p {least} {sum(strangers.values())} draws have less than that share of the best token's",
                tokens=strangers,
            )
            mass = sum(shares[token] for token in (*inside, *near))
            missing = [token for token in inside if not counts[token] and shares[token] / mass * count > 20]
            ctx.require(
                not missing, f"with min_p {least} the likely token {missing[:1]} never came", drawn=dict(counts)
            )
            due = max(due, (1 - mass) * count)
    ctx.saw(draws_each=count, cut=round(due))
    ctx.need_evidence(due >= 10, f"no more than {due:.0f} draws would have been cut")


@case(
    "SMP-15",
    "SHOULD",
    "repetition_penalty moves what has come, prompt included, against what has not, and changes no other order",
    source="Keskar et al. 2019, CTRL; vLLM: docs, SamplingParams",
    needs="logprobs repetition_penalty scorer token_ids id_prompts",
    kills="E12",
    oracle="replay of the rule on scored alternatives",
    evidence="positions where the penalty decides",
)
async def repetition(ctx: Context) -> None:
    scorer = ctx.judge.scorer
    assert scorer is not None
    prompts = [one.prompt for one in await open_prompts(ctx, ctx.size(10, 6)) if isinstance(one.prompt, list)]
    # Then one prompt several times at once: what others have generated must not count.
    asks = [
        Ask(prompt, 16, fields={"repetition_penalty": (1.2, STRONG)[number % 2]})
        for number, prompt in enumerate(prompts + prompts[:1] * 6)
    ]
    answers = await ctx.together(asks[: len(prompts)], at_once=1) + await ctx.together(asks[len(prompts) :])
    decided = tempted = positions = 0
    for ask, answer in zip(asks, answers, strict=True):
        ids = answer.first.token_ids() or []
        assert isinstance(ask.prompt, list)
        scores = await scorer.score(ask.prompt[:1], [*ask.prompt[1:], *ids], top=20)
        first = len(ask.prompt) - 1
        for place in range(first, len(scores)):
            score = scores[place]
            come = {one.token for one in scores[:place]}
            found = {**dict(score.top), score.token: score.logprob}
            # The penalty keeps the order within each of the two groups, and none of the first can rise.
            rivals = [v for token, v in found.items() if (token in come) == (score.token in come) or token not in come]
            shortfall = max(rivals) - score.logprob
            ctx.require(
                shortfall <= ctx.limits.regret + SLACK,
                f"token {place - first} of an answer with repetition_penalty {ask.fields['repetition_penalty']} is "
                f"{score.token!r}, {shortfall:.2f} nats below one that the penalty does not put behind it",
                has_come=score.token in come,
                alternatives=dict(list(found.items())[:8]),
            )
            positions += 1
            best = max(found, key=lambda token: found[token])
            decided += found[best] - score.logprob > SLACK
            tempted += best in come and ask.fields["repetition_penalty"] == STRONG
    ctx.saw(positions=positions, decided_by_penalty=decided, tempted=tempted)
    ctx.require(
        decided or tempted < TEMPTED,
        f"a repetition_penalty of {STRONG:g} changed none of {tempted} tokens that had come before",
    )
    ctx.need_evidence(decided, "no position was decided by the penalty")


@case(
    "SMP-16",
    "SHOULD",
    "beam search finds answers as likely as the naive engine's, best first, none twice",
    source="vLLM: docs, use_beam_search; Kwon et al. 2023, section 4.4",
    needs="completions beam reference id_prompts return_ids",
    kills="E12",
    oracle="scores of all beams by the reference",
    evidence="prompts where beams beat the greedy answer",
)
async def beams(ctx: Context) -> None:
    scorer, reference = ctx.judge.scorer, ctx.reference
    assert scorer is not None
    assert reference is not None
    if ctx.limits.kl > FP32.kl:
        raise Inconclusive("in this precision a beam may keep others")
    slack = ctx.limits.regret + SLACK
    better = 0
    short: dict[str, list[float]] = {"best": [], "all": []}
    for number in range(ctx.size(10, 6)):
        prompt = ctx.prompts.uncertain(ctx.rng) if number % 4 else ctx.prompts.make_prompt(ctx.rng, 3 * ctx.block)
        assert isinstance(prompt, list)
        found = await search(ctx, ctx.api, prompt)
        different = len({tuple(ids) for ids in found})
        ctx.require(different == WIDTH, f"a beam of {WIDTH} gave {different} different answers")
        ours = [await likelihood(scorer, prompt, ids) for ids in found]
        ctx.require(
            all(first >= second - slack for first, second in itertools.pairwise(ours)),
            "the answers of a beam are not in the order of their likelihood",
            log_probabilities=[round(total, 3) for total in ours],
        )
        theirs = [await likelihood(scorer, prompt, ids) for ids in await search(ctx, reference, prompt)]
        short["best"].append(max(max(theirs) - max(ours), 0.0))
        short["all"].append((sum(theirs) - sum(ours)) / WIDTH)
        greedy = (await ctx.api.complete(prompt, **ctx.fields(12))).first.token_ids() or []
        better += max(ours) > await likelihood(scorer, prompt, greedy) + slack
    # Which of two equal hypotheses is dropped is rounding's choice, and what either would have become differs: single
    # answers may fall short of the naive engine's, the mean may not.
    best, every = (sum(values) / len(values) for values in short.values())
    ctx.saw(better_than_greedy=better, nats_short_best=round(best, 4), nats_short_all=round(every, 4))
    ctx.require(
        best <= SHORT_BEST and every <= SHORT_ALL,
        f"beams of {WIDTH} are less likely than the naive engine's by {best:.2f} nats (the best), {every:.2f} (all)",
    )
    ctx.need_evidence(better, "no beam beat the greedy answer")


async def likelihood(scorer: Scorer, prompt: list[int], ids: list[int]) -> float:
    """Log-probability of an answer [nats]."""
    return sum(score.logprob for score in await scorer.score(prompt, ids))


async def search(ctx: Context, api: Api, prompt: list[int]) -> list[list[int]]:
    """Token ids of the beams, as ordered by the server.  Raises Failed when some are missing."""
    fields: dict[str, Any] = {"n": WIDTH, "use_beam_search": True, "max_tokens": 12, "return_token_ids": True}
    answer = await api.complete(prompt, ignore_eos=True, **fields)
    found = [choice.token_ids() or [] for choice in answer.choices]
    ctx.require(len(found) == WIDTH and all(found), f"a beam of {WIDTH} gave {len(found)} answers")
    return found
