"""Answers given under load, judged once the engine is idle: ``pagedbench run --verify``.

::

    under load      request 17 ----> text                    kept by the load client, as it was sent and answered
    idle, alone     request 17 ----> text, log-probabilities  asked again with a fresh cache salt where there is one
                                |
    compared        up to the first difference, which counts where the two best tokens were further apart, alone, than
                    the declared precision explains                                             (rung ``baseline``)
    scored          the tokens of the answer, by a naive fp32 engine when one is given          (rung ``reference``)

The first comparison catches what load does to answers (blocks of another request, lost after a preemption, read before
they were written); the second also what is wrong on an idle engine.  After an allowed difference the rest of that
answer is not judged.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from harness.conformance.answer import Answer, TokenScore, parse_answer
from harness.conformance.api import Api
from harness.conformance.case import Failed, NoAnswer
from harness.conformance.judge import Scorer
from harness.conformance.limits import Limits
from harness.conformance.prompts import tokenize
from harness.conformance.tokens_in_text import ends_of

LEAST_DECIDED = 8  # positions, before a cell counts as verified
TIMEOUT_S = 300.0  # of one answer alone, or one scoring
SHOWN = 3  # wrong answers spelt out


class Loaded(NamedTuple):
    """One answer of the loaded run."""

    number: int
    path: str
    body: Mapping[str, Any]
    text: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Loaded:
        return cls(int(row["request_index"]), str(row["path"]), json.loads(row["body"]), str(row["text"]))

    @property
    def is_chat(self) -> bool:
        return self.path.endswith("chat/completions")


@dataclass(slots=True)
class Finding:
    """What the answers of one cell showed."""

    answers: int = 0
    identical: int = 0
    decided: int = 0  # positions where precision alone cannot have chosen another token
    scored: int = 0  # answers that the reference scored
    texts: set[str] = field(default_factory=set)  # different answers
    unknown: int = 0  # answers that differ, with nothing to tell how close the choice was
    wrong: list[str] = field(default_factory=list)
    unanswered: str | None = None  # why an answer could not be had again

    @property
    def rungs(self) -> list[str]:
        return [*(["baseline"] if self.answers else []), *(["reference"] if self.scored else [])]

    @property
    def are_alike(self) -> bool:
        """Whether every answer is the beginning of the longest one."""
        longest = max(self.texts, key=len, default="")
        return all(longest.startswith(text) for text in self.texts)

    def evidence(self) -> dict[str, Any]:
        return {
            "answers": self.answers,
            "different_answers": len(self.texts),
            "identical": self.identical,
            "decided_positions": self.decided,
            "scored_by_the_reference": self.scored,
            "differ_without_margins": self.unknown,
            **({"wrong": self.wrong[:SHOWN]} if self.wrong else {}),
        }


class LoadedJudge:
    """Judges answers of one engine.  ``reference``: a naive fp32 engine with the same model, where there is one."""

    def __init__(self, api: Api, limits: Limits, reference: Api | None = None) -> None:
        self._api = api
        self._limits = limits
        self._reference = reference

    async def judge(self, answers: Sequence[Loaded]) -> Finding:
        """Ask for every answer again, one at a time, and compare."""
        finding = Finding()
        for loaded in answers:
            try:
                alone = await self._ask_again(loaded)
            except Failed as failure:
                finding.unanswered = failure.reason
                if isinstance(failure, NoAnswer):
                    break
                continue
            finding.answers += 1
            finding.texts.add(alone.text)
            self._compare(finding, loaded, alone)
            if self._reference is not None and alone.text == loaded.text:
                await self._score(finding, loaded, alone)
        return finding

    async def _ask_again(self, loaded: Loaded) -> Answer:
        """The answer alone, with as much beside it as the engine is willing to tell.  Raises Failed."""
        plain = {key: value for key, value in loaded.body.items() if key not in ("stream", "stream_options")}
        scores = {"logprobs": True, "top_logprobs": 5} if loaded.is_chat else {"logprobs": 5}
        # Blocks that the load left in the prefix cache would hide that they are wrong.
        more = {"return_token_ids": True, "cache_salt": secrets.token_hex(8)}
        for extra in ({**scores, **more}, scores, {}):
            exchange = await self._api.answered(f"/{loaded.path}", {**plain, **extra}, TIMEOUT_S)
            if exchange.status == 200 or not extra:
                break
        return parse_answer(exchange, is_chat=loaded.is_chat)

    def _compare(self, finding: Finding, loaded: Loaded, alone: Answer) -> None:
        scores = alone.first.scores
        if not scores:
            if alone.text == loaded.text:
                finding.identical += 1
                finding.decided += alone.completion_tokens or 1
            else:
                finding.unknown += 1
            return
        ends = ends_of([score.token for score in scores], alone.text)
        same = common_characters(alone.text, loaded.text)
        is_identical = alone.text == loaded.text
        finding.identical += is_identical
        regret = self._limits.regret
        finding.decided += sum(
            score.gap is not None and score.gap > regret
            for score, end in zip(scores, ends, strict=True)
            if is_identical or end <= same
        )
        if is_identical:
            return
        gap = gap_at(scores, ends, same)
        if gap is None:
            finding.unknown += 1
        elif gap > regret:
            finding.wrong.append(
                f"request {loaded.number} was answered {_around(loaded.text, same)!r} under load and "
                f"{_around(alone.text, same)!r} alone, where the best two tokens were {gap:.3g} nats apart"
            )

    async def _score(self, finding: Finding, loaded: Loaded, alone: Answer) -> None:
        """Have the reference score the answer's tokens.  What it cannot score is left out, and not counted as scored."""
        assert self._reference is not None
        # A length that is forced by forbidding the end of the text changes the distribution that is compared.
        forced = "min_tokens" in loaded.body and not loaded.body.get("ignore_eos")
        ids = alone.first.token_ids()
        prompt = await self._prompt_ids(loaded)
        if forced or not ids or not prompt:
            return
        try:
            scores = await Scorer(self._reference, "reference").score(prompt, ids)
        except Failed:
            return
        finding.scored += 1
        for place, score in enumerate(scores):
            if loaded.body.get("ignore_eos") and is_special(score.best):
                continue  # some engines ignore the end of the text by forbidding it
            if score.regret > self._limits.regret:
                finding.wrong.append(
                    f"request {loaded.number}, token {place}: {score.token!r} lies {score.regret:.3g} nats below "
                    f"{score.best!r} by the reference"
                )
                return

    async def _prompt_ids(self, loaded: Loaded) -> list[int] | None:
        assert self._reference is not None
        prompt = loaded.body.get("prompt")
        if isinstance(prompt, str):
            return await tokenize(self._reference, prompt)
        if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
            return prompt
        body = {"messages": loaded.body.get("messages"), "add_generation_prompt": True}
        reply = await self._reference.post("/tokenize", body)
        document = reply.json() if reply.status == 200 else None
        tokens = document.get("tokens") if isinstance(document, dict) else None
        return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else None


def gap_at(scores: Sequence[TokenScore], ends: Sequence[int], same: int) -> float | None:
    """Nats between the best two tokens where two texts part after ``same`` characters; None where that is not told.

    The token before counts, too, where the texts part at its end: the other text may hold a longer token there.
    """
    place = next((number for number, end in enumerate(ends) if end > same), len(scores) - 1)
    near = [place]
    if place and ends[place - 1] >= same:
        near.append(place - 1)
    gaps = [scores[number].gap for number in near]
    return None if any(gap is None for gap in gaps) else min(gap for gap in gaps if gap is not None)


def common_characters(a: str, b: str) -> int:
    """Length of the common beginning."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def is_special(token: str) -> bool:
    """Whether a token's text looks like one that ends or structures a text and is not shown in it."""
    return not token or (token.startswith("<") and token.endswith(">"))


def _around(text: str, place: int) -> str:
    """The text about the place where it parts from another."""
    return ("..." if place > 24 else "") + text[max(0, place - 24) : place + 24]
