"""Questions to the sentinel: the answers that are expected are those of its rule."""

from __future__ import annotations

import random

import pytest

from harness.conformance.sentinel_asks import SentinelAsks
from workloads.sentinel import FIRST_BYTE, continuation


@pytest.mark.parametrize("seed", range(20))
def test_characters_are_asked_for_byte_by_byte(seed: int) -> None:
    ask = SentinelAsks(takes_ids=True).characters(random.Random(seed))
    assert isinstance(ask.prompt, list)
    assert ask.expected is not None
    told = continuation(ask.prompt, ask.max_tokens)
    assert bytes(token - FIRST_BYTE for token in told).decode() == ask.expected
    assert len(told) > len(ask.expected) >= 3
    assert ask.expected.isprintable()


def test_the_same_question_as_text_has_the_same_tokens() -> None:
    from reference_engine.sentinel.vocabulary import build_tokenizer

    tokenizer = build_tokenizer()
    for seed in range(5):
        ids = SentinelAsks(takes_ids=True).characters(random.Random(seed))
        text = SentinelAsks(takes_ids=False).characters(random.Random(seed))
        assert tokenizer.encode(text.prompt).ids == ids.prompt
        assert text.expected == ids.expected
