"""The bytes of an answer, as OpenAI-compatible servers write them; frames of tokens are encoded once and kept."""

from __future__ import annotations

import zlib
from typing import Any

import orjson

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LAST_FRAME = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    413: "Content Too Large", 429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
# A token is a word; which ones an answer has depends on its prompt alone.
WORDS = tuple(
    f" {first}{second}"
    for first in ("a", "be", "co", "du", "el", "fi", "go", "hu", "in", "ka", "lo", "me", "no", "or", "pa", "ru")
    for second in ("an", "bo", "cu", "der", "el", "fin", "go", "him", "ir", "ka", "lun", "mo", "nes", "or", "pel", "ra")
)


def frame(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(document: Any) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def response(status: int, document: Any, content_type: str = "application/json") -> bytes:
    """A whole plain response; a str goes out as it is."""
    body = document.encode() if isinstance(document, str) else orjson.dumps(document)
    head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def error_document(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": status}}


def start_of(prompt: bytes) -> int:
    """Where in the list of words the answer to ``prompt`` begins."""
    return zlib.crc32(prompt) % len(WORDS)


class Frames:
    """Frames for one model name."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._kept: dict[tuple[bool, int, int, int], bytes] = {}

    def tokens(self, chat: bool, n: int, word: int, count: int) -> bytes:
        """``count`` tokens from word ``word`` on for each of ``n`` choices, framed."""
        key = (chat, n, word % len(WORDS), count)
        kept = self._kept.get(key)
        if kept is None:
            text = text_of(word, count)
            events = [self.event(chat, index, {"content": text} if chat else text) for index in range(n)]
            kept = self._kept[key] = frame(b"".join(events))
        return kept

    def event(self, chat: bool, index: int, piece: Any, reason: str | None = None) -> bytes:
        """An event with one choice; ``piece`` is a delta of a chat or a text."""
        choice = {"index": index, "delta" if chat else "text": piece, "logprobs": None, "finish_reason": reason}
        return event(self._document(chat, [choice]))

    def opening(self, n: int) -> bytes:
        """The role deltas that open a chat stream, framed."""
        return frame(b"".join(self.event(True, i, {"role": "assistant", "content": ""}) for i in range(n)))

    def ending(self, chat: bool, n: int, reason: str | None, usage: dict[str, int] | None, done: bool) -> bytes:
        """What follows the last token, framed, and the end of the body.  ``reason`` None leaves the reason out."""
        events = b""
        if reason is not None:
            events = b"".join(self.event(chat, index, {} if chat else "", reason) for index in range(n))
        if usage is not None:
            events += event({**self._document(chat, []), "usage": usage})
        if done:
            events += DONE
        return (frame(events) if events else b"") + LAST_FRAME

    def whole(self, chat: bool, n: int, word: int, count: int, reason: str, usage: dict[str, int]) -> bytes:
        """The response to a request without ``stream``."""
        text = text_of(word, count)
        content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choices = [{"index": i, **content, "logprobs": None, "finish_reason": reason} for i in range(n)]
        document = {**self._document(chat, choices), "usage": usage}
        document["object"] = "chat.completion" if chat else "text_completion"
        return response(200, document)

    def _document(self, chat: bool, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if chat else "text_completion"
        prefix = "chatcmpl" if chat else "cmpl"
        return {"id": f"{prefix}-emulated", "object": kind, "created": 0, "model": self._model, "choices": choices}


def text_of(word: int, count: int) -> str:
    return "".join(WORDS[(word + k) % len(WORDS)] for k in range(count))
