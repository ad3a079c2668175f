"""The portable client: the same as ``harness.load.client`` over aiohttp.

Slower (some three times the CPU a chunk) and always stamped by this process; for comparisons, and for networks whose
proxies or TLS set-ups aiohttp knows and ours does not.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp.http_exceptions import ContentLengthError, HttpProcessingError, TransferEncodingError
from yarl import URL

from harness.load.client import STALE_NS, header_fields
from harness.load.exchange import Exchange
from harness.load.limits import Overseer, Timeouts
from harness.load.portable_wire import StampedBody, StampingConnector
from harness.load.stamps import StampClock

monotonic_ns = time.monotonic_ns

# Servers close idle connections, uvicorn after 5 s; reusing one at that moment would look like a failure of the server.
KEEPALIVE_S = 4.0
STALE_ERRORS = (aiohttp.ClientConnectionError, OSError)
NEVER = 2**29  # bytes that aiohttp may buffer before it stops reading: the body is taken at its end


class PortableClient:
    """Sends requests to one engine over pooled connections.  Use as ``async with PortableClient(...)``."""

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        verify_tls: bool = True,
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self.stale_connections = 0  # requests that were sent again on a fresh connection
        self._bases = [URL(url.rstrip("/") + "/") for url in ([urls] if isinstance(urls, str) else urls)]
        self._verify_tls = verify_tls
        self._headers = header_fields(api_key, headers or {})
        self._turn = 0
        self.clock: StampClock | None = None  # aiohttp's bytes bear no stamps of the kernel
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> PortableClient:
        self._session = aiohttp.ClientSession(
            connector=StampingConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=self._verify_tls),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeouts.connect),
            read_bufsize=NEVER,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self._overseer = Overseer(self.timeouts)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        self._overseer.close()
        await self._session.close()

    async def warm(self, connections: int) -> None:
        """Open up to ``connections`` connections ahead, by as many simultaneous GETs.  Their answers do not matter."""

        async def one(number: int) -> None:
            assert self._session is not None
            url = self._bases[number % len(self._bases)].join(URL("health"))
            try:
                async with asyncio.timeout(self.timeouts.connect):
                    async with self._session.get(url, allow_redirects=False) as response:
                        await response.read()
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass

        await asyncio.gather(*(one(number) for number in range(connections)))

    async def send(self, exchange: Exchange, path: str, body: bytes) -> None:
        """POST ``body`` and fill ``exchange`` until the response ends, fails or times out.

        Raises nothing but CancelledError, and that only when the caller is cancelled (the exchange is then marked).
        """
        task = asyncio.current_task()
        assert task is not None
        overdue = False

        def end() -> None:
            nonlocal overdue
            overdue = True
            task.cancel()

        url = self._bases[self._turn % len(self._bases)].join(URL(path))
        self._turn += 1
        self._overseer.watch(exchange, end)
        try:
            # Every turn uses up one kept connection that the server had closed, so it ends at a fresh one.
            while True:
                try:
                    await self._attempt(exchange, url, body)
                    break
                except STALE_ERRORS:
                    if not is_stale(exchange):
                        raise
                    self.stale_connections += 1
                    exchange.t_send = None
        except asyncio.CancelledError:
            if not overdue:
                exchange.fail("cancelled", "the request was cancelled by this client")
                raise
            task.uncancel()
        except Exception as error:
            exchange.fail(*classify(error, exchange))
        finally:
            self._overseer.forget(exchange)
            if exchange.t_done is None:
                exchange.t_done = monotonic_ns()

    async def _attempt(self, exchange: Exchange, url: URL, body: bytes) -> None:
        """One POST on one connection, to the end of its response.  Raises what aiohttp raises."""
        assert self._session is not None
        response = await self._session.post(url, data=StampedBody(body, exchange), allow_redirects=False)
        whole = False
        try:
            exchange.status = response.status
            exchange.content_type = response.content_type if "Content-Type" in response.headers else ""
            error = response.content.exception()
            if error is not None:
                raise error
            await response.content.wait_eof()
            exchange.t_done = exchange.stamps[-1]
            whole = exchange.failure is None
        finally:
            exchange.body = take_body(response)
            if whole:
                response.release()
            else:
                response.close()


def is_stale(exchange: Exchange) -> bool:
    """Whether a request failed only because the server had closed the idle connection that we reused.

    Servers close kept connections when they like.  Nothing of an answer came, and the failure came at once: sent again
    on a fresh connection, the request is the first that the server sees (RFC 9112, section 9.3.1).  On a fresh
    connection the same failure counts.
    """
    at_once = exchange.t_send is None or monotonic_ns() - exchange.t_send < STALE_NS
    return exchange.reused_connection and not exchange.stamps and exchange.failure is None and at_once


def take_body(response: aiohttp.ClientResponse) -> bytes:
    """Every byte of the body that came, also when the stream broke (aiohttp's reader refuses to give those)."""
    content = response.content
    if content.exception() is None:
        return content.read_nowait()
    return b"".join(content._buffer)


def classify(error: Exception, exchange: Exchange) -> tuple[Any, str]:
    """The error class and sentence for what aiohttp raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError)):
        return "tls", f"TLS failed: {text}"
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return "connect", f"could not connect: {text}"
    if isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError)):
        return "malformed", f"the response is not valid HTTP: {text}"
    if isinstance(error, aiohttp.ClientPayloadError):
        cause = error.__cause__
        cut_short = isinstance(cause, (ContentLengthError, TransferEncodingError))
        if isinstance(cause, HttpProcessingError) and not cut_short:
            return "malformed", f"the body is not valid HTTP: {text}"
        return "truncated", f"the connection ended inside the response: {text}"
    if isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        where = "inside the response" if exchange.stamps else "before a response began"
        return "truncated", f"the connection ended {where}: {text}"
    return "malformed", f"{type(error).__name__}: {text}"
