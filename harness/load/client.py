"""The client: sends requests over kept connections, keeps bytes and times, and interprets nothing while it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from harness.load.connection import Connection
from harness.load.content_coding import decode_body
from harness.load.endpoint import ConnectError, Connector, Endpoint
from harness.load.exchange import Exchange, StampSource
from harness.load.limits import Overseer, Timeouts
from harness.load.stamps import StampClock, StampKeeper

monotonic_ns = time.monotonic_ns

# Servers close idle connections, uvicorn after 5 s; reusing one at that moment would look like a failure of the server.
KEEPALIVE_NS = 4_000_000_000
STALE_NS = 1_000_000_000
CONNECTING_AT_ONCE = 128


class Client:
    """Sends requests to one engine: one server, or several that share its load in turn.

    Use as ``async with Client(url)``.  There are never more connections than requests in flight (or warmed up).
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        verify_tls: bool = True,
        stamps: StampSource = "kernel",
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self.stale_connections = 0  # requests that were sent again on a fresh connection
        self.connections = 0  # ever opened
        self._endpoints = [Endpoint.of(url) for url in ([urls] if isinstance(urls, str) else urls)]
        self._verify_tls = verify_tls
        self._stamps = stamps
        fields = header_fields(api_key, headers or {})
        self._header_lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._heads: dict[tuple[int, str], bytes] = {}
        self._turn = 0
        self._idle: list[list[Connection]] = [[] for _ in self._endpoints]
        self._open: set[Connection] = set()
        self._connectors: list[Connector] = []
        self._keeper: StampKeeper | None = None
        self.clock: StampClock | None = None

    async def __aenter__(self) -> Client:
        if self._stamps == "kernel":
            self._keeper = StampKeeper()
            self.clock = StampClock() if self._keeper.works else None
        self._connectors = [
            Connector(endpoint, number, verify_tls=self._verify_tls, clock=self.clock)
            for number, endpoint in enumerate(self._endpoints)
        ]
        self._overseer = Overseer(self.timeouts)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._overseer.close()
        for connection in tuple(self._open):
            connection.close()
        self._open.clear()
        if self._keeper is not None:
            self._keeper.close()
        await asyncio.sleep(0)

    async def warm(self, connections: int) -> None:
        """Open up to ``connections`` connections ahead, over all servers in turn.  Failures do not matter here."""
        gate = asyncio.Semaphore(CONNECTING_AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                try:
                    connection = await self._connect(number % len(self._connectors))
                except ConnectError:
                    return
            self._keep(connection)

        await asyncio.gather(*(one(number) for number in range(connections)))

    async def send(self, exchange: Exchange, path: str, body: bytes) -> None:
        """POST ``body`` and fill ``exchange`` until the response ends, fails or times out.

        Raises nothing but CancelledError, and that only when the caller is cancelled (the exchange is then marked).
        """
        number = self._turn % len(self._connectors)
        self._turn += 1
        request = b"%b%d\r\n\r\n%b" % (self._head(number, path), len(body), body)
        try:
            await self._attempt(exchange, number, request)
            if is_stale(exchange):
                self.stale_connections += 1
                exchange.t_send = exchange.t_done = exchange.failure = None
                await self._attempt(exchange, number, request, fresh=True)
        except asyncio.CancelledError:
            exchange.fail("cancelled", "the request was cancelled by this client")
            raise
        finally:
            if exchange.t_done is None:
                exchange.t_done = monotonic_ns()
            decode_body(exchange)

    async def _attempt(self, exchange: Exchange, number: int, request: bytes, *, fresh: bool = False) -> None:
        connection = None if fresh else self._take(number)
        if connection is None:
            try:
                connection = await self._connect(number)
            except ConnectError as error:
                exchange.fail(error.error_class, str(error))  # type: ignore[arg-type]
                return
        self._overseer.watch(exchange, connection.end)
        try:
            await connection.carry(exchange, request)
        finally:
            self._overseer.forget(exchange)
            if connection.is_closed:
                self._open.discard(connection)
            else:
                self._keep(connection)

    async def _connect(self, number: int) -> Connection:
        """Raises ConnectError."""
        try:
            async with asyncio.timeout(self.timeouts.connect):
                connection = await self._connectors[number].connect(self._lost)
        except TimeoutError:
            raise ConnectError("connect", f"no connection within {self.timeouts.connect:g} s") from None
        self.connections += 1
        self._open.add(connection)
        return connection

    def _take(self, number: int) -> Connection | None:
        """A kept connection that can be trusted to be alive."""
        idle = self._idle[number]
        while idle:
            connection = idle.pop()
            if not connection.is_closed and monotonic_ns() - connection.idle_since < KEEPALIVE_NS:
                return connection
            connection.close()
            self._open.discard(connection)
        return None

    def _keep(self, connection: Connection) -> None:
        connection.idle_since = monotonic_ns()
        self._idle[connection.endpoint].append(connection)

    def _lost(self, connection: Connection) -> None:
        """A connection ended while nobody used it."""
        self._open.discard(connection)

    def _head(self, number: int, path: str) -> bytes:
        head = self._heads.get((number, path))
        if head is None:
            endpoint = self._endpoints[number]
            text = f"POST {endpoint.path}/{path} HTTP/1.1\r\nHost: {endpoint.authority}\r\n{self._header_lines}"
            head = self._heads[number, path] = f"{text}Content-Length: ".encode("latin-1")
        return head


def header_fields(api_key: str | None, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that every request carries; the user's win over ours.  Raises ValueError."""
    known = {
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": "pagedbench",
        **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
    }
    theirs = {name.lower() for name in headers}
    merged = {name: value for name, value in known.items() if name.lower() not in theirs} | dict(headers)
    for name, value in merged.items():
        if not name or any(mark in name + value for mark in "\r\n\0") or ":" in name:
            raise ValueError(f"{name!r} cannot be a header")
    return merged


def is_stale(exchange: Exchange) -> bool:
    """Whether a request failed only because the server had closed the idle connection that we reused.

    Servers close kept connections when they like.  Nothing of an answer came, and the failure came at once: sent again
    on a fresh connection, the request is the first that the server sees (RFC 9112, section 9.3.1).  On a fresh
    connection the same failure counts.
    """
    if exchange.failure is None or exchange.failure[0] != "truncated" or exchange.stamps:
        return False
    at_once = exchange.t_send is None or monotonic_ns() - exchange.t_send < STALE_NS
    return exchange.reused_connection and at_once
