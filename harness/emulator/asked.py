"""Reading a completion request strictly enough that a client's mistake is a 400 and not a strange answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

TEMPLATE_TOKENS = 3  # what a chat message costs beside its words


class BadRequest(ValueError):
    """The message goes to the client."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request wants.  ``output_tokens`` is None where it leaves that to the server."""

    chat: bool
    prompt: bytes
    prompt_tokens: int
    output_tokens: int | None
    ignore_eos: bool
    n: int
    stream: bool
    include_usage: bool


def count_words(text: str) -> int:
    return len(text.split())


def read(body: bytes, chat: bool) -> Asked:
    """The request in ``body``.  Raises :class:`BadRequest`."""
    document = read_object(body)
    prompt, tokens = _messages(document) if chat else _prompt(document)
    options = document.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest("stream_options must be an object")
    limit = document.get("max_completion_tokens", document.get("max_tokens"))
    return Asked(
        chat=chat,
        prompt=prompt,
        prompt_tokens=tokens,
        output_tokens=None if limit is None else _whole("max_tokens", limit),
        ignore_eos=bool(document.get("ignore_eos")),
        n=_whole("n", document.get("n") or 1),
        stream=bool(document.get("stream")),
        include_usage=bool(options.get("include_usage")),
    )


def read_object(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRequest("the body must be a JSON object")
    return document


def count_messages(messages: Any) -> int:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list of at least one message")
    total = 0
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise BadRequest("every message needs a role and a text as content")
        total += TEMPLATE_TOKENS + count_words(message["content"])
    return total


def _messages(document: dict[str, Any]) -> tuple[bytes, int]:
    messages = document.get("messages")
    return orjson.dumps(messages), count_messages(messages)


def _prompt(document: dict[str, Any]) -> tuple[bytes, int]:
    prompt = document.get("prompt")
    if isinstance(prompt, str):
        tokens = count_words(prompt)
    elif isinstance(prompt, list) and all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in prompt):
        tokens = len(prompt)
    else:
        raise BadRequest("prompt must be one text or one list of token ids")
    if not tokens:
        raise BadRequest("the prompt is empty")
    return orjson.dumps(prompt), tokens


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest(f"{name} must be a whole number of 1 or more, not {value!r}")
    return value
