"""Prompts of an exact token length, by whatever counts tokens: a server's ``/tokenize`` or a local tokenizer.

The text is drawn from common English words, most of which are one token in the vocabularies of current models, so that
a first guess is near and a few corrections make it exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from workloads.request import Message

_WORD_LIST = """
the and for that with this from have they will what about which when make like time just know take people into year
your good some could them see other than then now look only come over think also back after use two how our work
first well way even new want because any these give day most us water house school family city country world state
night point home hand place case week company system program question government number part fact group problem
right room mother area money story month lot study book eye job word business issue side kind head service friend
father power hour game line end member law car community name president team minute idea kid body information
parent face others level office door health person art war history party result change morning reason research girl
guy moment air teacher force education foot boy age policy music market sense nation plan college interest death
course someone experience effect behind sort field road table class view paper control space ground form support
event official matter center couple site project hit base activity star action oil situation cost industry figure
street image phone data picture practice piece land product doctor wall patient worker news test movie north love
large small early young important public bad able long great little own old high different next best free open
strong whole real clear recent certain late hard major better economic possible local common simple past big
special easy full low human
"""
WORDS = tuple(_WORD_LIST.split())

MAX_ATTEMPTS = 16
# Tokens of its own that every prompt has: fewer would make equal prompts (ShareGPT filters drop those too).
MIN_OWN_TOKENS = 4


class TokenCounter(Protocol):
    """Counts the tokens of a whole prompt as the server will count them.  Implementations raise ``CountError``."""

    name: str  # how the count was made, for the record

    def count_prompt(self, prompt: str) -> int:
        """Tokens of a completions prompt, special tokens that the server adds included."""
        ...

    def count_messages(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat prompt after the chat template, generation prompt included."""
        ...


class CountError(RuntimeError):
    """The counter cannot count this kind of prompt.  The message says why."""


class WordCounter:
    """Stand-in when nothing can tokenize: one token a word.  Lengths made with it are estimates, not exact."""

    name = "words (an estimate: no tokenizer was at hand)"

    def count_prompt(self, prompt: str) -> int:
        return len(prompt.split())

    def count_messages(self, messages: Sequence[Message]) -> int:
        return sum(len(message["content"].split()) for message in messages)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A text with the number of tokens that its prompt came to."""

    text: str
    tokens: int


class Render(Protocol):
    """Counts the tokens of the prompt that holds the given text."""

    def __call__(self, text: str) -> int: ...


def fit_text(target: int, overhead: int, random: Random, count: Render) -> Fitted:
    """Words such that ``count(text)`` is ``target`` tokens, or as near below as a few attempts come.

    ``count`` includes whatever surrounds the text (template, earlier turns); ``overhead`` is a guess at how many tokens
    that takes.  With too little room a text of one word is returned, and its count tells.
    """
    words = random.choices(WORDS, k=max(1, target - overhead))
    best: Fitted | None = None
    for _ in range(MAX_ATTEMPTS):
        fitted = Fitted(" ".join(words), count(" ".join(words)))
        if best is None or _miss(fitted, target) < _miss(best, target):
            best = fitted
        missing = target - fitted.tokens
        if missing == 0:
            break
        if missing > 0:
            words = words + random.choices(WORDS, k=missing)
        else:
            words = words[: max(1, len(words) + missing)]
            words[-1] = random.choice(WORDS)
    assert best is not None
    return best


def _miss(fitted: Fitted, target: int) -> tuple[bool, int]:
    """How bad a text is: one that is too long may not fit the model, so any shorter one is better."""
    return fitted.tokens > target, abs(fitted.tokens - target)
