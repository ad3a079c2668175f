"""A scripted server: raw HTTP over asyncio, so that it can misbehave in any way, with its own log of times."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

Script = Callable[["Connection", "Asked"], Awaitable[None]]


@dataclass
class Asked:
    """A request as the server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    t: int = field(default_factory=time.monotonic_ns)

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)  # type: ignore[no-any-return]


@dataclass
class Served:
    """The server's own times of one streamed answer (monotonic ns)."""

    t_received: int
    t_chunks: list[int] = field(default_factory=list)


def event(document: object) -> bytes:
    return b"data: " + (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n\n"


def text_event(text: str, reason: str | None = None, **more: object) -> bytes:
    return event(
        {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": reason}], **more}
    )


def delta_event(delta: dict[str, object], reason: str | None = None, **more: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more})


def usage_event(prompt: int, output: int, cached: int | None = None) -> bytes:
    usage: dict[str, object] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return event({"choices": [], "usage": usage})


DONE = event(b"[DONE]")


class Connection:
    """What a script can do to its peer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.chunked = False

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    def head(
        self, status: int = 200, content_type: str = "text/event-stream", *more: str, chunked: bool = True
    ) -> None:
        self.chunked = chunked
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", *more]
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    def body(self, data: bytes) -> None:
        self.raw(b"%x\r\n%s\r\n" % (len(data), data) if self.chunked else data)

    def end(self) -> None:
        if self.chunked:
            self.raw(b"0\r\n\r\n")

    def answer(self, document: object, status: int = 200, content_type: str = "application/json") -> None:
        """A whole plain response."""
        body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        self.head(status, content_type, f"Content-Length: {len(body)}", chunked=False)
        self.raw(body)

    async def close(self) -> None:
        with contextlib.suppress(OSError):
            await self.writer.drain()
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


class ScriptedServer:
    """Serves POSTs by ``script``; GETs and ``/tokenize`` like a small honest engine whose tokens are words.

    ``script`` gets the connection after the request was read; when it returns, the connection is kept for the next one.
    """

    def __init__(self, script: Script | None = None, ssl: ssl.SSLContext | None = None) -> None:
        self.script: Script = script or self.stream
        self.asked: list[Asked] = []
        self.served: list[Served] = []
        self.connections = 0
        self.ttft_s, self.itl_s, self.tokens = 0.0, 0.0, 4
        self.running = 0
        self.metrics_text: Callable[[], str] | None = None
        self._ssl = ssl
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._ssl)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def stream(self, connection: Connection, asked: Asked) -> None:
        """The well-behaved answer: ``max_tokens`` tokens (``tokens`` when not asked), usage, [DONE]."""
        wanted: int = asked.json.get("max_tokens") or asked.json.get("max_completion_tokens") or self.tokens
        if not asked.json.get("stream"):
            text = "".join(f" w{index}" for index in range(wanted))
            choice = {"index": 0, "text": text, "message": {"role": "assistant", "content": text}}
            prompt = self.count(asked.json)
            usage = {"prompt_tokens": prompt, "completion_tokens": wanted, "total_tokens": prompt + wanted}
            connection.answer({"model": "words", "choices": [{**choice, "finish_reason": "length"}], "usage": usage})
            return
        served = Served(asked.t)
        self.served.append(served)
        self.running += 1
        try:
            await asyncio.sleep(self.ttft_s)
            connection.head()
            chat = asked.path.endswith("/chat/completions")
            for index in range(wanted):
                if index:
                    await asyncio.sleep(self.itl_s)
                word, reason = f" w{index}", "length" if index == wanted - 1 else None
                served.t_chunks.append(time.monotonic_ns())
                connection.body(delta_event({"content": word}, reason) if chat else text_event(word, reason))
            connection.body(usage_event(self.count(asked.json), wanted) + DONE)
            connection.end()
        finally:
            self.running -= 1

    @staticmethod
    def count(document: dict[str, Any]) -> int:
        """Tokens of a prompt: its words, and three a message for the template."""
        if "messages" in document:
            return sum(3 + len(message["content"].split()) for message in document["messages"])
        return len(str(document["prompt"]).split())

    def default_metrics(self) -> str:
        return (
            f"pagedbench:requests_running {self.running}\n"
            "pagedbench:requests_waiting 0\n"
            f"pagedbench:kv_slots_reserved 1024\npagedbench:kv_slots_allocated {self.running * 16}\n"
            f"pagedbench:kv_slots_live {self.running * 12}\n"
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                method, path, _ = first.split(" ", 2)
                headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(method, path, headers, body)
                connection = Connection(reader, writer)
                if not self._honest(connection, asked):
                    self.asked.append(asked)
                    await self.script(connection, asked)
                if writer.is_closing():
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._open.discard(task)

    def _honest(self, connection: Connection, asked: Asked) -> bool:
        if asked.path == "/tokenize":
            n = self.count(asked.json)
            connection.answer({"count": n, "tokens": list(range(n)), "max_model_len": 512})
        elif asked.path == "/v1/models":
            connection.answer({"object": "list", "data": [{"id": "words", "object": "model", "max_model_len": 512}]})
        elif asked.path == "/metrics":
            connection.answer((self.metrics_text or self.default_metrics)(), content_type="text/plain")
        elif asked.path == "/health":
            connection.answer({"status": "ok"})
        elif asked.method == "GET":
            connection.answer({"error": {"message": "not found"}}, status=404)
        else:
            return False
        return True


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A scripted server that behaves until its ``script`` is replaced."""
    async with ScriptedServer() as running:
        yield running


@pytest.fixture
def server_thread() -> Iterator[ScriptedServer]:
    """A scripted server on a thread and loop of its own, for tests that run the client in another process."""
    started: queue.Queue[tuple[ScriptedServer, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def main() -> None:
        async with ScriptedServer() as running:
            over = asyncio.Event()
            started.put((running, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    running, loop, over = started.get(timeout=10)
    yield running
    loop.call_soon_threadsafe(over.set)
    thread.join(10)


@pytest.fixture
def wire() -> Any:
    """The words of the wire, for tests that write their own scripts."""

    class Wire:
        event = staticmethod(event)
        text = staticmethod(text_event)
        delta = staticmethod(delta_event)
        usage = staticmethod(usage_event)
        done = DONE

    return Wire
