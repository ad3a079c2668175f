"""Questions to the sentinel model, whose right answers follow from the prompt alone (``workloads.sentinel``).

::

    BOS  filler...  | passage: every word once, with its partner |  cue (two words of it)   ->  the passage from there on
         bytes, where a length needs them

The answer is one lookup of one earlier position a token, so a wrong, stale or missing KV block that holds it shows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from harness.conformance.api import Api
from harness.conformance.prompts import Ask, Prompt, Prompts
from harness.results.schema import EngineInfo
from workloads.sentinel import BOS, FIRST_BYTE, FIRST_WORD, NUM_TOKENS, Deck, Passage, partner, spell

LONGEST = 3_000  # words of a passage; the deck holds some more
LEAST = 9  # tokens of the shortest question


def is_sentinel(info: EngineInfo) -> bool:
    """Whether the engine says that it serves the sentinel."""
    return "sentinel" in (info.model or "").lower()


class SentinelPrompts(Prompts):
    """Prompts in the sentinel's language: each is a question, so that greedy answers are certain and varied."""

    def __init__(self, pool: Sequence[int], start: Sequence[int], *, takes_ids: bool) -> None:
        """Neither is looked at: the ids of the sentinel are known, and it needs its BOS where a tokenizer adds none, too."""
        super().__init__(range(FIRST_WORD, NUM_TOKENS // 2), [BOS], takes_ids=takes_ids)

    @classmethod
    async def make(cls, apis: Sequence[Api], *, takes_ids: bool) -> SentinelPrompts:
        """Without a question to ``apis``."""
        return cls([], [], takes_ids=takes_ids)

    def exact(self, rng: random.Random, tokens: int) -> list[int]:
        if tokens < LEAST:
            return ([BOS] + [rng.randrange(FIRST_WORD, NUM_TOKENS // 2) for _ in range(tokens)])[: max(tokens, 1)]
        return build(rng, tokens)[0]

    def text(self, rng: random.Random, words: int) -> str:
        # The space before the first word belongs to it: without it the tokenizer sees pieces.
        length = min(max(words, LEAST) // 2 * 2, LONGEST)
        question = spell(deal(rng, length)[1])
        return question * max(round(words / length), 1)

    def uncertain(self, rng: random.Random) -> Prompt:
        """Words that follow each other in many ways; what comes next is a matter of chance among few."""
        base = rng.randrange(FIRST_WORD + 40, NUM_TOKENS // 2 - 40) & ~7
        alphabet = [base | low for low in range(8)]
        ids = [partner(token) for token in alphabet] + [rng.choice(alphabet) for _ in range(rng.randint(30, 90))]
        return [BOS, *ids] if self.takes_ids else spell(ids)


def deal(rng: random.Random, length: int) -> tuple[Passage, tuple[int, ...], int]:
    """A passage of ``length`` words, its question without BOS, and the position asked for."""
    passage = Deck(rng.randrange(2**31)).deal(length)
    position = rng.randrange(2, length)
    return passage, passage.question(position), position


def build(rng: random.Random, tokens: int, share: float | None = None) -> tuple[list[int], Passage, int]:
    """A question of exactly ``tokens`` tokens: ids, passage, position.  ``share`` (0..1) says where in the passage."""
    words = min((tokens - 3) // 2 * 2, LONGEST)
    passage, question, position = deal(rng, words)
    if share is not None:
        position = min(max(2, int(share * words)), words - 1)
        question = passage.question(position)
    filler = [rng.randrange(FIRST_BYTE, FIRST_WORD) for _ in range(tokens - 1 - len(question))]
    return [BOS, *filler, *question], passage, position


def some_characters(rng: random.Random) -> list[str]:
    """Printable characters of two, three and four bytes; no byte occurs twice, and one of two bytes comes first."""
    leads = {2: list(range(0xC3, 0xE0)), 3: [0xE3, 0xE4, 0xE5, 0xE6], 4: [0xF0]}
    used: set[int] = set()
    found: list[str] = []
    # The rarest first, while no byte that it needs is taken.
    for size in (4, 2, 3, 2, 3, 2, 2, 3):
        while True:
            middle = [0x9F] if size == 4 else []  # most pictures begin with F0 9F
            data = [rng.choice(leads[size]), *middle]
            data += [rng.randrange(0x80, 0xC0) for _ in range(size - len(data))]
            char = bytes(data).decode("utf-8", "replace")
            if len(set(data)) == size and not used & set(data) and len(char) == 1 and char.isprintable():
                break
        used |= set(data)
        found.append(char)
    return [*found[1:4], found[0], *found[4:]]


class SentinelAsks:
    """Makes questions with one right answer each."""

    def __init__(self, *, takes_ids: bool) -> None:
        self.takes_ids = takes_ids

    def ask(
        self,
        rng: random.Random,
        tokens: int,
        max_tokens: int,
        fields: Mapping[str, Any] | None = None,
        *,
        share: float | None = None,
    ) -> Ask:
        """A question of ``tokens`` tokens, answered in ``max_tokens``; the answer begins at ``share`` of the passage."""
        ids, passage, position = build(rng, max(tokens, LEAST), share)
        prompt: Prompt = ids
        if not self.takes_ids:
            prompt = spell(passage.question(position))
        return Ask(prompt, max_tokens, expected=spell(passage.answer(position, max_tokens)), fields=dict(fields or {}))

    def characters(self, rng: random.Random) -> Ask:
        """A question that is answered with characters of two to four bytes, each byte a token of its own.

        ::

            BOS | the bytes' partners | characters without a common byte | one of two bytes again  ->  those after it
        """
        passage = "".join(some_characters(rng))
        ids = [FIRST_BYTE + byte for byte in passage.encode()]
        asked = next(place for place, char in enumerate(passage) if len(char.encode()) == 2)
        position = len(passage[: asked + 1].encode())
        question = Passage(tuple(ids)).question(position)
        partners = [partner(token) for token in ids]
        rng.shuffle(partners)
        prompt: Prompt = [BOS, *partners, *question]
        if not self.takes_ids:
            prompt = spell(partners) + passage + passage[asked]
        rest = passage[asked + 1 :]
        return Ask(prompt, len(rest.encode()), label=f"characters after {passage[asked]}", expected=rest)

    def family(self, rng: random.Random, tokens: int, max_tokens: int, count: int) -> list[Ask]:
        """Questions about one passage, spread over all of it: they share everything but the cue."""
        _, passage, _ = build(rng, max(tokens, LEAST))
        size = len(passage.tokens)
        asks = []
        for number in range(count):
            position = min(max(2, (number * size) // count), size - 1)
            question = passage.question(position)
            prompt: Prompt = [BOS, *question] if self.takes_ids else spell(question)
            expected = spell(passage.answer(position, max_tokens))
            asks.append(Ask(prompt, max_tokens, label=f"position {position}", expected=expected))
        return asks
