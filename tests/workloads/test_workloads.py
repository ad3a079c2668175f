"""Schedules: seeded, token-exact, clipped, named by a digest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from workloads.registry import WORKLOADS, make_workload, parse_workload
from workloads.request import Load, Message, WorkloadError, digest
from workloads.tokens import WordCounter, fit_text


class Splitter:
    """A tokenizer stand-in with awkward corners: long words are two tokens, a template surrounds each message."""

    name = "splitter"

    def count_prompt(self, prompt: str) -> int:
        return 1 + sum(1 if len(word) < 8 else 2 for word in prompt.split())

    def count_messages(self, messages: Sequence[Message]) -> int:
        return 3 + sum(4 + self.count_prompt(message["content"]) for message in messages)


def count(counter: Splitter, request: object) -> int:
    messages, prompt = request.messages, request.prompt  # type: ignore[attr-defined]
    return counter.count_messages(messages) if messages is not None else counter.count_prompt(prompt)


# Parameters with which a context of 400 tokens has room; a trace needs a file and has tests of its own.
SMALL: dict[str, dict[str, object]] = {
    "shared-prefix": {"prefix_tokens": 100},
    "mixed": {"parts": "chat*0.5+concurrency*0.5"},
}


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "trace"])
def test_requests_are_exact_clipped_and_seeded(name: str) -> None:
    seed = random.randrange(2**32)
    counter = Splitter()
    workload = make_workload(name, SMALL.get(name, {}))
    requests = workload.requests(60, seed, counter, max_model_len=400)
    assert [r.index for r in requests] == list(range(60))
    assert all(r.prompt_tokens == count(counter, r) for r in requests)
    assert sum(r.exact for r in requests) >= 59
    assert all(r.prompt_tokens + r.output_tokens <= 400 for r in requests)
    assert digest(requests) == digest(workload.requests(60, seed, counter, max_model_len=400))
    assert digest(requests) != digest(workload.requests(60, seed + 1, counter, max_model_len=400))
    texts = [str(r.messages or r.prompt) for r in requests]
    assert len(set(texts)) == len(texts)


def test_chat_lengths_have_the_means_of_sharegpt() -> None:
    # 4000 draws at cv 1.5 and 0.87 put the standard error of the means at 2.4 % and 1.4 %.
    requests = parse_workload("chat:endpoint=completions").requests(4000, random.randrange(2**32), WordCounter())
    assert sum(r.prompt_tokens for r in requests) / 4000 == pytest.approx(161.31, rel=0.1)
    assert sum(r.output_tokens for r in requests) / 4000 == pytest.approx(337.99, rel=0.06)
    assert not any(r.exact for r in requests)  # words are an estimate


def test_lognormal_keeps_the_mean() -> None:
    requests = parse_workload("chat:endpoint=completions,shape=lognormal").requests(4000, 5, WordCounter())
    assert sum(r.output_tokens for r in requests) / 4000 == pytest.approx(337.99, rel=0.06)


def test_turns_carry_the_planned_history_and_wait_for_the_turn_before() -> None:
    requests = parse_workload("chat:turns=3,think_s=0.5,scale=0.1,history=planned").requests(12, 1, Splitter())
    by_conversation: dict[int, list[object]] = {}
    for r in requests:
        assert r.conversation is not None
        by_conversation.setdefault(r.conversation, []).append(r)
    assert [len(turns) for turns in by_conversation.values()] == [3, 3, 3, 3]
    for turns in by_conversation.values():
        for earlier, later in pairwise(turns):
            assert later.after == earlier.index  # type: ignore[attr-defined]
            assert later.think_s == 0.5  # type: ignore[attr-defined]
            assert later.messages[: len(earlier.messages)] == earlier.messages  # type: ignore[attr-defined]
            assert later.messages[-2]["role"] == "assistant"  # type: ignore[attr-defined]
            assert later.shared_tokens >= earlier.prompt_tokens  # type: ignore[attr-defined]


def test_later_turns_name_the_answers_that_they_carry() -> None:
    requests = parse_workload("chat:turns=3,scale=0.1,system_prompts=1").requests(6, 1, Splitter())
    for r in requests:
        assert r.messages is not None
        assert len(r.answers) == (r.turn or 0)
        assert not r.answers or not r.exact  # nobody knows yet how long they will be
        for (position, index), earlier in zip(r.answers, requests[r.index - len(r.answers) :], strict=False):
            assert r.messages[position]["role"] == "assistant"
            assert index == earlier.index


def test_real_answers_leave_room_in_the_context() -> None:
    real = parse_workload("chat:turns=50").requests(100, 3, Splitter(), max_model_len=600)
    for r in real:
        if r.answers:
            assert r.prompt_tokens + r.output_tokens + real[r.index - 1].output_tokens // 8 <= 600


def test_a_conversation_ends_where_the_context_ends() -> None:
    requests = parse_workload("chat:turns=50").requests(200, 3, Splitter(), max_model_len=600)
    assert all(r.prompt_tokens + r.output_tokens <= 600 for r in requests)
    assert max(r.turn or 0 for r in requests) < 49


def test_system_prompts_are_shared_by_popularity() -> None:
    requests = parse_workload("chat:system_prompts=4,system_tokens=20,zipf=1.5").requests(300, 7, Splitter())
    counts: dict[str, int] = {}
    for r in requests:
        assert r.messages is not None
        assert r.messages[0]["role"] == "system"
        counts[r.messages[0]["content"]] = counts.get(r.messages[0]["content"], 0) + 1
        assert 20 < r.shared_tokens <= r.prompt_tokens
    assert len(counts) == 4
    assert max(counts.values()) > 2 * min(counts.values())


def test_fit_text_hits_every_reachable_length() -> None:
    counter, rng = Splitter(), random.Random(random.random())
    for target in rng.sample(range(2, 400), 60):
        assert fit_text(target, 1, rng, counter.count_prompt).tokens == target


def test_fit_text_says_when_there_is_no_room() -> None:
    fitted = fit_text(3, 10, random.Random(0), lambda text: 10 + len(text.split()))
    assert (len(fitted.text.split()), fitted.tokens) == (1, 11)


def test_concurrency_has_one_load_a_level_and_one_size() -> None:
    workload = parse_workload("concurrency:levels=1+4+9,input=30,output=7")
    assert workload.loads() == tuple(Load("closed", concurrency=c) for c in (1, 4, 9))
    assert {(r.prompt_tokens, r.output_tokens) for r in workload.requests(20, 2, Splitter())} == {(30, 7)}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("chatt", "did you mean 'chat'"),
        ("chat:input_maen=4", "did you mean 'input_mean'"),
        ("chat:turns=x", "whole number"),
        ("chat:turns=1.5", "whole number"),
        ("chat:turns", "has no value"),
        ("chat:shape=cauchy", "gamma"),
        ("chat:endpoint=tcp", "chat or completions"),
        ("chat:output_mean=0", "above 0"),
        ("concurrency:levels=0", "levels"),
        ("concurrency:levels=1+b", "joined by"),
        ("long-output:output_cv=-1", "coefficient"),
    ],
)
def test_bad_specs_get_a_sentence(spec: str, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        parse_workload(spec)


def test_no_room_in_the_context_is_an_error() -> None:
    with pytest.raises(WorkloadError, match="max_model_len"):
        parse_workload("chat:system_prompts=1,system_tokens=300").requests(1, 0, Splitter(), max_model_len=128)
