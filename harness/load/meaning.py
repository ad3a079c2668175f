"""What a streamed completion says: content chunks, counts, the reason it ended.  Parsing only; no clock, no sockets.

Chat and completions streams of OpenAI-compatible servers differ in where they put things: usage in a chunk of its
own or beside the last choice, an empty first delta or none, ``[DONE]`` or nothing.  Everything that is seen is
taken.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from harness.load.sse import SseEvent

MAX_TOKENS = 1 << 40  # no answer is longer, and the tables hold 64 bits
MAX_DONE_BYTES = 32  # of an event that may be [DONE] and blanks


class ContentChunk(NamedTuple):
    """A chunk that brought generated tokens.  ``mark`` is the read it came in; ``tokens`` is null when not told."""

    mark: int
    tokens: int | None


@dataclass(slots=True)
class StreamMeaning:
    """Accumulates the events of one stream."""

    chunks: list[ContentChunk] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    parallel: dict[int, list[str]] = field(default_factory=dict)  # texts of choices other than the first, by index
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    returned_ids: int | None = None  # token ids counted, where the server returns them
    done: bool = False
    in_band: str | None = None  # the server's error message inside a 200
    malformed: str | None = None

    def take(self, event: SseEvent) -> None:
        """Take in one event.  Never raises: what cannot be read is noted in ``malformed``."""
        data = event.data
        if len(data) < MAX_DONE_BYTES and data.strip() == b"[DONE]":
            if self.done:
                self._malformed("a second [DONE]")
            self.done = True
            return
        if self.done:
            self._malformed("an event after [DONE]")
            return
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            if event.event == b"error":
                self.in_band = self.in_band or data.decode("utf-8", "replace")
            else:
                self._malformed(f"an event is not JSON ({error})")
            return
        if not isinstance(document, dict):
            self._malformed("an event is not a JSON object")
            return
        if event.event == b"error" or document.get("error"):
            self.in_band = self.in_band or describe_error(document)
            return
        try:
            self._usage(document.get("usage"))
            for choice in document.get("choices") or ():
                self._choice(choice, event.mark)
        except (AttributeError, TypeError, ValueError) as error:
            self._malformed(f"an event has an unexpected shape ({error})")

    @property
    def sha256(self) -> str | None:
        """Digest of the whole text (of all choices, however they came interleaved), None when nothing was generated."""
        if not self.chunks:
            return None
        texts = ["".join(self.text), *("".join(self.parallel[index]) for index in sorted(self.parallel))]
        return hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()

    def _malformed(self, what: str) -> None:
        self.malformed = self.malformed or what

    def _usage(self, usage: dict[str, Any] | None) -> None:
        if not usage:
            return
        self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
        self.output_tokens = _count(usage.get("completion_tokens"), self.output_tokens)
        details = usage.get("prompt_tokens_details") or {}
        self.cached_tokens = _count(details.get("cached_tokens", usage.get("cached_tokens")), self.cached_tokens)

    def _choice(self, choice: dict[str, Any], mark: int) -> None:
        reason = choice.get("finish_reason")
        if reason is not None:
            self.finish_reason = str(reason)
        delta = choice.get("delta")
        if delta is None:
            text, opens = choice.get("text"), False
            if text is not None and not isinstance(text, str):
                raise ValueError("text is not a string")
        else:
            text, opens = _delta_text(delta), "role" in delta
        ids = choice.get("token_ids")
        if ids is not None:
            self.returned_ids = (self.returned_ids or 0) + len(ids)
        # An empty text that neither opens nor ends the stream is a token whose characters are not complete yet.
        if text or ids or (text == "" and not opens and reason is None):
            self.chunks.append(ContentChunk(mark, len(ids) if ids is not None else None))
            index = choice.get("index") or 0
            if not isinstance(index, int):
                raise ValueError("the index of a choice is not a number")
            (self.parallel.setdefault(index, []) if index else self.text).append(text or "")


def describe_error(document: dict[str, Any]) -> str:
    """The message of an error envelope, in any of the shapes that servers use."""
    error = document.get("error", document)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or orjson.dumps(error).decode()
    return " ".join(str(error).split())[:500]


def _delta_text(delta: dict[str, Any]) -> str | None:
    """Whatever a chat delta generated: content, reasoning, or the arguments of a tool call."""
    parts = [delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content")]
    for call in delta.get("tool_calls") or ():
        function = call.get("function") or {}
        parts += [function.get("name"), function.get("arguments")]
    known = [part for part in parts if part is not None]
    for part in known:
        if not isinstance(part, str):
            raise ValueError("content is not a string")
    return "".join(known) if known else None


def _count(value: Any, before: int | None) -> int | None:
    """A token count from the wire; a later null does not erase an earlier number."""
    if value is None:
        return before
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
        raise ValueError(f"a token count is {value!r}")
    return int(value)
