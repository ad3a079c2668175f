"""Asking an engine, with everything that went over the wire kept for the report.

What a server sends is never trusted: a wrong shape is a ``Failed`` that names what is wrong, no answer a ``NoAnswer``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from harness.conformance.answer import Answer, Streamed, parse_answer
from harness.conformance.case import NoAnswer
from harness.load.sse import SseParser
from harness.results.conformance import ExchangeRecord

MAX_BODY = 32 << 20  # bytes kept of one answer
SHOWN = 2_000  # characters kept of a body in the report
KEPT_FIRST, KEPT_LAST = 2, 6  # exchanges kept of a case
TOO_MANY_REQUESTS = 429
PATIENCE_S = 30.0  # of one call
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0


@dataclass(slots=True)
class Exchange:
    """One call.  Times are seconds after it was sent; ``status`` is None when no HTTP answer came."""

    method: str
    path: str
    sent: str | None
    status: int | None = None
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0

    def json(self) -> Any:
        """The body as JSON, or None."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None

    @property
    def words(self) -> str:
        """The answer on one short line."""
        if self.status is None:
            return self.error or "no answer"
        return f"HTTP {self.status}, {' '.join(self.text.split())[:160]!r}"

    def record(self) -> ExchangeRecord:
        return ExchangeRecord(
            method=self.method,
            path=self.path,
            sent=cut(self.sent),
            status=self.status,
            received=cut(self.text) or "",
            error=self.error,
            seconds=round(self.seconds, 4),
        )


def cut(text: str | None) -> str | None:
    """``text``, or its beginning with a note of how much is missing."""
    if text is None or len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]} ... [{len(text) - SHOWN} characters more]"


class Log:
    """The exchanges of one case: the first few and the last few."""

    def __init__(self) -> None:
        self.first: list[Exchange] = []
        self.last: deque[Exchange] = deque(maxlen=KEPT_LAST)
        self.count = 0
        self.sent_away = 0  # answers with 429

    def add(self, exchange: Exchange) -> None:
        self.count += 1
        self.sent_away += exchange.status == TOO_MANY_REQUESTS
        if len(self.first) < KEPT_FIRST:
            self.first.append(exchange)
        else:
            self.last.append(exchange)

    def records(self) -> list[ExchangeRecord]:
        return [exchange.record() for exchange in (*self.first, *self.last)]


class Api:
    """One server.  An async context manager; ``log`` may be swapped between cases."""

    def __init__(self, url: str, model: str | None, *, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        self.url = url
        self.model = model
        self.timeout_s = timeout_s
        self.log = Log()
        self.extra: dict[str, Any] = {}  # fields of every generating call
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Api:
        self._session = aiohttp.ClientSession(
            trust_env=False, connector=aiohttp.TCPConnector(limit=0, force_close=True), headers=self._headers
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    # --- raw calls ---

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Exchange:
        """One call whatever its answer.  ``raw`` sends bytes as they are, else ``body`` goes as JSON."""
        assert self._session is not None
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        sent = None if data is None else data.decode("utf-8", "replace")
        exchange = Exchange(method, path, sent)
        sending = {"Content-Type": "application/json"} if data is not None else {}
        limit = aiohttp.ClientTimeout(total=timeout_s or self.timeout_s)
        start = time.monotonic()
        try:
            async with self._session.request(
                method,
                self.url + path,
                data=data,
                headers={**sending, **(headers or {})},
                timeout=limit,
                allow_redirects=False,
            ) as response:
                exchange.status = response.status
                exchange.headers = {name.lower(): value for name, value in response.headers.items()}
                exchange.text = (await read_up_to(response)).decode("utf-8", "replace")
        except TimeoutError:
            exchange.status, exchange.error = None, f"no answer within {timeout_s or self.timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            exchange.status, exchange.error = None, str(error) or type(error).__name__
        exchange.seconds = time.monotonic() - start
        self.log.add(exchange)
        return exchange

    async def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> Exchange:
        """A generating call with the model filled in, asked again while the server sends it away for now."""
        patience = Patience()
        while patience.lasts_after(
            exchange := await self.request("POST", path, self.filled(body), timeout_s=timeout_s)
        ):
            await patience.wait(exchange)
        return exchange

    def filled(self, body: Mapping[str, Any]) -> dict[str, Any]:
        model = {"model": self.model} if self.model else {}
        return {**model, **self.extra, **body}

    # --- answers ---

    async def complete(self, prompt: Any, *, timeout_s: float | None = None, **fields: Any) -> Answer:
        """A good answer of /v1/completions.  Greedy unless ``temperature`` says otherwise.  Raises Failed."""
        body = {"prompt": prompt, "temperature": 0, **fields}
        return parse_answer(await self.answered("/v1/completions", body, timeout_s), is_chat=False)

    async def chat(self, messages: Any, *, timeout_s: float | None = None, **fields: Any) -> Answer:
        """A good answer of /v1/chat/completions.  Raises Failed."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body = {"messages": messages, "temperature": 0, **fields}
        return parse_answer(await self.answered("/v1/chat/completions", body, timeout_s), is_chat=True)

    async def answered(self, path: str, body: Mapping[str, Any], timeout_s: float | None = None) -> Exchange:
        """The exchange of a generating call.  Raises NoAnswer when none came."""
        exchange = await self.post(path, body, timeout_s=timeout_s)
        if exchange.status is None:
            raise NoAnswer(f"POST {path}: {exchange.error}", sent=cut(exchange.sent))
        return exchange

    async def stream(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        cancel_after: int | None = None,
        pause_s: float = 0.0,
        timeout_s: float | None = None,
        on_event: Callable[[], None] | None = None,
    ) -> Streamed:
        """A streamed call, whatever comes, asked again while the server sends it away for now.

        Hangs up after ``cancel_after`` events; waits ``pause_s`` before each read.
        """
        patience = Patience()
        while True:
            streamed = await self._streamed(path, body, cancel_after, pause_s, timeout_s, on_event)
            if not patience.lasts_after(streamed.exchange):
                return streamed
            await patience.wait(streamed.exchange)

    async def _streamed(
        self,
        path: str,
        body: Mapping[str, Any],
        cancel_after: int | None,
        pause_s: float,
        timeout_s: float | None,
        on_event: Callable[[], None] | None,
    ) -> Streamed:
        assert self._session is not None
        sent = self.filled({"temperature": 0, **body, "stream": True})
        exchange = Exchange("POST", path, json.dumps(sent))
        streamed = Streamed(exchange, is_chat=path.endswith("chat/completions"))
        limit_s = timeout_s or self.timeout_s
        start = time.monotonic()
        try:
            async with (
                asyncio.timeout(limit_s),
                self._session.post(
                    self.url + path, json=sent, timeout=aiohttp.ClientTimeout(total=None), allow_redirects=False
                ) as response,
            ):
                exchange.status = response.status
                exchange.headers = {name.lower(): value for name, value in response.headers.items()}
                await read_stream(response, streamed, start, cancel_after, pause_s, on_event)
                if streamed.was_cancelled:
                    response.close()
        except TimeoutError:
            exchange.error = f"the stream did not end within {limit_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            exchange.error = str(error) or type(error).__name__
        exchange.seconds = time.monotonic() - start
        exchange.text = streamed.raw.decode("utf-8", "replace")
        self.log.add(exchange)
        return streamed

    async def stream_complete(self, prompt: Any, **fields: Any) -> Streamed:
        """A stream of /v1/completions that is read to its end."""
        return await self.stream("/v1/completions", {"prompt": prompt, **fields})


class Patience:
    """How long a call that is sent away with 429 is repeated, as clients do: limits of a rate are no deviation.

    A server that sends it away for longer gives no answer that a client could wait for.
    """

    def __init__(self) -> None:
        self._end = time.monotonic() + PATIENCE_S
        self._pause_s = FIRST_PAUSE_S

    def lasts_after(self, exchange: Exchange) -> bool:
        return exchange.status == TOO_MANY_REQUESTS and time.monotonic() < self._end

    async def wait(self, exchange: Exchange) -> None:
        """As long as ``Retry-After`` says, within bounds; else longer each time, up to a second."""
        asked = exchange.headers.get("retry-after", "")
        if asked.isascii() and asked.isdigit():
            pause_s = float(asked)
        else:  # absent, a date, or nonsense
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, 1.0)
        await asyncio.sleep(min(max(pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S))


async def read_up_to(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) >= MAX_BODY:
            break
    return bytes(data[:MAX_BODY])


async def read_stream(
    response: aiohttp.ClientResponse,
    streamed: Streamed,
    start: float,
    cancel_after: int | None,
    pause_s: float,
    on_event: Callable[[], None] | None,
) -> None:
    """Feed a body to ``streamed`` until it ends, is long enough, or was read far enough."""
    parser = SseParser()
    while True:
        if pause_s:
            await asyncio.sleep(pause_s)
        piece = await response.content.readany() if not pause_s else await response.content.read(256)
        if not piece:
            return
        now = time.monotonic() - start
        streamed.raw += piece
        for event in parser.feed(piece):
            streamed.take(event.data, now)
            if on_event is not None:
                on_event()
        if cancel_after is not None and len(streamed.events) >= cancel_after:
            streamed.was_cancelled = True
            return
        if len(streamed.raw) > MAX_BODY:
            return
