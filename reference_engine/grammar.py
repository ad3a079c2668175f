"""From JSON schemas to constraints, with the library ``llguidance``: a grammar over bytes, masks over the vocabulary.

Documents are compact, without white space between their parts: a small model asked for a document would otherwise write
spaces until its limit.  Keywords that the library does not know are refused rather than ignored.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from reference_engine.constraint import Constraint, Vocabulary
from reference_engine.detokenizer import TokenSource, TokenTable

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Encode = Callable[[str, bool], list[int]]  # text, whether to add special tokens
_FORCED_STEPS = 32  # tokens
_MOST_ERROR = 300  # characters of the library's messages that are passed on


class GrammarError(Exception):
    """Why a grammar cannot be used, as a sentence for the client."""


def document(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON documents that match ``schema``."""
    return json.dumps({"grammars": [{"json_schema": _compact(schema)}]})


def one_call(parameters: Mapping[str, Mapping[str, Any]]) -> str:
    """The grammar of ``{"name":NAME,"arguments":{...}}`` for one of the functions: name -> schema of its arguments."""
    parts = [
        {"name": f"arguments_{i}", "json_schema": _compact(schema)} for i, schema in enumerate(parameters.values())
    ]
    closing = json.dumps("}")
    calls = []
    for i, name in enumerate(parameters):
        opening = json.dumps('{"name":' + json.dumps(name) + ',"arguments":')
        calls.append(f"{opening} @arguments_{i} {closing}")
    return json.dumps({"grammars": [{"lark_grammar": "start: " + " | ".join(calls)}, *parts]})


def _compact(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "x-guidance": {"whitespace_flexible": False}}


class Compiler:
    """Compiles grammars for one vocabulary.  Any thread may call it."""

    def __init__(
        self,
        source: TokenSource,
        encode: Encode,
        tokens: TokenTable,
        *,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        """``tokens`` are those of ``source``; ``vocab_size`` is the model's, which may exceed the tokenizer's."""
        self._source = source
        self._encode = encode
        self._tokens = tokens
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._lock = threading.Lock()
        self._built: tuple[LLTokenizer, Vocabulary] | None = None

    def compile(self, grammar: str) -> Constraint:
        """The constraint of a grammar that ``document`` or ``one_call`` has written.  Raises GrammarError."""
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError:
            raise GrammarError(
                "needs the package llguidance, which is not installed here; pip install 'pagedbench[engine]' brings it"
            ) from None
        with self._lock:
            if self._built is None:
                self._built = self._build()
        tokenizer, vocabulary = self._built
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if error := matcher.get_error() or _stuck(matcher.deep_copy()):
            raise GrammarError(f"this schema cannot be used: {_one_line(error)}")
        return Constraint(matcher, vocabulary)

    def _build(self) -> tuple[LLTokenizer, Vocabulary]:
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self._eos_token_ids:
            raise GrammarError("this model has no end-of-sequence token, so a document could not end")
        token_bytes = [self._tokens.with_special(token) for token in range(self._vocab_size)]
        special = sorted(self._source.special_ids)
        tokenizer = LLTokenizer(
            TokenizerWrapper(_Spelling(token_bytes, self._eos_token_ids[0], special, self._encode)),
            eos_token=list(self._eos_token_ids),
            slices=LLTokenizer.json_slices(),
        )
        return tokenizer, Vocabulary(token_bytes, frozenset(self._eos_token_ids))


class _Spelling:
    """What the library asks of a tokenizer.  Called with a text, it gives the tokens that the text is forced into."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], eos_token_id: int, special_token_ids: list[int], encode: Encode) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self.special_token_ids = special_token_ids
        self._encode = encode
        self._longest = max(map(len, tokens))
        special = set(special_token_ids)
        self._ids = {data: token for token, data in enumerate(tokens) if data and token not in special}

    def __call__(self, text: str | bytes) -> list[int]:
        data = text if isinstance(text, bytes) else text.encode()
        ids = self._encode(data.decode(errors="replace"), False)
        if b"".join(self.tokens[token] for token in ids) == data:
            return ids
        # Some tokenizers put a space before a text.  Here every byte counts, so take the longest token that fits.
        ids, start = [], 0
        while start < len(data):
            for size in range(min(self._longest, len(data) - start), 0, -1):
                if (found := self._ids.get(data[start : start + size])) is not None:
                    ids.append(found)
                    start += size
                    break
            else:
                break  # no token spells this byte
        return ids


def _stuck(matcher: LLMatcher) -> str | None:
    """Why no document can be begun, or None.  Follows what is forced, for some limits show behind the first brace only."""
    for _ in range(_FORCED_STEPS):
        bits = matcher.compute_bitmask()
        if matcher.is_error():
            return matcher.get_error()
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little"))
        if not len(allowed):
            return "no document matches it"
        if len(allowed) > 1 or matcher.is_accepting():
            return None
        matcher.consume_token(int(allowed[0]))
    return None


def _one_line(message: str) -> str:
    text = " ".join(message.replace("<non-verbose/>", "").split())
    if text.startswith("NoExtension"):
        text = "no document matches it"
    return text if len(text) <= _MOST_ERROR else text[: _MOST_ERROR - 3] + "..."
