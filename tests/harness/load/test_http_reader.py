"""The framing of responses, on bytes alone."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from harness.load.content_coding import decode_body
from harness.load.exchange import Exchange
from harness.load.http_reader import MAX_HEADER_BYTES, ResponseReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def read(*parts: bytes) -> ResponseReader:
    reader = ResponseReader(Exchange(0, t_ready=0))
    for t, part in enumerate(parts):
        reader.feed(part, t)
    return reader


def test_a_chunked_body_cut_anywhere() -> None:
    stream = CHUNKED + b"3\r\nabc\r\n5;ext=1\r\ndefgh\r\n0\r\nX-Trailer: 1\r\n\r\n"
    for cut in range(1, len(stream)):
        reader = read(stream[:cut], stream[cut:])
        assert reader.is_over
        assert reader.is_reusable
        assert reader.exchange.received == b"abcdefgh"
        assert (reader.exchange.status, reader.exchange.content_type) == (200, "text/event-stream")
        assert reader.exchange.ends[1] == 8
    single = read(*(stream[i : i + 1] for i in range(len(stream))))
    assert single.exchange.received == b"abcdefgh"
    assert len(single.exchange.stamps) == len(stream)


def test_a_length_ends_the_body() -> None:
    reader = read(HEAD + b"Content-Length: 4\r\n\r\nab", b"cd")
    assert reader.is_reusable
    reader = read(HEAD + b"Content-Length: 4\r\nConnection: close\r\n\r\nabcd")
    assert reader.is_over
    assert not reader.is_reusable


def test_bytes_after_the_end_spoil_the_connection_and_not_the_response() -> None:
    for surplus in (b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
        reader = read(HEAD + b"Content-Length: 4\r\n\r\nabcd" + surplus)
        assert reader.is_over
        assert not reader.is_reusable
        assert reader.exchange.failure is None
        assert reader.exchange.received == b"abcd"


def test_the_end_of_the_connection_ends_a_body_without_a_length() -> None:
    reader = read(HEAD + b"\r\n", b"abc")
    assert not reader.is_over
    reader.end(None)
    assert reader.exchange.failure is None
    broken = read(HEAD + b"\r\n", b"abc")
    broken.end("reset")
    assert broken.exchange.failure is not None
    assert broken.exchange.failure[0] == "truncated"


@pytest.mark.parametrize("stream", [b"", HEAD, CHUNKED + b"5\r\nab", HEAD + b"Content-Length: 9\r\n\r\nab"])
def test_an_early_end_is_truncation(stream: bytes) -> None:
    reader = read(stream) if stream else read()
    reader.end(None)
    assert reader.exchange.failure is not None
    assert reader.exchange.failure[0] == "truncated"


@pytest.mark.parametrize(
    "stream",
    [
        b"220 smtp ready\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        CHUNKED + b"zz\r\n",
        HEAD + b"Content-Length: -4\r\n\r\n",
        HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        HEAD + b"X: " + b"y" * (MAX_HEADER_BYTES + 1),
    ],
)
def test_what_is_not_http_is_malformed(stream: bytes) -> None:
    reader = read(stream)
    reader.end(None)
    assert reader.exchange.failure is not None
    assert reader.exchange.failure[0] == "malformed"


def test_interim_responses_are_passed_over() -> None:
    reader = read(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", CHUNKED + b"1\r\na\r\n0\r\n\r\n"
    )
    assert reader.exchange.status == 200
    assert reader.exchange.received == b"a"
    assert reader.is_reusable


def test_switching_protocols_ends_it() -> None:
    reader = read(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nabc")
    assert reader.is_over
    assert not reader.is_reusable
    assert reader.exchange.status == 101


def received(body: bytes, coding: str, size: int) -> Exchange:
    exchange = Exchange(0, t_ready=0, content_encoding=coding)
    for start in range(0, len(body), size):
        exchange.received += body[start : start + size]
        exchange.stamps.append(start)
        exchange.ends.append(len(exchange.received))
    decode_body(exchange)
    return exchange


def test_codings_are_undone_read_by_read() -> None:
    text = b"data: " + random.Random(1).randbytes(4000).hex().encode()
    for coding, body in (("gzip", gzip.compress(text)), ("deflate", zlib.compress(text)), ("identity", text)):
        exchange = received(body, coding, 97)
        assert exchange.body == text
        assert exchange.failure is None
        assert len(exchange.ends) == len(exchange.stamps)
        assert exchange.ends[-1] == len(text)


def test_codings_that_cannot_be_undone() -> None:
    for body, coding, expected in (
        (b"abc", "br", "malformed"),
        (b"not gzip at all", "gzip", "malformed"),
        (gzip.compress(b"abcdef")[:-9], "gzip", "truncated"),
    ):
        exchange = received(body, coding, 4)
        assert exchange.failure is not None
        assert exchange.failure[0] == expected
        assert len(exchange.ends) == len(exchange.stamps)
