"""Schemas compiled to constraints: every walk along the masks ends in a document that the schema allows."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import jsonschema
import numpy as np
import pytest

from reference_engine.constraint import LONGEST_NUMBER, Constraint
from reference_engine.detokenizer import TokenTable
from reference_engine.grammar import Compiler, GrammarError, document, one_call
from reference_engine.request import Request, SamplingParams, Sequence
from reference_engine.simulate.tokenizer import EOS, VOCAB, ByteTokenizer


class PairTokenizer(ByteTokenizer):
    """Bytes, and tokens of two bytes in the ids that are unused otherwise; a text gets a space before it."""

    PAIRS = (b'{"', b'":', b'",', b"},", b"12", b"00", b"ab", b'a"', "é".encode(), b'\xa9"', b"e0", b"]}")
    FIRST = 300

    def token_bytes(self, token_id: int, /) -> bytes:
        number = token_id - self.FIRST
        return self.PAIRS[number] if 0 <= number < len(self.PAIRS) else super().token_bytes(token_id)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return super().encode(" " + text, add_special_tokens)


def compiler(tokenizer: Any = None, eos: tuple[int, ...] = (EOS,)) -> Compiler:
    tokenizer = tokenizer or ByteTokenizer()
    return Compiler(tokenizer, tokenizer.encode, TokenTable(tokenizer), vocab_size=VOCAB, eos_token_ids=eos)


def walk(constraint: Constraint, tokenizer: Any, seed: int, limit: int = 400) -> str | None:
    """A document written by drawing allowed tokens at random, the end of it more often; None if it gets too long."""
    rng = random.Random(seed)
    sequence = Sequence(0, Request("r", (1, 2), SamplingParams()), tokens=[1, 2])
    guide = constraint.start()
    for _ in range(limit):
        guide.follow(sequence)
        allowed = np.flatnonzero(guide.allowed()).tolist()
        assert allowed, guide.error
        token = EOS if EOS in allowed and rng.random() < 0.5 else rng.choice(allowed)
        if token == EOS:
            return b"".join(tokenizer.token_bytes(one) for one in sequence.tokens[2:]).decode()
        sequence.tokens.append(token)
    return None


SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer"},
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
    {"enum": ["red", 'quo"ted', 3, None]},
    {
        "type": "object",
        "properties": {
            "text": {"type": "string", "maxLength": 5},
            "code": {"type": "string", "pattern": "^[0-9]{24}$"},
            "next": {"$ref": "#/$defs/next"},
        },
        "required": ["text", "code", "next"],
        "additionalProperties": False,
        "$defs": {"next": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
    },
    {"type": "integer", "minimum": 10**17, "maximum": 10**18},
    {"enum": [-1.2345678901234567e-100, 2.5]},
]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), PairTokenizer()], ids=["bytes", "pairs"])
@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_every_walk_ends_in_a_valid_compact_document(schema: dict[str, Any], tokenizer: Any) -> None:
    constraint = compiler(tokenizer).compile(document(schema))
    ended = 0
    for seed in range(20):
        text = walk(constraint, tokenizer, seed)
        if text is not None:
            value = json.loads(text)
            jsonschema.validate(value, schema)
            ended += 1
    assert ended >= 15


def test_a_number_ends_after_as_many_characters_as_a_reader_keeps() -> None:
    constraint = compiler().compile(document({"type": "array", "items": {"type": "number"}, "maxItems": 2}))
    sequence = Sequence(0, Request("r", (), SamplingParams()), tokens=list(b"[1." + b"7" * (LONGEST_NUMBER - 3)))
    guide = constraint.start()
    guide.follow(sequence)
    assert guide.allowed()[ord("7")]
    sequence.tokens.append(ord("7"))
    guide.follow(sequence)
    assert set(np.flatnonzero(guide.allowed())) == {ord(","), ord("]")}


def test_digits_of_a_string_are_no_number() -> None:
    constraint = compiler().compile(document({"type": "string"}))
    guide = constraint.start()
    guide.follow(Sequence(0, Request("r", (), SamplingParams()), tokens=list(b'"' + b"7" * 30)))
    assert guide.allowed()[ord("7")]


def test_one_call_of_several_functions_keeps_each_ones_definitions() -> None:
    first, second = (
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/x"}},
            "required": ["a"],
            "additionalProperties": False,
            "$defs": {"x": inner},
        }
        for inner in ({"type": "string", "maxLength": 5}, {"type": "boolean"})
    )
    constraint = compiler().compile(one_call({"f": first, "g-2": second}))
    seen = set()
    for seed in range(12):
        text = walk(constraint, ByteTokenizer(), seed)
        assert text is not None
        call = json.loads(text)
        jsonschema.validate(call["arguments"], {"f": first, "g-2": second}[call["name"]])
        seen.add(call["name"])
    assert seen == {"f", "g-2"}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "banana"}, "Invalid type: banana"),
        ({"not": {"type": "integer"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "#/$defs/missing"}, "/\\$defs/missing"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "not present"),
        ({"$ref": "#"}, "no document matches it"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ({"type": "string", "pattern": "(["}, "regex"),
        ({"type": "object", "properties": {f"p{i}": {} for i in range(2500)}}, "items"),
        ({"x-guidance": {"lenient": True}, "not": {"type": "integer"}}, "not"),
    ],
    ids=["type", "not", "unique", "ref", "remote", "endless", "empty", "pattern", "wide", "lenient"],
)
def test_what_cannot_be_followed_is_refused_in_one_line(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as caught:
        compiler().compile(document(schema))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_deep_schemas_do_not_break_the_process() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError, match="recursion"):
        compiler().compile(document(schema))


def test_a_model_without_an_end_is_refused() -> None:
    with pytest.raises(GrammarError, match="end-of-sequence"):
        compiler(eos=()).compile(document({"type": "integer"}))


def test_without_the_library_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarError, match="llguidance, which is not installed"):
        compiler().compile(document({"type": "integer"}))
