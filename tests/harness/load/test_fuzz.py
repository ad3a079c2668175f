"""A million broken streams: none raises, each has at most one class, and time grows with the bytes and not faster."""

from __future__ import annotations

import random
import time
from array import array
from typing import get_args

import pytest

from harness.load.exchange import Exchange
from harness.load.http_reader import ResponseReader
from harness.load.settle import settle
from harness.results.schema import ErrorClass
from workloads.request import RequestSpec

SPEC = RequestSpec(0, None, "one two three", 3, 4)
CLASSES = {None, *get_args(ErrorClass)}
PIECES = (
    b"data: ", b"data:", b"data", b"\n", b"\n\n", b"\r\n", b"\r", b"\n\n\n", b": ping", b"event: error", b"event:", b"id: 1",
    b"[DONE]", b"data: [DONE]\n\n", b"{", b"}", b"[", b"]", b'"', b"null", b"-1", b"1e999", b"\xff\xfe", b"\x00",
    b"\xe2\x80\xa8",
    b'data: {"choices":[{"index":0,"text":" w","finish_reason":null}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"x","role":"assistant"},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n', b'{"usage":{"completion_tokens":true}}',
    b'{"choices":[{"delta":{"tool_calls":[{"function":null}]}}]}', b'{"choices":{"a":1}}', b'{"choices":[null]}',
    b'{"error":{"message":"x"}}', b'{"error":[]}', b'{"choices":[{"text":["a"]}]}', b'{"choices":[{"token_ids":5}]}', b" ",
)  # fmt: skip
HTTP = (
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 503 X\r\n", b"\r\n", b"\n",
    b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n",
    b"Content-Type: text/event-stream\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"fffffffffffffffff\r\n", b"a;x=y\r\n", b"\x00",
    b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"X: \xff\r\n",
)  # fmt: skip


def broken_stream(rng: random.Random) -> bytes:
    body = b"".join(rng.choices(PIECES, k=rng.randrange(1, 9)))
    if rng.random() < 0.3 and body:
        at = rng.randrange(len(body))
        body = body[:at] + rng.randbytes(rng.randrange(3)) + body[at + rng.randrange(3) :]
    return body


def settled(body: bytes, rng: random.Random) -> str | None:
    ends = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(4)))
    exchange = Exchange(0, t_ready=0, t_send=0, status=200, content_type="text/event-stream", body=body)
    exchange.ends = array("q", [*ends, len(body)])
    exchange.stamps = array("q", range(len(exchange.ends)))
    record, chunks = settle(exchange, SPEC)
    assert record.error_class in CLASSES
    assert record.ok == (record.error_class is None)
    assert record.chunks == len(chunks)
    assert all(0 <= chunk.t < len(exchange.ends) for chunk in chunks)
    return record.error_class


def framed(rng: random.Random) -> None:
    exchange = Exchange(0, t_ready=0)
    reader = ResponseReader(exchange)
    stream = b"".join(rng.choices(HTTP, k=rng.randrange(1, 10)))
    cut = rng.randrange(len(stream) + 1)
    for t, part in enumerate((stream[:cut], stream[cut:])):
        if part:
            reader.feed(part, t)
    reader.end(None)
    assert reader.is_over
    assert len(exchange.ends) == len(exchange.stamps)
    assert exchange.failure is None or exchange.failure[0] in ("malformed", "truncated")


def fuzz(inputs: int, seed: int) -> set[str | None]:
    rng = random.Random(seed)
    seen = set()
    for number in range(inputs):
        if number % 5:
            seen.add(settled(broken_stream(rng), rng))
        else:
            framed(rng)
    return seen


def test_broken_streams_end_in_a_class() -> None:
    assert fuzz(20_000, seed=1) == {None, "in_band", "malformed", "truncated"}


@pytest.mark.slow
def test_a_million_broken_streams() -> None:
    assert fuzz(1_000_000, seed=2) == {None, "in_band", "malformed", "truncated"}


def seconds_to_parse(chunks: int, reads_a_chunk: int, event: bytes) -> float:
    body = event * chunks + b"data: [DONE]\n\n"
    step = max(1, len(event) // reads_a_chunk)
    exchange = Exchange(0, t_ready=0, t_send=0, status=200, content_type="text/event-stream", body=body)
    exchange.ends = array("q", [*range(step, len(body), step), len(body)])
    exchange.stamps = array("q", range(len(exchange.ends)))
    start = time.process_time()
    settle(exchange, SPEC)
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"index":0,"text":" w","finish_reason":null}]}\n\n',
        b'data: {"choices":[{"index":0,"text":" w","finish_reason":null}]}\r\n\r\n',
        b'data: {"choices":\ndata: [{"index":0,"text":" w"}]}\n\n',
        b"data: a",  # one line without an end
        b":\n",
    ],
)
def test_time_grows_with_the_bytes_and_not_faster(event: bytes) -> None:
    seconds_to_parse(10_000, 4, event)
    small = min(seconds_to_parse(25_000, 4, event) for _ in range(3))
    large = min(seconds_to_parse(200_000, 4, event) for _ in range(2))
    assert large < 8 * small * 2.5  # eight times the bytes; quadratic would be sixty-four times
