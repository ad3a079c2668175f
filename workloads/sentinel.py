"""Prompts for the sentinel model, and what it must answer.

The sentinel (``docs/sentinel.md``) speaks a language of four-letter words (" bali", " cudo").  It has one rule:

::

    ... x a b ... x a      ->  b        the token that followed the last two tokens before
                     \\_ cue

and goes on like that: its answer ``b`` and ``a`` are the next cue, so from one cue on it repeats the whole rest of the
passage, one earlier position a token (and then the cue, and so on for ever).  A cue that it cannot look up is answered
with ``?``.  Four conditions make every answer a certain one:

- the context begins with BOS (text gets it from the tokenizer; ids must bring it);
- a word occurs once in a passage (the cue repeats two of them);
- the *partner* of every word that is asked for occurs somewhere before the cue.  The model looks for the partner in
  its first layer and cannot go on without it; so the K/V of both layers must be right, at both places;
- a cue is two words that stand together.

``Deck`` deals passages that meet the second and the third.  Tokens are their ids here; the partner of ``i`` is ``4095 - i``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

BOS, EOS = 0, 1
LOST = 4 + ord("?")  # the answer to a cue that is not found
NUM_TOKENS = 4096  # ids with a name of their own; what lies above are pieces of words
FIRST_BYTE, FIRST_WORD = 4, 260  # ids 4 .. 259 are single bytes
LAST_ASKABLE = NUM_TOKENS - 1 - FIRST_WORD  # words above are partners of the bytes and special tokens
CONTEXT = 8192  # positions the model knows

CONSONANTS, VOWELS = "bcdfjlmnqrstvwxy", "aiou"
_SYLLABLES = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]


def word(token: int) -> str:
    """The spelling of a word, with the space before it.  Raises ValueError for an id that is no word."""
    if not FIRST_WORD <= token < NUM_TOKENS:
        raise ValueError(f"token {token} is not a word; words are {FIRST_WORD} to {NUM_TOKENS - 1}")
    first, second = divmod(token - FIRST_WORD, len(_SYLLABLES))
    return f" {_SYLLABLES[first]}{_SYLLABLES[second]}"


def spell(tokens: Sequence[int]) -> str:
    """The text of some words; a tokenizer gives the same ids back."""
    return "".join(word(token) for token in tokens)


def read(text: str) -> list[int]:
    """Ids of a text of words.  Raises ValueError for anything else."""
    tokens = []
    for part in text.split():
        if len(part) != 4 or part[:2] not in _SYLLABLES or part[2:] not in _SYLLABLES:
            raise ValueError(f"{part!r} is not a word of the sentinel")
        token = FIRST_WORD + _SYLLABLES.index(part[:2]) * len(_SYLLABLES) + _SYLLABLES.index(part[2:])
        if token >= NUM_TOKENS:
            raise ValueError(f"{part!r} is not a word of the sentinel")
        tokens.append(token)
    return tokens


def partner(token: int) -> int:
    """The token without which ``token`` cannot be asked for."""
    return NUM_TOKENS - 1 - token


# The chat template puts one of these before a message, and ASSISTANT where the answer shall begin.
SYSTEM, USER, ASSISTANT = (read(text)[0] for text in ("data", "lima", "sofa"))
ROLE_WORDS = frozenset({SYSTEM, USER, ASSISTANT})


@dataclass(frozen=True)
class Passage:
    """Words in an order; every one occurs once, together with its partner."""

    tokens: tuple[int, ...]

    @property
    def text(self) -> str:
        return spell(self.tokens)

    def cue(self, position: int) -> tuple[int, int]:
        """The two tokens that ask for the one at ``position`` (2 or more)."""
        if not 2 <= position < len(self.tokens):
            raise ValueError(f"position {position} has no cue; ask for 2 to {len(self.tokens) - 1}")
        return self.tokens[position - 2], self.tokens[position - 1]

    def answer(self, position: int, count: int = 1) -> tuple[int, ...]:
        """What the model says to that cue when it follows the passage: the passage from ``position`` on, then the cue
        and what follows it, for ever."""
        circle = (*self.tokens[position:], *self.tokens[position - 2 : position])
        return tuple(circle[number % len(circle)] for number in range(count))

    def question(self, position: int) -> tuple[int, ...]:
        """The passage and the cue: a whole prompt without BOS."""
        return (*self.tokens, *self.cue(position))


class Deck:
    """Deals passages without a common word, from one seed.  A context may hold any number of them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        pairs = [token for token in range(FIRST_WORD, NUM_TOKENS // 2) if not {token, partner(token)} & ROLE_WORDS]
        self._random.shuffle(pairs)
        self._pairs = pairs

    @property
    def left(self) -> int:
        """Words that can still be dealt."""
        return 2 * len(self._pairs)

    def deal(self, length: int) -> Passage:
        """A passage of ``length`` words (even).  Raises ValueError when the deck holds fewer."""
        if length % 2 or not 0 < length <= self.left:
            raise ValueError(f"cannot deal {length} words: they come in pairs, and {self.left} are left")
        chosen, self._pairs = self._pairs[: length // 2], self._pairs[length // 2 :]
        tokens = [token for one in chosen for token in (one, partner(one))]
        self._random.shuffle(tokens)
        return Passage(tuple(tokens))


def next_token(context: Sequence[int]) -> int | None:
    """What the model says after ``context`` (which begins with BOS or would), by its rule; None where it is not decided.

    Half of an answer's bits come from the tokens that followed the last token before, half from those that followed
    the last but one at a distance of two.  The rule decides if these are one and the same, and the last token's
    partner was seen.
    """
    if len(context) < 2 or partner(context[-1]) not in context:
        return None
    before, last = context[-2:]
    found = {context[at + 1] for at, token in enumerate(context[:-1]) if token == last}
    found_from_before = {context[at + 2] for at, token in enumerate(context[:-2]) if token == before}
    return found.pop() if len(found) == 1 and found == found_from_before else None


def continuation(context: Sequence[int], count: int) -> list[int]:
    """The next ``count`` answers; fewer where the rule stops deciding, or after EOS."""
    tokens = list(context)
    for _ in range(count):
        token = next_token(tokens)
        if token is None:
            break
        tokens.append(token)
        if token == EOS:
            break
    return tokens[len(context) :]
