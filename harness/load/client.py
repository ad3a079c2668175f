"""The client: sends one request, keeps the bytes and their times, and never interprets anything while it does."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp.http_exceptions import ContentLengthError, HttpProcessingError, TransferEncodingError
from yarl import URL

from harness.load.exchange import Exchange
from harness.load.wire import StampedBody, StampingConnector

monotonic_ns = time.monotonic_ns

# Servers close idle connections, uvicorn after 5 s; reusing one at that moment would look like a failure of the server.
KEEPALIVE_S = 4.0
STALE_ERRORS = (aiohttp.ClientConnectionError, OSError)
STALE_NS = 1_000_000_000
NEVER = 2**29  # bytes that aiohttp may buffer before it stops reading: the body is taken at its end


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one request in seconds.  ``first`` and ``total`` count from the moment it is sent off, ``idle`` from
    the last byte."""

    connect: float = 10.0
    first: float = 300.0
    idle: float = 120.0
    total: float = 1800.0


class Client:
    """Sends requests to one server over pooled connections.  Use as ``async with Client(...)``."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        verify_tls: bool = True,
        max_connections: int = 0,
    ) -> None:
        self.base_url = URL(base_url.rstrip("/") + "/")
        self.timeouts = timeouts or Timeouts()
        self._verify_tls = verify_tls
        self._max_connections = max_connections
        self._headers = {
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "User-Agent": "pagedbench",
            **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
            **(headers or {}),
        }
        self.stale_connections = 0  # requests that were sent again on a fresh connection
        self._urls: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        connector = StampingConnector(
            limit=self._max_connections,
            keepalive_timeout=KEEPALIVE_S,
            ssl=self._verify_tls,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeouts.connect),
            read_bufsize=NEVER,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    def _url(self, path: str) -> URL:
        if path not in self._urls:
            self._urls[path] = self.base_url.join(URL(path))
        return self._urls[path]

    async def warm(self, connections: int, path: str) -> None:
        """Open up to ``connections`` connections ahead, by as many simultaneous GETs.  Their answers do not matter."""

        async def one() -> None:
            assert self._session is not None
            try:
                async with asyncio.timeout(self.timeouts.connect):
                    async with self._session.get(self._url(path), allow_redirects=False) as response:
                        await response.read()
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass

        await asyncio.gather(*(one() for _ in range(connections)))

    async def send(self, exchange: Exchange, path: str, body: bytes) -> None:
        """POST ``body`` and fill ``exchange`` until the response ends, fails or times out.

        Raises nothing but CancelledError, and that only when the caller is cancelled (the exchange is then marked).
        """
        watchdog = Watchdog(exchange, self.timeouts)
        try:
            # Every turn uses up one kept connection that the server had closed, so it ends at a fresh one.
            while True:
                try:
                    await self._attempt(exchange, path, body)
                    break
                except STALE_ERRORS:
                    if not is_stale(exchange):
                        raise
                    self.stale_connections += 1
                    exchange.t_send = None
        except asyncio.CancelledError:
            if not watchdog.fired:
                exchange.fail("cancelled", "the request was cancelled by this client")
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        except Exception as error:
            exchange.fail(*classify(error, exchange))
        finally:
            watchdog.stop()
            if exchange.t_done is None:
                exchange.t_done = monotonic_ns()

    async def _attempt(self, exchange: Exchange, path: str, body: bytes) -> None:
        """One POST on one connection, to the end of its response.  Raises what aiohttp raises."""
        assert self._session is not None
        response = await self._session.post(self._url(path), data=StampedBody(body, exchange), allow_redirects=False)
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


class Watchdog:
    """Cancels the task it was made in when the exchange overruns a limit.  One timer, moved on only when it fires."""

    __slots__ = ("_exchange", "_handle", "_limits", "_loop", "_start", "_task", "fired")

    def __init__(self, exchange: Exchange, limits: Timeouts) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._exchange = exchange
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._start = monotonic_ns()
        self.fired = False
        self._handle = self._loop.call_later(min(limits.first, limits.total), self._check)

    def stop(self) -> None:
        self._handle.cancel()

    def _check(self) -> None:
        exchange, limits, now = self._exchange, self._limits, monotonic_ns()
        has_content = bool(exchange.ends) and exchange.ends[-1] > 0
        total_left = limits.total - (now - self._start) / 1e9
        if has_content:
            left = limits.idle - (now - exchange.stamps[-1]) / 1e9
            sentence = f"no byte came for {limits.idle:g} s"
        else:
            left = limits.first - (now - self._start) / 1e9
            sentence = f"no byte of the answer came within {limits.first:g} s"
        if left <= 0 or total_left <= 0:
            self.fired = True
            if left > 0:
                sentence = f"the answer was not complete within {limits.total:g} s"
            exchange.fail("timeout_idle" if has_content else "timeout_first", sentence)
            self._task.cancel()
        else:
            self._handle = self._loop.call_later(max(0.001, min(left, total_left)), self._check)


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
