"""A server that misbehaves in every way we could think of: each ends in its class, none hangs, none crashes."""

from __future__ import annotations

import asyncio
import gzip
import socket
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.load.client import Client, monotonic_ns
from harness.load.dialect import Dialect, prepare
from harness.load.exchange import Exchange
from harness.load.limits import Timeouts
from harness.load.settle import RequestRecord, Rules, settle
from workloads.request import RequestSpec

SPEC = RequestSpec(0, None, "one two three", 3, 4)
Script = Callable[[Any, Any, Any], Awaitable[None]]
CASES: dict[str, tuple[str | None, Script]] = {}


def case(expected: str | None) -> Callable[[Script], Script]:
    def register(script: Script) -> Script:
        CASES[script.__name__] = (expected, script)
        return script

    return register


def begin(c: Any, w: Any, tokens: int = 2) -> None:
    c.head()
    for index in range(tokens):
        c.body(w.text(f" w{index}"))


@case("truncated")
async def closes_at_once(c: Any, asked: Any, w: Any) -> None:
    await c.close()


@case("truncated")
async def resets_at_once(c: Any, asked: Any, w: Any) -> None:
    c.reset()


@case("truncated")
async def closes_inside_the_headers(c: Any, asked: Any, w: Any) -> None:
    c.raw(b"HTTP/1.1 200 OK\r\nContent-Ty")
    await c.close()


@case("timeout_first")
async def never_answers(c: Any, asked: Any, w: Any) -> None:
    await asyncio.sleep(30)


@case("timeout_first")
async def sends_headers_and_nothing(c: Any, asked: Any, w: Any) -> None:
    c.head()
    await asyncio.sleep(30)


@case("timeout_idle")
async def stalls_after_two_tokens(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    await asyncio.sleep(30)


@case("timeout_idle")
async def drips_a_byte_at_a_time(c: Any, asked: Any, w: Any) -> None:
    c.head()
    while not c.writer.is_closing():
        c.body(b"d")
        await asyncio.sleep(0.05)


@case("timeout_idle")
async def says_done_and_keeps_the_response_open(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop") + w.done)
    await asyncio.sleep(30)


@case("http_4xx")
async def too_many_requests(c: Any, asked: Any, w: Any) -> None:
    c.answer({"error": {"message": "queue is full", "type": "rate_limit"}}, status=429)


@case("http_4xx")
async def unauthorised_with_html(c: Any, asked: Any, w: Any) -> None:
    c.answer("<html><body>no</body></html>", status=401, content_type="text/html")


@case("http_5xx")
async def internal_error(c: Any, asked: Any, w: Any) -> None:
    c.answer({"detail": "boom"}, status=500)


@case("http_5xx")
async def unavailable_without_a_body(c: Any, asked: Any, w: Any) -> None:
    c.raw(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")


@case("malformed")
async def redirects(c: Any, asked: Any, w: Any) -> None:
    c.raw(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")


@case("in_band")
async def error_envelope_with_status_200(c: Any, asked: Any, w: Any) -> None:
    c.answer({"error": {"message": "model not loaded"}})


@case("in_band")
async def error_in_the_middle_of_the_stream(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.event({"error": {"message": "out of memory", "code": 500}}) + w.done)
    c.end()


@case("in_band")
async def sse_error_event(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(b"event: error\ndata: engine died\n\n")
    c.end()


@case("in_band")
async def in_band_error_then_reset(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.event({"error": "CUDA error"}))
    await c.writer.drain()
    await asyncio.sleep(0.02)
    c.reset()


@case("truncated")
async def resets_inside_a_chunk(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.raw(b"ff\r\ndata: {")
    await c.writer.drain()
    await asyncio.sleep(0.02)
    c.reset()


@case("truncated")
async def closes_without_the_last_chunk(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop") + w.done)
    await c.close()


@case("truncated")
async def ends_without_finish_reason(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.done)
    c.end()


@case("truncated")
async def ends_without_done(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop"))
    c.end()


@case("truncated")
async def ends_inside_an_event(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("x", "stop") + b'data: {"choi')
    c.end()


@case("truncated")
async def streams_no_token(c: Any, asked: Any, w: Any) -> None:
    c.head()
    c.body(w.delta({"role": "assistant", "content": ""}) + w.delta({}, "stop") + w.done)
    c.end()


@case("truncated")
async def content_length_longer_than_the_body(c: Any, asked: Any, w: Any) -> None:
    body = w.text("a", "stop") + w.done
    c.head(200, "text/event-stream", f"Content-Length: {len(body) + 100}", chunked=False)
    c.body(body)
    await c.close()


@case("truncated")
async def content_length_ends_inside_the_stream(c: Any, asked: Any, w: Any) -> None:
    body = (w.text("a") + w.text("b", "stop") + w.done)[:-30]
    c.head(200, "text/event-stream", f"Content-Length: {len(body)}", chunked=False)
    c.body(body)


@case("truncated")
async def empty_body(c: Any, asked: Any, w: Any) -> None:
    c.head()
    c.end()


@case("malformed")
async def html_with_status_200(c: Any, asked: Any, w: Any) -> None:
    c.answer("<html><body>Welcome to nginx</body></html>\n", content_type="text/html")


@case("malformed")
async def a_document_instead_of_a_stream(c: Any, asked: Any, w: Any) -> None:
    c.answer({"choices": [{"text": "all at once", "finish_reason": "stop"}]})


@case("malformed")
async def invalid_json(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(b'data: {"choices": [}\n\n' + w.done)
    c.end()


@case("malformed")
async def invalid_utf8(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(b'data: {"choices":[{"text":"\xff\xfe"}]}\n\n' + w.done)
    c.end()


@case("malformed")
async def event_is_a_list(c: Any, asked: Any, w: Any) -> None:
    c.head()
    c.body(w.event([1, 2]) + w.done)
    c.end()


@case("malformed")
async def choices_are_numbers(c: Any, asked: Any, w: Any) -> None:
    c.head()
    c.body(w.event({"choices": [1, 2]}) + w.done)
    c.end()


@case("malformed")
async def text_is_a_number(c: Any, asked: Any, w: Any) -> None:
    c.head()
    c.body(w.event({"choices": [{"delta": {"content": 5}, "finish_reason": "stop"}]}) + w.done)
    c.end()


@case("malformed")
async def text_is_a_list(c: Any, asked: Any, w: Any) -> None:
    c.head()
    c.body(w.event({"choices": [{"text": ["a"], "finish_reason": "stop"}]}) + w.done)
    c.end()


@case("malformed")
async def usage_is_negative(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop") + w.usage(3, -1) + w.done)
    c.end()


@case("malformed")
async def done_twice(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop") + w.done + w.done)
    c.end()


@case("malformed")
async def tokens_after_done(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop") + w.done + w.text("more"))
    c.end()


@case("malformed")
async def not_http(c: Any, asked: Any, w: Any) -> None:
    c.raw(b"220 smtp.example.com ESMTP\r\n\r\n")
    await c.close()


@case("malformed")
async def broken_chunk_size(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.raw(b"zz\r\n" + w.text("x", "stop") + b"\r\n")
    await asyncio.sleep(1)


@case("malformed")
async def endless_headers(c: Any, asked: Any, w: Any) -> None:
    c.raw(b"HTTP/1.1 200 OK\r\n")
    for index in range(2000):
        c.raw(b"X-%d: %s\r\n" % (index, b"y" * 100))
    await asyncio.sleep(1)


@case("malformed")
async def only_ever_promises(c: Any, asked: Any, w: Any) -> None:
    while not c.writer.is_closing():
        c.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 100)
        await c.writer.drain()
        await asyncio.sleep(0)


@case("timeout_first")
async def promises_now_and_then(c: Any, asked: Any, w: Any) -> None:
    while not c.writer.is_closing():
        c.raw(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.05)


@case("timeout_first")
async def drips_its_headers(c: Any, asked: Any, w: Any) -> None:
    c.raw(b"HTTP/1.1 200 OK\r\nX-A: ")
    while not c.writer.is_closing():
        c.raw(b"a")
        await asyncio.sleep(0.05)


@case("timeout_idle")
async def pings_for_ever(c: Any, asked: Any, w: Any) -> None:
    c.head()
    while not c.writer.is_closing():
        c.body(b": ping\n\n")
        await asyncio.sleep(0.05)


@case("timeout_idle")
async def announces_a_chunk_of_an_exbibyte(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.raw(b"fffffffffffffff\r\n" + w.text("x", "stop"))
    await asyncio.sleep(30)


@case("malformed")
async def chunk_size_beyond_64_bits(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.raw(b"fffffffffffffffffff\r\n" + w.text("x", "stop"))
    await asyncio.sleep(1)


@case("malformed")
async def content_length_is_no_number(c: Any, asked: Any, w: Any) -> None:
    c.head(200, "text/event-stream", "Content-Length: many", chunked=False)
    c.body(w.text("x", "stop") + w.done)
    await c.close()


@case("malformed")
async def switches_protocols(c: Any, asked: Any, w: Any) -> None:
    c.raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x01a")
    await asyncio.sleep(1)


@case("malformed")
async def no_content(c: Any, asked: Any, w: Any) -> None:
    c.raw(b"HTTP/1.1 204 No Content\r\n\r\n")


@case("malformed")
async def coded_in_a_way_nobody_asked_for(c: Any, asked: Any, w: Any) -> None:
    c.head(200, "text/event-stream", "Content-Encoding: br")
    c.body(w.text("x", "stop") + w.done)
    c.end()


@case("malformed")
async def says_gzip_and_sends_text(c: Any, asked: Any, w: Any) -> None:
    c.head(200, "text/event-stream", "Content-Encoding: gzip")
    c.body(w.text("x", "stop") + w.done)
    c.end()


@case("truncated")
async def gzip_that_ends_early(c: Any, asked: Any, w: Any) -> None:
    c.head(200, "text/event-stream", "Content-Encoding: gzip")
    c.body(gzip.compress(w.text("x", "stop") + w.done)[:-12])
    c.end()


@case("malformed")
async def nested_ten_thousand_deep(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(b"data: " + b"[" * 10_000 + b"]" * 10_000 + b"\n\n" + w.done)
    c.end()


@case("malformed")
async def a_lone_surrogate(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(b'data: {"choices":[{"text":"\\ud800","finish_reason":"stop"}]}\n\n' + w.done)
    c.end()


@case("malformed")
async def more_tokens_than_64_bits_hold(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop") + w.usage(3, 2**64 - 1) + w.done)
    c.end()


@case("malformed")
async def half_a_token(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop", usage={"prompt_tokens": 3, "completion_tokens": 2.5}) + w.done)
    c.end()


@case("malformed")
async def choices_by_name(c: Any, asked: Any, w: Any) -> None:
    c.head()
    c.body(w.event({"choices": {"0": {"text": "a", "finish_reason": "stop"}}}) + w.done)
    c.end()


@case("malformed")
async def done_in_small_letters(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop") + b"data: [done]\n\n")
    c.end()


@case("in_band")
async def an_error_beside_a_token(c: Any, asked: Any, w: Any) -> None:
    c.head()
    c.body(w.text("a", "stop", error={"message": "half a failure"}) + w.done)
    c.end()


@case("truncated")
async def another_answer_behind_a_short_one(c: Any, asked: Any, w: Any) -> None:
    """What would be read as the next request's answer by a client that keeps the connection."""
    c.head()
    c.body(w.text("a"))
    c.end()
    c.head()
    c.body(w.text("b", "stop") + w.done)
    c.end()


# Odd, but nothing is wrong.


@case(None)
async def an_answer_after_early_hints(c: Any, asked: Any, w: Any) -> None:
    c.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    await c.writer.drain()
    begin(c, w)
    c.body(w.text("", "stop") + w.done)
    c.end()


@case(None)
async def trailers_and_chunk_extensions(c: Any, asked: Any, w: Any) -> None:
    c.head()
    data = w.text("a", "stop") + w.done
    c.raw(b"%x;name=value\r\n%s\r\n0\r\nX-Checksum: 1\r\n\r\n" % (len(data), data))


@case(None)
async def http_1_0(c: Any, asked: Any, w: Any) -> None:
    c.raw(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + w.text("a", "stop") + w.done)
    await c.close()


@case(None)
async def a_character_cut_over_two_packets(c: Any, asked: Any, w: Any) -> None:
    c.head()
    data = w.event({"choices": [{"text": "\N{SNOWMAN}"}]}).replace(b"\\u2603", "\N{SNOWMAN}".encode())
    for part in (data[: data.index(b"\xe2") + 1], data[data.index(b"\xe2") + 1 :]):
        c.body(part)
        await c.writer.drain()
        await asyncio.sleep(0.01)
    c.body(w.text("", "stop") + w.done)
    c.end()


@case(None)
async def a_hundred_thousand_empty_events(c: Any, asked: Any, w: Any) -> None:
    c.head()
    c.body(b"\n\n" * 100_000 + w.text("a", "stop") + w.done)
    c.end()


@case(None)
async def half_closed_after_the_answer(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop") + w.done)
    c.end()
    c.writer.write_eof()


@case(None)
async def duplicate_headers(c: Any, asked: Any, w: Any) -> None:
    c.head(200, "text/event-stream", "X-A: 1", "X-A: 2", "Content-Type: text/event-stream")
    c.body(w.text("a", "stop") + w.done)
    c.end()


@case(None)
async def gzip_without_being_asked(c: Any, asked: Any, w: Any) -> None:
    c.head(200, "text/event-stream", "Content-Encoding: gzip")
    c.body(gzip.compress(w.text("a", "stop") + w.done))
    c.end()


@case(None)
async def closes_to_end_the_body(c: Any, asked: Any, w: Any) -> None:
    c.head(200, "text/event-stream", "Connection: close", chunked=False)
    c.body(w.text("a", "stop") + w.done)
    await c.close()


@case(None)
async def crlf_comments_and_several_data_lines(c: Any, asked: Any, w: Any) -> None:
    c.head()
    c.body(
        b': hi\r\n\r\ndata: {"choices": [{"text": "a",\r\ndata: "finish_reason": "stop"}]}\r\n\r\ndata: [DONE]\r\n\r\n'
    )
    c.end()


@case(None)
async def a_line_of_ten_mebibytes(c: Any, asked: Any, w: Any) -> None:
    c.head()
    line = w.text("x" * (10 << 20), "stop")
    for start in range(0, len(line), 65_536):
        c.body(line[start : start + 65_536])
        await c.writer.drain()
    c.body(w.done)
    c.end()


@case(None)
async def usage_beside_the_last_choice(c: Any, asked: Any, w: Any) -> None:
    begin(c, w)
    c.body(w.text("", "stop", usage={"prompt_tokens": 3, "completion_tokens": 2}) + w.done)
    c.end()


# Only the limit that a case is about is short: a pause of a busy machine must not make another one of them come first.
PATIENT = Timeouts(connect=10, first=10, idle=10, total=20)
LIMITS = {
    "timeout_first": replace(PATIENT, first=0.4, total=1.0),
    "timeout_idle": replace(PATIENT, idle=0.4, total=2.0),
}


async def ask(server: Any, rules: Rules | None = None, timeouts: Timeouts = PATIENT) -> RequestRecord:
    exchange = Exchange(0, t_ready=monotonic_ns())
    async with Client(server.url, timeouts=timeouts) as client:
        prepared = prepare(SPEC, Dialect("words"))
        async with asyncio.timeout(timeouts.total + 10):  # no misbehaviour may outlast the client's own limits
            await client.send(exchange, prepared.path, prepared.body)
    assert exchange.t_done is not None
    return settle(exchange, SPEC, rules=rules)[0]


@pytest.mark.parametrize("name", list(CASES))
async def test_each_misbehaviour_has_its_class(server: Any, wire: Any, name: str) -> None:
    expected, script = CASES[name]
    server.script = lambda connection, asked: script(connection, asked, wire)
    record = await ask(server, timeouts=LIMITS.get(expected or "", PATIENT))
    assert record.error_class == expected, record.error
    assert record.ok is (expected is None)
    assert (record.error is None) is (expected is None)
    # The next request over the same client code must not suffer from what the last one left behind.
    server.script = server.stream
    assert (await ask(server)).ok


async def test_an_engine_known_to_send_no_done_may_leave_it_out(server: Any, wire: Any) -> None:
    server.script = lambda connection, asked: ends_without_done(connection, asked, wire)
    assert (await ask(server, Rules(sends_done=False))).ok


async def test_a_bomb_of_gzip_is_not_unpacked(server: Any, wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that would unpack to 64 times what any answer may have."""
    monkeypatch.setattr("harness.load.content_coding.MAX_BODY_BYTES", 1 << 20)
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(b": " + b"x" * (1 << 20) + b"\n") + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * 64

    async def serve(connection: Any, asked: Any) -> None:
        connection.head(200, "text/event-stream", "Content-Encoding: gzip")
        connection.body(bomb)
        connection.end()

    server.script = serve
    record = await ask(server)
    assert (record.error_class, record.error) == ("malformed", "the response is longer than 1048576 bytes")


async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))

        class Nobody:
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"

        assert (await ask(Nobody)).error_class == "connect"


async def test_plain_http_where_tls_was_asked() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    plain = await asyncio.start_server(greet, "127.0.0.1", 0)

    class Secure:
        url = f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}"

    async with plain:
        assert (await ask(Secure)).error_class == "tls"


async def test_a_poisoned_connection_is_not_reused(server: Any, wire: Any) -> None:
    """An answer that goes on after a time limit must not be read as the next answer."""
    async with Client(server.url, timeouts=replace(PATIENT, idle=0.5)) as client:
        prepared = prepare(SPEC, Dialect("words"))
        server.script = lambda connection, asked: stalls_after_two_tokens(connection, asked, wire)
        first = Exchange(0, t_ready=0)
        await client.send(first, prepared.path, prepared.body)
        server.script = server.stream
        second = Exchange(1, t_ready=0)
        await client.send(second, prepared.path, prepared.body)
    assert settle(first, SPEC)[0].error_class == "timeout_idle"
    assert settle(second, SPEC)[0].ok
    assert server.connections == 2
