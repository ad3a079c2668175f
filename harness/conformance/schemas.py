"""JSON schemas: of the two answers (as the OpenAI specification requires them), of tools and of structured output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        name: {"type": "integer", "minimum": 0} for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    },
}
_REASON = {"enum": ["stop", "length", "tool_calls", "content_filter", "function_call"]}


def _document(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices"],
        "properties": {
            "id": {"type": "string", "minLength": 1},
            "object": {"const": kind},
            "created": {"type": "integer", "minimum": 1},
            "model": {"type": "string"},
            "usage": _USAGE,
            "choices": {"type": "array", "minItems": 1, "items": choice},
        },
    }


ANSWERS: dict[str, dict[str, Any]] = {
    "chat": _document(
        "chat.completion",
        {
            "type": "object",
            "required": ["finish_reason", "index", "message"],
            "properties": {
                "finish_reason": _REASON,
                "index": {"type": "integer", "minimum": 0},
                "logprobs": {"type": ["object", "null"]},
                "message": {
                    "type": "object",
                    "required": ["role", "content"],
                    "properties": {"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}},
                },
            },
        },
    ),
    "completion": _document(
        "text_completion",
        {
            "type": "object",
            "required": ["finish_reason", "index", "text"],
            "properties": {
                "finish_reason": {"enum": ["stop", "length", "content_filter"]},
                "index": {"type": "integer", "minimum": 0},
                "logprobs": {"type": ["object", "null"]},
                "text": {"type": "string"},
            },
        },
    ),
}


def shape_faults(document: Mapping[str, Any], kind: str) -> tuple[list[str], list[str]]:
    """What breaks the schema, and what is required but nullable and merely left out."""
    from jsonschema import Draft202012Validator

    found = sorted(
        Draft202012Validator(ANSWERS[kind]).iter_errors(document), key=lambda error: list(map(str, error.path))
    )
    faults = [f"{'.'.join(map(str, error.absolute_path)) or 'document'}: {error.message[:120]}" for error in found]
    odd = [
        f"choices.{number}.logprobs" for number, choice in enumerate(document["choices"]) if "logprobs" not in choice
    ]
    if "usage" not in document:
        odd.append("usage")
    return faults, odd


def validate_json(text: Any, schema: Mapping[str, Any]) -> str | None:
    """What is wrong with ``text`` as JSON of ``schema``, or None."""
    from jsonschema import Draft202012Validator

    if not isinstance(text, str):
        return f"no text but {text!r}"
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error} in {text[:80]!r}"
    fault = next(iter(Draft202012Validator(dict(schema)).iter_errors(value)), None)
    return None if fault is None else fault.message[:160]


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_LEAVES: list[dict[str, Any]] = [
    {"type": "integer"},
    {"type": "boolean"},
    {"type": "string", "maxLength": 12},
    {"enum": ["red", "green", "blue"]},
    {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    {"type": "number"},
    {"type": "null"},
    {"enum": [1, 2, 3]},
]

ARGUMENT_SCHEMAS: dict[str, dict[str, Any]] = {
    f"tool_{number}": _object(first=_LEAVES[number % len(_LEAVES)], second=_LEAVES[(number * 3 + 1) % len(_LEAVES)])
    for number in range(20)
}


def _output(number: int) -> dict[str, Any]:
    leaves = [_LEAVES[(number + 3 * place) % len(_LEAVES)] for place in range(1 + number % 5)]
    form = _object(**{f"field_{place}": leaf for place, leaf in enumerate(leaves)})
    return _object(inner=form, tag={"enum": ["a", "b"]}) if number % 3 == 2 else form


OUTPUT_SCHEMAS: list[dict[str, Any]] = [_output(number) for number in range(50)]
