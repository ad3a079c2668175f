"""Judging answers of a loaded run: what counts as wrong, what as a tie, what as unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from harness.conformance.answer import TokenScore, parse_answer
from harness.conformance.api import Exchange
from harness.conformance.case import NoAnswer
from harness.conformance.limits import FP32
from harness.conformance.loaded import Finding, Loaded, LoadedJudge, gap_at, is_special

WORDS = [" the", " sea", " is", " wide", " and", " the", " sky", " is", " high", " up"]
TEXT = "".join(WORDS)


class Engine:
    """An idle engine: answers every request with the same words, each ``gap`` nats before the next best."""

    def __init__(self, words: list[str] = WORDS, gap: float = 2.0, *, tells: bool = True, strict: bool = False) -> None:
        self.words, self.gap, self.tells, self.strict = words, gap, tells, strict
        self.asked: list[Mapping[str, Any]] = []
        self.is_gone = False

    async def answered(self, path: str, body: Mapping[str, Any], timeout_s: float | None = None) -> Exchange:
        self.asked.append(body)
        if self.is_gone:
            raise NoAnswer("connection refused")
        if self.strict and ("cache_salt" in body or "return_token_ids" in body):
            return Exchange("POST", path, None, 400, '{"error": {"message": "unknown field"}}')
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        tops = [{word: -0.1, "x": -0.1 - self.gap} for word in self.words]
        ids = {"token_ids": list(range(len(self.words)))} if "return_token_ids" in body else {}
        if path.endswith("chat/completions"):
            content = [
                {"token": word, "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": v} for t, v in top.items()]}
                for word, top in zip(self.words, tops, strict=True)
            ]
            choice |= {"message": {"content": "".join(self.words)}, "logprobs": {"content": content}}
        else:
            logprobs = {"tokens": self.words, "token_logprobs": [-0.1] * len(self.words), "top_logprobs": tops}
            choice |= {"text": "".join(self.words), "logprobs": logprobs}
        if not self.tells or not body.get("logprobs"):
            choice.pop("logprobs")
        usage = {"completion_tokens": len(self.words)}
        return Exchange("POST", path, None, 200, json.dumps({"choices": [choice | ids], "usage": usage}))


class Reference:
    """Scores what it is given: every token the best one but those in ``wrong`` (place: the better token)."""

    def __init__(self, wrong: Mapping[int, str] | None = None) -> None:
        self.wrong = wrong or {}

    async def post(self, path: str, body: Mapping[str, Any], timeout_s: float | None = None) -> Exchange:
        return Exchange("POST", path, None, 200, json.dumps({"tokens": [7, 8, 9]}))

    async def complete(self, prompt: list[int], **fields: Any) -> Any:
        size = len(prompt)
        tokens = [f"t{token}" for token in prompt]
        tops = [{token: -0.1, "other": -3.0} for token in tokens]
        for place, better in self.wrong.items():
            tops[3 + place] = {better: -0.1, tokens[3 + place]: -4.0}
        values = [top[token] for top, token in zip(tops, tokens, strict=True)]
        choice = {"text": "", "logprobs": {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}}
        document = json.dumps({"choices": [choice], "usage": {"prompt_tokens": size}})
        return parse_answer(Exchange("POST", "/v1/completions", None, 200, document), is_chat=False)


def loaded(text: str = TEXT, *, chat: bool = True, **fields: Any) -> Loaded:
    asks = {"messages": [{"role": "user", "content": "q"}]} if chat else {"prompt": "q"}
    body = {**asks, "stream": True, "stream_options": {"include_usage": True}, "temperature": 0, **fields}
    path = "v1/chat/completions" if chat else "v1/completions"
    return Loaded.of({"request_index": 3, "path": path, "body": json.dumps(body), "text": text})


async def judge(engine: Engine, *answers: Loaded, reference: Reference | None = None) -> Finding:
    return await LoadedJudge(engine, FP32, reference).judge(answers)  # type: ignore[arg-type]


@pytest.mark.parametrize("chat", [True, False])
async def test_the_same_text_is_right_and_every_margin_counts(chat: bool) -> None:
    engine = Engine()
    finding = await judge(engine, loaded(chat=chat), loaded(chat=chat))
    assert (finding.answers, finding.identical, finding.decided, finding.wrong) == (2, 2, 20, [])
    assert finding.rungs == ["baseline"]
    assert not any("stream" in body or "stream_options" in body for body in engine.asked)
    salts = [body["cache_salt"] for body in engine.asked]
    assert len(set(salts)) == 2


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("sky", "moon"),  # another word in the middle
        TEXT[: -len(" up")],  # its end is missing
        "",  # all of it
        TEXT + " and on",  # it goes on
        TEXT.replace(" is wide", " isle wide"),  # a longer token at the same place
    ],
)
async def test_another_text_where_precision_cannot_choose_is_wrong(text: str, chat: bool) -> None:
    finding = await judge(Engine(), loaded(text, chat=chat))
    assert len(finding.wrong) == 1
    assert finding.identical == 0
    assert "request 3" in finding.wrong[0]


async def test_another_text_after_a_near_tie_is_allowed_and_not_judged_further() -> None:
    finding = await judge(Engine(gap=0.01), loaded(TEXT.replace("sky", "moon")))
    assert finding.wrong == []
    assert finding.decided == 0


async def test_without_margins_a_different_text_decides_nothing() -> None:
    finding = await judge(Engine(tells=False), loaded(TEXT.replace("sky", "moon")), loaded())
    assert (finding.unknown, finding.identical, finding.wrong) == (1, 1, [])
    assert finding.decided == 10


async def test_a_strict_engine_is_asked_with_less() -> None:
    engine = Engine(strict=True)
    finding = await judge(engine, loaded())
    assert finding.identical == 1
    assert [("cache_salt" in body, bool(body.get("logprobs"))) for body in engine.asked] == [
        (True, True),
        (False, True),
    ]


async def test_an_engine_that_is_gone_is_told_and_not_asked_further() -> None:
    engine = Engine()
    engine.is_gone = True
    finding = await judge(engine, loaded(), loaded())
    assert finding.unanswered == "connection refused"
    assert len(engine.asked) == 1


@pytest.mark.parametrize("chat", [True, False])
async def test_the_reference_scores_the_tokens(chat: bool) -> None:
    good = await judge(Engine(), loaded(chat=chat), reference=Reference())
    assert (good.scored, good.wrong, good.rungs) == (1, [], ["baseline", "reference"])
    bad = await judge(Engine(), loaded(chat=chat), reference=Reference({4: "better"}))
    assert len(bad.wrong) == 1
    assert "token 4" in bad.wrong[0]
    assert "'better'" in bad.wrong[0]


async def test_an_end_of_text_that_the_engine_was_told_to_ignore_is_no_better_token() -> None:
    forbidden = Reference({4: "<|im_end|>"})
    assert (await judge(Engine(), loaded(ignore_eos=True), reference=forbidden)).wrong == []
    assert len((await judge(Engine(), loaded(), reference=forbidden)).wrong) == 1
    # A forced length by min_tokens changes the distribution: nothing is scored.
    assert (await judge(Engine(), loaded(min_tokens=10), reference=Reference({4: "better"}))).scored == 0


def test_the_margin_is_that_of_the_place_where_texts_part() -> None:
    gaps = {" a": 1.0, " b": 0.2, " c": 3.0}
    scores = [TokenScore(word, -0.1, [(word, -0.1), ("x", -0.1 - gap)]) for word, gap in gaps.items()]
    assert gap_at(scores, [2, 4, 6], 5) == pytest.approx(3.0)  # inside " c"
    assert gap_at(scores, [2, 4, 6], 4) == pytest.approx(0.2)  # at its start: " b" may have been " bx"
    assert gap_at(scores, [2, 4, 6], 0) == pytest.approx(1.0)
    assert gap_at([TokenScore(" a", -0.1, [])], [2], 0) is None


def test_what_a_special_token_looks_like() -> None:
    assert all(is_special(text) for text in ("<|im_end|>", "</s>", ""))
    assert not any(is_special(text) for text in ("<", " the", "a>"))
