"""Prompts of a wanted length for any model: token ids where the engine takes them, words elsewhere.

Random words share no prefix by chance, so a prefix cache stays cold unless a case wants it warm.
"""

# ruff: noqa: SIM905 - a table of words reads better as text
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.conformance.api import Api

Prompt = str | list[int]

WORDS = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what "
    "all were when we there can an your which their said if do will each about how up out them then she many "
    "some so these would other into has more her two like him see time could no make than first been its who now "
    "people my made over did down only way find use may water long little very after words called just where "
    "most know get through back much before go good new write our used me man too any day same right look think "
    "also around another came come work three word must because does part even place well such here take why "
    "things help put years different away again off went old number great tell men say small every found still "
    "between name should home big give air line set own under read last never us left end along while might next "
    "sound below saw something thought both few those always looked show large often together asked house world "
    "going want school important until form food keep children feet land side without boy once animals life "
    "enough took sometimes four head above kind began almost live page got earth "
).split()


@dataclass(slots=True)
class Ask:
    """One question.  ``expected`` is the only right text where the model's answers are known (sentinel)."""

    prompt: Prompt
    max_tokens: int
    label: str = ""
    expected: str | None = None
    fields: dict[str, object] = field(default_factory=dict)


class Prompts:
    """Makes prompts.  ``pool``: ids of single words; empty where neither engine nor reference tokenizes."""

    def __init__(self, pool: Sequence[int], start: Sequence[int], *, takes_ids: bool) -> None:
        self.pool = list(pool)
        self.start = list(start)  # what the tokenizer puts before every text (BOS), or nothing
        self.takes_ids = takes_ids and bool(self.pool)

    @classmethod
    async def make(cls, apis: Sequence[Api], *, takes_ids: bool) -> Prompts:
        """``apis``: servers of this model, asked in turn to tokenize."""
        for api in apis:
            ids = await tokenize(api, " " + " ".join(WORDS))
            start = await tokenize(api, "")
            if ids is None:
                continue
            start = start or []
            body = ids[len(start) :] if ids[: len(start)] == start else ids
            return cls(sorted(set(body)), start, takes_ids=takes_ids)
        return cls([], [], takes_ids=False)

    def exact(self, rng: random.Random, tokens: int) -> list[int]:
        """Random ids, ``tokens`` of them with the start.  Only where ``takes_ids``."""
        return (self.start + [rng.choice(self.pool) for _ in range(tokens)])[: max(tokens, 1)]

    def text(self, rng: random.Random, words: int) -> str:
        """About as many tokens as words."""
        return " ".join(rng.choice(WORDS) for _ in range(max(words, 1)))

    def joined(self, *parts: Prompt) -> Prompt:
        """Prompts one after another, with one start."""
        if all(isinstance(part, list) for part in parts):
            lists = [part for part in parts if isinstance(part, list)]
            size = len(self.start)
            rest = [token for part in lists[1:] for token in (part[size:] if part[:size] == self.start else part)]
            return lists[0] + rest
        return " ".join(str(part) for part in parts)

    def uncertain(self, rng: random.Random) -> Prompt:
        """A prompt whose next token may be a matter of chance; whether it is, its distribution tells."""
        return self.make_prompt(rng, rng.randint(3, 24))

    def make_prompt(self, rng: random.Random, tokens: int) -> Prompt:
        """As near to ``tokens`` as the engine's dialect allows."""
        return self.exact(rng, tokens) if self.takes_ids else self.text(rng, tokens)


async def tokenize(api: Api, text: str, *, special: bool = True) -> list[int] | None:
    """Token ids of ``text`` by the server's /tokenize in either dialect, or None."""
    body = {"prompt": text, "content": text, "add_special_tokens": special, "add_special": special}
    # vLLM's form first: a server that knows it must not be confused by llama.cpp's ``content``.
    for keys in (("prompt", "add_special_tokens"), ("content", "add_special")):
        reply = await api.post("/tokenize", {key: body[key] for key in keys})
        document = reply.json() if reply.status == 200 else None
        tokens = document.get("tokens") if isinstance(document, dict) else None
        if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) and (tokens or not text):
            return tokens
    return None


async def detokenize(api: Api, tokens: Sequence[int]) -> str | None:
    """Text of token ids by the server's /detokenize, under vLLM's name or llama.cpp's, or None."""
    reply = await api.post("/detokenize", {"tokens": list(tokens)})
    document = reply.json() if reply.status == 200 else None
    texts = [document.get(name) for name in ("prompt", "content")] if isinstance(document, dict) else []
    return next((text for text in texts if isinstance(text, str)), None)
