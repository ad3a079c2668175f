"""Answers of the two generating endpoints in one shape, whatever dialect of logprobs and streaming an engine speaks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.conformance.case import Failed, NoAnswer

if TYPE_CHECKING:
    from harness.conformance.api import Exchange


@dataclass(slots=True)
class TokenScore:
    """One returned token: its text, log-probability (natural log), and the best tokens of its position, best first."""

    token: str
    logprob: float | None
    top: list[tuple[str, float]] = field(default_factory=list)
    id: int | None = None
    data: bytes | None = None

    @property
    def gap(self) -> float | None:
        """Nats between the best two tokens of the position."""
        return self.top[0][1] - self.top[1][1] if len(self.top) > 1 else None


@dataclass(slots=True)
class Choice:
    """One continuation.  ``ids`` and ``scores`` are None where the engine returned none."""

    index: Any
    text: str = ""
    finish: Any = None
    ids: list[int] | None = None
    scores: list[TokenScore] | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    def token_ids(self) -> list[int] | None:
        """Ids of the tokens, from the ids themselves or from scores that carry them."""
        if self.ids is not None:
            return self.ids
        if self.scores and all(score.id is not None for score in self.scores):
            return [score.id for score in self.scores if score.id is not None]
        return None


@dataclass(slots=True)
class Answer:
    """A whole answer, streamed or not."""

    exchange: Exchange
    choices: list[Choice]
    usage: Mapping[str, Any]
    document: Mapping[str, Any]

    @property
    def first(self) -> Choice:
        return self.choices[0]

    @property
    def text(self) -> str:
        return self.choices[0].text

    def count(self, name: str) -> int | None:
        """A number of ``usage``; None where it is absent or no whole number."""
        value = self.usage.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def prompt_tokens(self) -> int | None:
        return self.count("prompt_tokens")

    @property
    def completion_tokens(self) -> int | None:
        return self.count("completion_tokens")

    @property
    def cached_tokens(self) -> int | None:
        details = self.usage.get("prompt_tokens_details")
        value = details.get("cached_tokens") if isinstance(details, Mapping) else None
        return value if isinstance(value, int) else None


def parting(one: Answer, other: Answer) -> tuple[TokenScore, TokenScore] | None:
    """Both scores of the first position with different tokens; None where there is none among those that were scored."""
    pairs = zip(one.first.scores or [], other.first.scores or [], strict=False)
    return next(((a, b) for a, b in pairs if a.token != b.token), None)


def parse_answer(exchange: Exchange, *, is_chat: bool) -> Answer:
    """The answer in an exchange.  Raises Failed when it is not a good one."""
    where = f"{exchange.method} {exchange.path}"
    if exchange.status is None:
        raise NoAnswer(f"{where}: {exchange.error}")
    if exchange.status != 200:
        raise Failed(f"{where} was refused: {exchange.words}", sent=exchange.sent and exchange.sent[:500])
    document = exchange.json()
    if not isinstance(document, dict):
        raise Failed(f"{where} answered 200 with a body that is no JSON object: {exchange.text[:160]!r}")
    choices = document.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise Failed(f"{where} answered without a list of choices: {exchange.text[:160]!r}")
    usage = document.get("usage")
    return Answer(
        exchange,
        [parse_choice(choice, is_chat=is_chat) for choice in choices],
        usage if isinstance(usage, dict) else {},
        document,
    )


def parse_choice(choice: Mapping[str, Any], *, is_chat: bool) -> Choice:
    message = choice.get("message")
    text = message.get("content") if is_chat and isinstance(message, dict) else choice.get("text")
    ids = choice.get("token_ids")
    return Choice(
        index=choice.get("index"),
        text=text if isinstance(text, str) else "",
        finish=choice.get("finish_reason"),
        ids=ids if isinstance(ids, list) and all(isinstance(item, int) for item in ids) else None,
        scores=parse_scores(choice.get("logprobs")),
        raw=choice,
    )


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def parse_scores(logprobs: Any) -> list[TokenScore] | None:
    """Both forms: the parallel lists of /v1/completions, the ``content`` list of chat."""
    if not isinstance(logprobs, dict):
        return None
    content = logprobs.get("content")
    if isinstance(content, list):
        return [parse_entry(entry) for entry in content if isinstance(entry, dict)]
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list):
        return None
    tops = logprobs.get("top_logprobs")
    tops = tops if isinstance(tops, list) else []
    scores = []
    for place, (token, value) in enumerate(zip(tokens, values, strict=False)):
        top = tops[place] if place < len(tops) and isinstance(tops[place], dict) else {}
        best = sorted(((str(key), number(item) or 0.0) for key, item in top.items()), key=lambda pair: -pair[1])
        scores.append(TokenScore(str(token), number(value), best))
    return scores


def parse_entry(entry: Mapping[str, Any]) -> TokenScore:
    top = entry.get("top_logprobs")
    best = [
        (str(item.get("token")), number(item.get("logprob")) or 0.0)
        for item in (top if isinstance(top, list) else [])
        if isinstance(item, dict)
    ]
    data = entry.get("bytes")
    identity = entry.get("id")
    return TokenScore(
        str(entry.get("token")),
        number(entry.get("logprob")),
        best,
        identity if isinstance(identity, int) else None,
        bytes(data) if isinstance(data, list) and all(isinstance(b, int) and 0 <= b < 256 for b in data) else None,
    )


class Streamed:
    """The events of one stream in order, with their times [s after sending]."""

    def __init__(self, exchange: Exchange, *, is_chat: bool) -> None:
        self.exchange = exchange
        self.is_chat = is_chat
        self.raw = bytearray()
        self.events: list[dict[str, Any]] = []
        self.times: list[float] = []  # one an event
        self.bad: list[str] = []  # data lines that are neither JSON objects nor [DONE]
        self.done = False
        self.after_done = 0  # events after [DONE]
        self.was_cancelled = False

    def take(self, data: bytes, now: float) -> None:
        """One dispatched event's data."""
        if self.done:
            self.after_done += 1
        if data.strip() == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            self.bad.append(data[:200].decode("utf-8", "replace"))
            return
        self.events.append(event)
        self.times.append(now)

    def deltas(self) -> list[tuple[float, dict[str, Any]]]:
        """Every entry of every event's ``choices`` with its time."""
        found = []
        for now, event in zip(self.times, self.events, strict=True):
            choices = event.get("choices")
            found += [
                (now, choice) for choice in (choices if isinstance(choices, list) else []) if isinstance(choice, dict)
            ]
        return found

    def piece(self, choice: Mapping[str, Any]) -> str:
        """The text that a delta adds."""
        if self.is_chat:
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, dict) else None
        else:
            text = choice.get("text")
        return text if isinstance(text, str) else ""

    def content_times(self) -> list[float]:
        """When each piece of text came."""
        return [now for now, choice in self.deltas() if self.piece(choice)]

    @property
    def errors(self) -> list[Any]:
        return [event["error"] for event in self.events if event.get("error")]

    def fault(self) -> str | None:
        """Why this is not a complete good stream, or None."""
        exchange = self.exchange
        if exchange.status is None:
            return exchange.error or "no answer"
        if exchange.status != 200:
            return exchange.words
        if exchange.error is not None:
            return exchange.error
        if self.errors:
            return f"the stream carries an error: {str(self.errors[0])[:160]}"
        if not self.deltas():
            return f"the stream has no choices: {exchange.words}"
        if not any(choice.get("finish_reason") for _, choice in self.deltas()):
            return "the stream ends without a finish_reason"
        return None

    def answer(self) -> Answer:
        """What the stream says altogether.  Raises Failed when it is no complete good stream."""
        fault = self.fault()
        if fault is not None:
            kind = NoAnswer if self.exchange.status is None else Failed
            raise kind(f"POST {self.exchange.path} as a stream: {fault}")
        choices: dict[Any, Choice] = {}
        for _, delta in self.deltas():
            choice = choices.setdefault(delta.get("index"), Choice(delta.get("index")))
            choice.text += self.piece(delta)
            choice.finish = delta.get("finish_reason") or choice.finish
            if isinstance(delta.get("token_ids"), list):
                choice.ids = (choice.ids or []) + delta["token_ids"]
            scores = parse_scores(delta.get("logprobs"))
            if scores:
                choice.scores = (choice.scores or []) + scores
        usage: Mapping[str, Any] = next(
            (event["usage"] for event in reversed(self.events) if isinstance(event.get("usage"), dict)), {}
        )
        ordered = sorted(choices.values(), key=lambda choice: str(choice.index).zfill(6))
        return Answer(self.exchange, ordered, usage, self.events[0])
