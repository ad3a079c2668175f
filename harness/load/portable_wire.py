"""aiohttp, made to tell when bytes arrive and when they leave.

``StampingProtocol`` is aiohttp's response handler with a clock read before aiohttp sees the bytes.  aiohttp keeps
the body; how much of it each read brought is noted beside the stamp.  No task wakes up for a chunk: the one that
awaits the response sleeps until its end.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.payload import BytesPayload

from harness.load.direct import DirectTransport
from harness.load.exchange import Exchange

monotonic_ns = time.monotonic_ns

MAX_BODY_BYTES = 256 << 20


class StampingProtocol(ResponseHandler):
    """Stamps every read of the exchange that holds the connection, before decoding."""

    exchange: Exchange | None = None
    has_served: bool = False  # an answer has come over this connection before

    def begin(self, exchange: Exchange) -> None:
        """From now on reads belong to ``exchange``."""
        exchange.reused_connection = self.has_served
        self.exchange = exchange

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        descriptor = stream.get_extra_info("socket")
        if descriptor is not None and stream.get_extra_info("sslcontext") is None:
            stream = cast(asyncio.Transport, DirectTransport(stream, descriptor.fileno()))
        super().connection_made(stream)

    def data_received(self, data: bytes) -> None:
        now = monotonic_ns()
        super().data_received(data)
        self.has_served = True
        exchange = self.exchange
        if exchange is not None and data:
            payload = self._payload
            total = 0 if payload is None else payload.total_bytes
            exchange.stamps.append(now)
            exchange.ends.append(total)
            if total > MAX_BODY_BYTES:
                exchange.fail("malformed", f"the response is longer than {MAX_BODY_BYTES} bytes")
                self.abort()


class StampingConnector(aiohttp.TCPConnector):
    """A connection pool whose connections stamp."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = cast(Any, functools.partial(StampingProtocol, loop=self._loop))


class StampedBody(BytesPayload):
    """A request body that binds its exchange to the connection and stamps the moment it is written."""

    def __init__(self, value: bytes, exchange: Exchange) -> None:
        super().__init__(value, content_type="application/json")
        self._exchange = exchange

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        protocol = writer.protocol
        if isinstance(protocol, StampingProtocol):
            protocol.begin(self._exchange)
        await writer.write(self._value)
        self._exchange.t_send = monotonic_ns()
