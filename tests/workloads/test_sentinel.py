"""The sentinel's grammar: passages keep its conditions, and the rule says what follows."""

from __future__ import annotations

import pytest

from workloads.sentinel import (
    EOS,
    FIRST_WORD,
    NUM_TOKENS,
    ROLE_WORDS,
    Deck,
    continuation,
    next_token,
    partner,
    read,
    spell,
    word,
)


def test_a_passage_has_every_word_once_with_its_partner() -> None:
    passage = Deck(1).deal(100)
    assert len(set(passage.tokens)) == 100
    assert {partner(token) for token in passage.tokens} == set(passage.tokens)
    assert not ROLE_WORDS & set(passage.tokens)


def test_a_deck_deals_disjoint_passages_and_the_same_ones_again() -> None:
    deck = Deck(7)
    first, second = deck.deal(60), deck.deal(1000)
    assert not set(first.tokens) & set(second.tokens)
    again = Deck(7)
    assert (again.deal(60), again.deal(1000)) == (first, second)
    assert Deck(8).deal(60) != first


def test_a_deck_covers_a_long_context() -> None:
    deck = Deck(0)
    assert deck.left >= 3500
    assert len(deck.deal(deck.left).tokens) >= 3500
    with pytest.raises(ValueError, match="0 are left"):
        deck.deal(2)


@pytest.mark.parametrize("length", [0, -2, 3])
def test_passages_of_impossible_length_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="cannot deal"):
        Deck(0).deal(length)


def test_the_rule_repeats_the_passage_from_the_cue_on() -> None:
    passage = Deck(2).deal(30)
    for position in range(2, 30):
        assert next_token(passage.question(position)) == passage.tokens[position]
        assert continuation(passage.question(position), 80) == list(passage.answer(position, 80))


@pytest.mark.parametrize("position", [-1, 0, 1, 30])
def test_positions_without_a_cue_are_refused(position: int) -> None:
    with pytest.raises(ValueError, match="no cue"):
        Deck(2).deal(30).cue(position)


def test_the_rule_does_not_decide_where_its_conditions_fail() -> None:
    passage = Deck(3).deal(10)
    a, b, c, d = passage.tokens[:4]
    assert next_token((*passage.tokens, b, a)) is None  # two words that never stood together
    assert next_token(tuple(token for token in (*passage.tokens, a, b) if token != partner(b))) is None
    assert next_token((*passage.tokens, b, d, a, b)) is None  # two answers
    assert next_token((*passage.tokens, *passage.tokens, a, b)) == c  # two equal ones
    assert next_token((a,)) is None


def test_a_continuation_ends_with_eos() -> None:
    passage = Deck(3).deal(10).tokens
    context = (*passage, EOS, partner(EOS), *passage[-2:])
    assert continuation(context, 5) == [EOS]


def test_words_are_spelled_and_read() -> None:
    assert word(FIRST_WORD) == " baba"
    assert read(spell(range(FIRST_WORD, NUM_TOKENS))) == list(range(FIRST_WORD, NUM_TOKENS))
    for bad in ("hello", "zzzz", "yuyu"):
        with pytest.raises(ValueError, match=bad):
            read(bad)
    for token in (0, FIRST_WORD - 1, NUM_TOKENS):
        with pytest.raises(ValueError, match=str(token)):
            word(token)
