"""The client against a server whose own log says what really happened."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.load.client import Client, monotonic_ns
from harness.load.dialect import Dialect, prepare
from harness.load.exchange import Exchange
from harness.load.limits import Timeouts
from harness.load.portable import PortableClient
from harness.load.settle import settle
from tests.harness.conftest import ScriptedServer
from workloads.request import RequestSpec


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context with a certificate that nobody signed, and the certificate's file."""
    key, file = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(file)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    return context, file


def spec(index: int = 0, *, output: int = 4, chat: bool = False) -> RequestSpec:
    return RequestSpec(
        index=index,
        messages=({"role": "user", "content": "one two three"},) if chat else None,
        prompt=None if chat else "one two three",
        prompt_tokens=6 if chat else 3,
        output_tokens=output,
    )


async def exchange_with(server: Any, request: RequestSpec, **options: Any) -> Exchange:
    async with Client(server.url, timeouts=Timeouts(20, 20, 20, 60), **options) as client:
        exchange = Exchange(request.index, t_ready=monotonic_ns())
        prepared = prepare(request, Dialect("words"))
        await client.send(exchange, prepared.path, prepared.body)
    return exchange


async def test_a_good_stream_is_a_success_with_the_servers_times(server: Any) -> None:
    server.ttft_s, server.itl_s = 0.02, 0.01
    request = spec(output=5)
    record, chunks = settle(await exchange_with(server, request), request)
    assert record.ok, record.error
    assert (record.status, record.finish_reason, record.chunks) == (200, "length", 5)
    assert (record.prompt_tokens, record.output_tokens, record.token_source) == (3, 5, "usage")
    (served,) = server.served
    assert record.t_send is not None
    assert record.t_done is not None
    # Order is what any machine must show: written before received, arrived after sent, in sequence.
    assert record.t_ready <= record.t_send
    assert all(arrived.t >= sent for arrived, sent in zip(chunks, served.t_chunks, strict=True))
    assert all(a.t <= b.t for a, b in pairwise(chunks))
    assert (record.t_first, record.t_last) == (chunks[0].t, chunks[-1].t)
    assert record.t_done >= chunks[-1].t
    assert not any(chunk.coalesced for chunk in chunks)


async def test_chat_and_completions_send_what_was_planned(server: Any) -> None:
    for chat in (False, True):
        request = spec(chat=chat)
        record, _ = settle(await exchange_with(server, request, api_key="secret"), request)
        assert record.ok, record.error
        asked = server.asked[-1]
        assert asked.path == ("/v1/chat/completions" if chat else "/v1/completions")
        assert asked.headers["authorization"] == "Bearer secret"
        assert asked.json["max_tokens"] == 4
        assert asked.json["ignore_eos"] is True
        assert asked.json["stream_options"] == {"include_usage": True}


async def test_connections_are_reused_and_never_more_than_the_requests_in_flight(server: Any) -> None:
    async with Client(server.url) as client:
        await client.warm(3)
        assert server.connections <= 3

        async def three() -> None:
            for index in range(3):
                prepared = prepare(spec(index), Dialect("words"))
                await client.send(Exchange(index, t_ready=0), prepared.path, prepared.body)

        await asyncio.gather(three(), three(), three())
        assert len(server.asked) == 9
        assert server.connections <= 3


async def test_a_kept_connection_that_the_server_closed_is_not_the_servers_failure(server: Any) -> None:
    """llama.cpp's server promises keep-alive and closes after a streamed answer; the next request must not fail."""
    honest = server.stream

    async def and_close(connection: Any, asked: Any) -> None:
        await honest(connection, asked)
        await connection.writer.drain()
        await asyncio.sleep(0.05)  # late enough for the client to have taken the connection again
        connection.reset()

    server.script = and_close
    async with Client(server.url) as client:
        records = []
        for index in range(6):
            request = spec(index)
            prepared = prepare(request, Dialect("words"))
            exchange = Exchange(index, t_ready=monotonic_ns())
            await client.send(exchange, prepared.path, prepared.body)
            records.append(settle(exchange, request)[0])
            await asyncio.sleep(0.01 * index)
        assert [record.error for record in records] == [None] * 6
        assert client.stale_connections >= 1
    assert all(record.t_send is not None and record.t_first >= record.t_send for record in records)


async def test_a_request_gets_past_any_number_of_connections_that_the_server_has_given_up(server: Any) -> None:
    """With many streams at once the pool holds many such connections, and a second try can meet the next of them."""
    honest = server.stream
    together = asyncio.Barrier(4)
    served: set[Any] = set()

    async def once_a_connection(connection: Any, asked: Any) -> None:
        if connection.writer in served:
            connection.reset()
            return
        served.add(connection.writer)
        await honest(connection, asked)
        if len(served) <= 4:
            await together.wait()

    server.script = once_a_connection
    async with Client(server.url) as client:

        async def ask(index: int) -> str | None:
            request = spec(index)
            prepared = prepare(request, Dialect("words"))
            exchange = Exchange(index, t_ready=monotonic_ns())
            await client.send(exchange, prepared.path, prepared.body)
            return settle(exchange, request)[0].error

        assert await asyncio.gather(*(ask(index) for index in range(4))) == [None] * 4
        assert await ask(4) is None
        assert client.stale_connections == 1  # sent again at once over a fresh connection


async def test_a_server_that_closes_on_a_fresh_connection_fails_the_request(server: Any) -> None:
    served = 0

    async def first_only(connection: Any, asked: Any) -> None:
        nonlocal served
        served += 1
        if served == 1:
            await server.stream(connection, asked)
        else:
            connection.reset()

    server.script = first_only
    async with Client(server.url) as client:
        for index, error_class in enumerate((None, "truncated", "truncated")):
            request = spec(index)
            prepared = prepare(request, Dialect("words"))
            exchange = Exchange(index, t_ready=monotonic_ns())
            await client.send(exchange, prepared.path, prepared.body)
            assert settle(exchange, request)[0].error_class == error_class
    assert served == 1 + 2 + 1  # the reused connection was tried once more, the fresh one not


async def test_chunks_of_one_read_share_a_stamp_and_say_so(server: Any, wire: Any) -> None:
    async def script(connection: Any, asked: Any) -> None:
        connection.head()
        connection.body(wire.text("a") + wire.text("b"))
        await connection.writer.drain()
        await asyncio.sleep(0.05)
        connection.body(wire.text("c", "stop") + wire.done)
        connection.end()

    server.script = script
    request = spec()
    record, chunks = settle(await exchange_with(server, request), request)
    assert record.ok, record.error
    assert [chunk.coalesced for chunk in chunks] == [False, True, False]
    assert chunks[0].t == chunks[1].t < chunks[2].t
    assert (record.output_tokens, record.token_source) == (3, "chunks")


async def test_bodies_cut_at_every_byte_give_the_same_record(server: Any, wire: Any) -> None:
    body = b": ping\r\n\r\n" + wire.delta({"role": "assistant", "content": ""}) + wire.delta({"content": "h\u00e9"})
    body += wire.delta({"content": "llo"}, "stop", usage={"prompt_tokens": 3, "completion_tokens": 2}) + wire.done

    async def script(connection: Any, asked: Any) -> None:
        connection.head()
        for index in range(len(body)):
            connection.body(body[index : index + 1])
            await connection.writer.drain()
        connection.end()

    server.script = script
    request = spec(chat=True)
    record, _ = settle(await exchange_with(server, request), request)
    assert record.ok, record.error
    assert (record.chunks, record.output_tokens, record.prompt_tokens) == (2, 2, 3)


async def test_a_large_request_is_written_whole(server: Any) -> None:
    request = RequestSpec(0, None, "word " * 400_000, 400_000, 2)
    record, _ = settle(await exchange_with(server, request), request)
    assert record.ok, record.error
    assert len(server.asked[0].json["prompt"].split()) == 400_000


async def test_cancelling_the_caller_marks_the_exchange(server: Any) -> None:
    server.itl_s = 0.05
    async with Client(server.url) as client:
        request = spec(output=100)
        prepared = prepare(request, Dialect("words"))
        exchange = Exchange(0, t_ready=0)
        task = asyncio.create_task(client.send(exchange, prepared.path, prepared.body))
        while len(exchange.stamps) < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
    record, chunks = settle(exchange, request)
    assert (record.ok, record.error_class) == (False, "cancelled")
    assert len(chunks) >= 2  # what came before is kept


async def test_servers_behind_one_engine_take_turns(server: Any) -> None:
    async with ScriptedServer() as other, Client([server.url, other.url + "/"]) as client:
        await client.warm(4)
        assert (server.connections, other.connections) == (2, 2)
        for index in range(6):
            prepared = prepare(spec(index), Dialect("words"))
            await client.send(Exchange(index, t_ready=0), prepared.path, prepared.body)
        assert (len(server.asked), len(other.asked)) == (3, 3)


async def test_a_url_with_a_path_and_headers_of_ones_own(server: Any) -> None:
    prepared = prepare(spec(), Dialect("words"))
    headers = {"X-Team": "kv", "user-agent": "mine"}
    async with Client(f"{server.url}/proxy/", headers=headers) as client:
        await client.send(Exchange(0, t_ready=0), prepared.path, prepared.body)
    (asked,) = server.asked
    assert asked.path == "/proxy/v1/completions"
    assert (asked.headers["x-team"], asked.headers["user-agent"]) == ("kv", "mine")
    with pytest.raises(ValueError, match="cannot be a header"):
        Client(server.url, headers={"X": "a\r\nb: c"})


async def test_tls_with_a_certificate_that_is_not_trusted_fails_and_can_be_waived(tmp_path: Path) -> None:
    context, _ = certificate(tmp_path)

    async with ScriptedServer(ssl=context) as secure:
        url = secure.url.replace("http://", "https://")
        for verify, error_class in ((True, "tls"), (False, None)):
            request = spec()
            prepared = prepare(request, Dialect("words"))
            exchange = Exchange(0, t_ready=monotonic_ns())
            async with Client(url, verify_tls=verify) as client:
                await client.send(exchange, prepared.path, prepared.body)
            record, _ = settle(exchange, request)
            assert record.error_class == error_class, record.error
        assert record.stamp == "user"


@pytest.mark.parametrize("make", [Client, PortableClient])
async def test_both_transports_make_the_same_record(server: Any, make: Any) -> None:
    request = spec(output=5)
    prepared = prepare(request, Dialect("words"))
    async with make(server.url, timeouts=Timeouts(20, 20, 1, 60)) as client:
        await client.warm(2)
        good, hung = Exchange(0, t_ready=monotonic_ns()), Exchange(1, t_ready=monotonic_ns())
        await client.send(good, prepared.path, prepared.body)

        async def stalls(connection: Any, asked: Any) -> None:
            connection.head()
            connection.body(b"data: ")
            await asyncio.sleep(30)

        server.script = stalls
        await client.send(hung, prepared.path, prepared.body)
    record, chunks = settle(good, request)
    assert (record.ok, record.chunks, len(chunks)) == (True, 5, 5)
    assert record.t_send is not None
    assert record.t_first is not None
    assert record.t_done is not None
    assert record.t_send < record.t_first <= record.t_done
    assert settle(hung, request)[0].error_class == "timeout_idle"
