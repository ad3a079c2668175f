"""The oracle ladder: was an answer what naive attention would have said?

::

    known       the sentinel's answers, compared as text
    reference   a naive fp32 engine scores the engine's own tokens (teacher forcing): at every position the token must be
                the best one, or no further below it than the declared precision explains
    self        the same scoring by the engine itself, as a fresh prefill (echo with logprobs)
    baseline    the engine's own answer to the same prompt, alone and before the load, up to the first difference;
                a difference counts where the baseline's best two tokens are further apart than precision explains

Scoring the engine's own tokens judges every position: nothing is lost after an allowed divergence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.conformance.answer import Answer, TokenScore
from harness.conformance.api import Api
from harness.conformance.case import Failed, Inconclusive
from harness.conformance.features import Features
from harness.conformance.limits import Limits
from harness.conformance.prompts import Ask, tokenize
from harness.conformance.stats import k3

RUNGS = ("known", "reference", "self", "baseline")
SCORING_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Judged:
    """One position: what the judge thinks best, and how far below it the engine's token lies [nats]."""

    token: str
    best: str
    logprob: float
    regret: float
    gap: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(slots=True)
class Report:
    """What a judgement stood on."""

    rung: str
    answers: int = 0
    positions: int = 0
    decided: int = 0  # positions where precision alone cannot have chosen another token
    wrong: list[str] = field(default_factory=list)
    before: list[float] = field(default_factory=list)  # the engine's own log-probabilities ...
    after: list[float] = field(default_factory=list)  # ... and the judge's, of the same tokens
    skipped: int = 0

    def evidence(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "rung": self.rung,
            "answers": self.answers,
            "positions": self.positions,
            "decided_positions": self.decided,
        }
        if self.before:
            found["k3"] = round(k3(self.before, self.after), 7)
            found["largest_logprob_difference"] = round(
                max(abs(a - b) for a, b in zip(self.before, self.after, strict=True)), 5
            )
        if self.skipped:
            found["answers_not_judged"] = self.skipped
        return found


class Scorer:
    """Scores given tokens by one server: echo with logprobs, no generation beyond one token."""

    def __init__(self, api: Api, rung: str) -> None:
        self.api = api
        self.rung = rung

    async def score(self, prompt: Sequence[int], tokens: Sequence[int], *, top: int = 2) -> list[Judged]:
        """One entry for each of ``tokens`` after ``prompt``.  Raises Failed when the server does not score."""
        answer = await self.api.complete([*prompt, *tokens], max_tokens=1, echo=True, logprobs=top)
        scores = (answer.first.scores or [])[: len(prompt) + len(tokens)]
        if len(scores) != len(prompt) + len(tokens):
            raise Failed(
                f"echo with logprobs scored {len(scores)} of {len(prompt) + len(tokens)} tokens",
                prompt_tokens=len(prompt),
            )
        return [judged(score) for score in scores[len(prompt) :]]


def judged(score: TokenScore) -> Judged:
    """A scored token.  Raises Failed when the entry lacks what scoring needs."""
    if score.logprob is None or not score.top:
        raise Failed("echo with logprobs left a token without a log-probability", token=score.token)
    best, value = score.top[0]
    others = [item for name, item in score.top[1:]]
    gap = value - max(others) if others else 0.0
    return Judged(score.token, best, score.logprob, max(value - score.logprob, 0.0), gap, tuple(score.top))


class Judge:
    """Judges answers by the strongest rung that engine, model and set-up allow."""

    def __init__(
        self,
        api: Api,
        features: Features,
        limits: Limits,
        *,
        reference: Api | None,
        tokenizers: Sequence[Api],
        on_rung: Callable[[str], None],
    ) -> None:
        self._api = api
        self._features = features
        self._tokenizers = tokenizers
        self._on_rung = on_rung
        self.limits = limits
        self.reference = Scorer(reference, "reference") if reference is not None else None
        can_score = features.has("echo_logprobs", "id_prompts")
        self.own = Scorer(api, "self") if can_score else None

    @property
    def scorer(self) -> Scorer | None:
        """Who scores given tokens: the reference, else the engine itself."""
        return self.reference or self.own

    def rung_of(self, asks: Sequence[Ask]) -> str:
        if asks and all(ask.expected is not None for ask in asks):
            return "known"
        return self.scorer.rung if self.scorer is not None else "baseline"

    async def baselines(self, asks: Sequence[Ask], send: Callable[[Ask], Awaitable[Answer]]) -> list[Answer] | None:
        """Ask alone and one by one, where the rung needs it.  Call before the load."""
        if self.rung_of(asks) != "baseline":
            return None
        return [await send(ask) for ask in asks]

    async def check(
        self,
        asks: Sequence[Ask],
        answers: Sequence[Answer],
        *,
        baselines: Sequence[Answer] | None = None,
        what: str = "answers",
        scorer: Scorer | None = None,
        least: int = 8,
        kl: bool = True,
    ) -> Report:
        """Raises Failed when answers are wrong, Inconclusive when fewer than ``least`` positions could be decided."""
        if scorer is None and self.rung_of(asks) == "known":
            report = self._compare_known(asks, answers)
        elif chosen := scorer or self.scorer:
            report = await self._score(chosen, asks, answers)
        else:
            report = self._compare(asks, answers, baselines or [])
        self._on_rung(report.rung)
        return self._conclude(report, what, least, kl)

    def _conclude(self, report: Report, what: str, least: int, kl: bool) -> Report:
        evidence = report.evidence()
        if report.wrong:
            shown = report.wrong[:5]
            raise Failed(
                f"{what}: {len(report.wrong)} of {report.answers} are wrong; {shown[0]}", wrong=shown, **evidence
            )
        if report.before and kl:
            limits = self.limits
            divergence = k3(report.before, report.after)
            jump = max(abs(a - b) for a, b in zip(report.before, report.after, strict=True))
            if divergence > limits.kl:
                raise Failed(
                    f"{what}: returned log-probabilities differ from those of the {report.rung} scoring, "
                    f"k3 {divergence:.2g} above {limits.kl:g} ({limits.name})",
                    **evidence,
                )
            if jump > limits.jump:
                raise Failed(
                    f"{what}: one token's log-probability differs by {jump:.3g} nats from the {report.rung} scoring, "
                    f"more than {limits.jump:g} ({limits.name})",
                    **evidence,
                )
        if report.decided < least:
            raise Inconclusive(
                f"{what}: only {report.decided} positions are far enough from a tie to be decided, {least} are needed",
                **evidence,
            )
        return report

    # --- known answers ---

    def _compare_known(self, asks: Sequence[Ask], answers: Sequence[Answer]) -> Report:
        report = Report("known", len(answers))
        for number, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
            expected = ask.expected or ""
            count = answer.completion_tokens or ask.max_tokens
            report.positions += count
            report.decided += count
            if not agrees(answer.text, expected):
                owner = foreign_owner(answer.text, asks, number)
                report.wrong.append(
                    f"{ask.label or f'prompt {number}'} should be {expected[:80]!r} but is {answer.text[:80]!r}{owner}"
                )
        return report

    # --- scoring ---

    async def _score(self, scorer: Scorer, asks: Sequence[Ask], answers: Sequence[Answer]) -> Report:
        report = Report(scorer.rung, len(answers))
        gate = asyncio.Semaphore(SCORING_AT_ONCE)

        async def one(number: int, ask: Ask, answer: Answer) -> None:
            for choice in answer.choices:
                pair = await self.tokens_of(ask, choice)
                if pair is None or not pair[1]:
                    report.skipped += 1
                    continue
                prompt, tokens = pair
                async with gate:
                    scores = await scorer.score(prompt, tokens)
                self._count(report, ask, number, scores, choice.scores)

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(guarded(one(number, ask, answer)))
                for number, (ask, answer) in enumerate(zip(asks, answers, strict=True))
            ]
        for task in tasks:
            if (outcome := task.result()) is not None:
                raise outcome
        return report

    def _count(
        self,
        report: Report,
        ask: Ask,
        number: int,
        scores: Sequence[Judged],
        own: Sequence[TokenScore] | None,
    ) -> None:
        limits = self.limits
        for place, score in enumerate(scores):
            report.positions += 1
            report.decided += score.gap > limits.regret
            if score.regret > limits.regret and not ask.fields.get("temperature"):
                report.wrong.append(
                    f"{ask.label or f'prompt {number}'}, token {place}: {score.token!r} lies {score.regret:.3g} nats "
                    f"below {score.best!r} by the {report.rung} scoring"
                )
                break
        if own is not None and len(own) == len(scores) and all(item.logprob is not None for item in own):
            # Very unlikely tokens have log-probabilities that say nothing at any precision.
            pairs = [(a.logprob, b.logprob) for a, b in zip(own, scores, strict=True) if b.logprob > -15]
            report.before += [a for a, _ in pairs if a is not None]
            report.after += [b for a, b in pairs if a is not None]

    async def tokens_of(self, ask: Ask, choice: Any) -> tuple[list[int], list[int]] | None:
        """Prompt and answer as ids: as returned, else by tokenizing the text that they make together."""
        ids = choice.token_ids()
        prompt = ask.prompt if isinstance(ask.prompt, list) else await self.tokenize(ask.prompt)
        if prompt is None:
            return None
        if ids is not None:
            return list(prompt), list(ids)
        if not isinstance(ask.prompt, str):
            return None
        whole = await self.tokenize(ask.prompt + choice.text)
        # A last token may be cut in the middle of a character or a word: it is not judged.
        if whole is None or whole[: len(prompt)] != prompt:
            return None
        return list(prompt), whole[len(prompt) : -1]

    async def tokenize(self, text: str) -> list[int] | None:
        for api in self._tokenizers:
            ids = await tokenize(api, text)
            if ids is not None:
                return ids
        return None

    # --- baselines ---

    def _compare(self, asks: Sequence[Ask], answers: Sequence[Answer], baselines: Sequence[Answer]) -> Report:
        report = Report("baseline", len(answers))
        if len(baselines) != len(answers):
            raise Inconclusive("nothing judges these answers: no known answers, no scoring, no baseline")
        for number, (ask, answer, base) in enumerate(zip(asks, answers, baselines, strict=True)):
            label = ask.label or f"prompt {number}"
            scores = base.first.scores
            same = common_tokens(base, answer)
            report.positions += same
            if scores is None:
                # No margins: equal text proves something, different text only that it is another request's.
                if answer.text == base.text:
                    report.decided += base.completion_tokens or 1
                else:
                    report.skipped += 1
                    for other, twin in enumerate(baselines):
                        if other != number and len(twin.text) > 8 and twin.text == answer.text != base.text:
                            report.wrong.append(f"{label} got the answer of prompt {other}: {answer.text[:80]!r}")
                continue
            gaps = [score.gap or 0.0 for score in scores]
            report.decided += sum(gap > self.limits.regret for gap in gaps[:same])
            if same < min(len(scores), len(answer.first.scores or scores)) and gaps[same] > self.limits.regret:
                report.wrong.append(
                    f"{label}, token {same}: differs from the answer given alone, where the best two tokens were "
                    f"{gaps[same]:.3g} nats apart ({base.text[:60]!r} alone, {answer.text[:60]!r} now)"
                )
        return report


def common_tokens(base: Answer, answer: Answer) -> int:
    """Leading tokens that two answers share; by characters where tokens are unknown."""
    first, second = base.first.scores, answer.first.scores
    if first is not None and second is not None:
        pairs = [(a.token, b.token) for a, b in zip(first, second, strict=False)]
    elif first is not None:
        place = 0
        for number, score in enumerate(first):
            place += len(score.token)
            if base.text[:place] != answer.text[:place]:
                return number
        return len(first)
    else:
        pairs = list(zip(base.text, answer.text, strict=False))
    for number, (a, b) in enumerate(pairs):
        if a != b:
            return number
    return len(pairs)


def agrees(text: str, expected: str) -> bool:
    """Whether a known answer was given: white space at the ends does not count."""
    return text.strip() == expected.strip()


def foreign_owner(text: str, asks: Sequence[Ask], own: int) -> str:
    """Says so when a wrong answer is another request's right one."""
    for number, ask in enumerate(asks):
        if number != own and ask.expected and agrees(text, ask.expected) and ask.expected != asks[own].expected:
            return f", which is the answer of {ask.label or f'prompt {number}'}"
    return ""


async def guarded(work: Awaitable[None]) -> Failed | None:
    """A task group wraps exceptions; an outcome is handed back as a value instead."""
    try:
        await work
    except Failed as outcome:
        return outcome
    return None
