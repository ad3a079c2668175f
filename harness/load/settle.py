"""From an exchange to its row: did the request succeed, when did each chunk come, how many tokens were there.

A request succeeds only with status 200, at least one token, a finish reason, ``[DONE]`` and no in-band error.  A
failure has one class; where several apply, the one that explains the others stands: what the transport saw, then
the server's own error, then what was wrong with the bytes, then what was missing from them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import orjson

from harness.load.exchange import Exchange, StampSource
from harness.load.meaning import StreamMeaning, describe_error
from harness.load.sse import SseParser, whole_events
from workloads.request import RequestSpec

if TYPE_CHECKING:
    from harness.results.schema import ErrorClass, TokenSource

# Events taken in between two looks at the network, about 0.15 ms.
SLICE_EVENTS = 50


class ChunkRow(NamedTuple):
    """A row of ``chunks``, without the cell and the request.

    ``is_blurred``: the client was late, and the chunk bears a time together with the one before it (see ``stamps.py``).
    """

    t: int
    tokens: int | None
    coalesced: bool
    is_blurred: bool = False


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A row of ``requests``, without the cell."""

    request_index: int
    conversation: int | None
    turn: int | None
    t_sched: int | None
    t_ready: int
    t_send: int | None
    t_first: int | None
    t_last: int | None
    t_done: int | None
    status: int | None
    ok: bool
    error_class: str | None
    error: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    token_source: str | None
    planned_prompt_tokens: int
    planned_output_tokens: int
    chunks: int
    output_sha256: str | None
    warmup: bool
    stamp: StampSource


@dataclass(frozen=True, slots=True)
class Rules:
    """What this engine is known to do differently, found by probing.  The strict reading is the default."""

    sends_done: bool = True  # ends a stream with [DONE]


Settled = tuple[RequestRecord, list[ChunkRow]]


def settle(exchange: Exchange, spec: RequestSpec, *, warmup: bool = False, rules: Rules | None = None) -> Settled:
    """Interpret a whole exchange at once (see :func:`settle_slowly`)."""
    steps = settle_slowly(exchange, spec, warmup=warmup, rules=rules)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def settle_slowly(
    exchange: Exchange, spec: RequestSpec, *, warmup: bool = False, rules: Rules | None = None
) -> Generator[None, None, Settled]:
    """Interpret an exchange in small steps, so that the caller can serve the network in between.

    Yields nothing of use; returns the :data:`Settled` pair.
    """
    meaning, parser = StreamMeaning(), SseParser()
    if exchange.status == 200 and not _is_plain_json(exchange):
        yield from _parse(exchange, parser, meaning)
    failure = _classify(exchange, meaning, parser, rules or Rules())
    rows = []
    before = None
    for chunk in meaning.chunks:
        coalesced = chunk.mark == before
        is_blurred = coalesced and chunk.mark in exchange.late_reads
        rows.append(ChunkRow(exchange.stamps[chunk.mark], chunk.tokens, coalesced, is_blurred))
        before = chunk.mark
    output_tokens, source = _count_tokens(meaning)
    record = RequestRecord(
        request_index=exchange.index,
        conversation=spec.conversation,
        turn=spec.turn,
        t_sched=exchange.t_sched,
        t_ready=exchange.t_ready,
        t_send=exchange.t_send,
        t_first=rows[0].t if rows else None,
        t_last=rows[-1].t if rows else None,
        t_done=exchange.t_done,
        status=exchange.status,
        ok=failure is None,
        error_class=None if failure is None else failure[0],
        error=None if failure is None else failure[1],
        finish_reason=meaning.finish_reason,
        prompt_tokens=meaning.prompt_tokens,
        output_tokens=output_tokens,
        cached_tokens=meaning.cached_tokens,
        token_source=source,
        planned_prompt_tokens=spec.prompt_tokens,
        planned_output_tokens=spec.output_tokens * spec.n,
        chunks=len(rows),
        output_sha256=meaning.sha256,
        warmup=warmup,
        stamp=exchange.stamp_source,
    )
    return record, rows


def _parse(exchange: Exchange, parser: SseParser, meaning: StreamMeaning) -> Iterator[None]:
    take = meaning.take
    for number, event in enumerate(whole_events(exchange.body, exchange.ends, parser), start=1):
        take(event)
        if not number % SLICE_EVENTS:
            yield


def _is_plain_json(exchange: Exchange) -> bool:
    return exchange.content_type == "application/json" or exchange.body.lstrip()[:1] == b"{"


def _count_tokens(meaning: StreamMeaning) -> tuple[int | None, TokenSource | None]:
    """The output tokens and who counted them: the server's usage, else its token ids, else its chunks."""
    if meaning.output_tokens is not None:
        return meaning.output_tokens, "usage"
    if meaning.returned_ids is not None:
        return meaning.returned_ids, "ids"
    if meaning.chunks:
        return len(meaning.chunks), "chunks"
    return None, None


def _classify(
    exchange: Exchange, meaning: StreamMeaning, parser: SseParser, rules: Rules
) -> tuple[ErrorClass, str] | None:
    """The class and sentence of what went wrong, or None."""
    status = exchange.status
    if meaning.in_band is not None:
        return "in_band", f"the stream carried an error: {meaning.in_band}"
    if exchange.failure is not None:
        return exchange.failure
    if status is None:
        return "truncated", "the connection ended before a response began"
    if status != 200:
        return _http_failure(exchange, status)
    if _is_plain_json(exchange):
        return _plain_json_failure(exchange)
    if meaning.malformed is not None:
        return "malformed", meaning.malformed
    if not meaning.chunks:
        if not meaning.done and not exchange.body.strip():
            return "truncated", "the response has no body"
        if not meaning.done and not parser.has_partial_event and not parser.comments:
            return "malformed", f"the body is not an event stream ({exchange.content_type or 'no content type'})"
        return "truncated", "the stream ended without a token"
    if meaning.finish_reason is None:
        return "truncated", "the stream ended without a finish_reason"
    if parser.has_partial_event:
        return "truncated", "the stream ended inside an event"
    if rules.sends_done and not meaning.done:
        return "truncated", "the stream ended without [DONE]"
    return None


def _http_failure(exchange: Exchange, status: int) -> tuple[ErrorClass, str]:
    try:
        document = orjson.loads(exchange.body)
        said = describe_error(document) if isinstance(document, dict) else ""
    except orjson.JSONDecodeError:
        said = " ".join(exchange.body[:200].decode("utf-8", "replace").split())
    sentence = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if 400 <= status < 500:
        return "http_4xx", sentence
    if status >= 500:
        return "http_5xx", sentence
    return "malformed", sentence


def _plain_json_failure(exchange: Exchange) -> tuple[ErrorClass, str]:
    try:
        document = orjson.loads(exchange.body)
    except orjson.JSONDecodeError as error:
        return "malformed", f"a JSON body where a stream was asked for, and it is broken ({error})"
    if isinstance(document, dict) and document.get("error"):
        return "in_band", f"status 200 with an error: {describe_error(document)}"
    return "malformed", "a JSON document where a stream was asked for"
