"""The emulator as an HTTP server: OpenAI completions and chat, models, tokenize, metrics, and its own truth.

``GET /truth`` tells what really happened: of every answer when its request had arrived and when each chunk left, and
the peaks of the KV pool.  ``POST /truth/reset`` forgets it and begins the numbering of answers anew.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, cast

import httptools

from harness.emulator.answers import draw
from harness.emulator.arrivals import StampedReads, StampedTransport
from harness.emulator.asked import Asked, BadRequest, count_messages, count_words, read, read_object
from harness.emulator.engine import Counts, EmulatedEngine, Sequence
from harness.emulator.exposition import exposition
from harness.emulator.frames import STREAM_HEAD, Frames, error_document, event, frame, response, start_of
from harness.emulator.options import EARLY_FAULTS, EmulatorError, EmulatorOptions, Fault
from harness.load.alarms import Alarms
from harness.load.direct import DirectTransport
from harness.load.stamps import StampClock, StampKeeper

monotonic_ns = time.monotonic_ns

KEPT_ANSWERS = 100_000
BACKLOG = 8192
MAX_BODY_BYTES = 64 << 20
VERSION = "emulator-1"


class Emulator:
    """``async with Emulator(options) as emulator`` serves at ``emulator.url`` on the running loop."""

    def __init__(self, options: EmulatorOptions) -> None:
        self.options = options
        self.frames = Frames(options.model)
        self.truth: deque[array[int]] = deque(maxlen=KEPT_ANSWERS)
        self.connections = 0  # ever accepted
        self.number = 0  # completion requests so far
        self.engine: EmulatedEngine
        self.clock: StampClock | None
        self._alarms: Alarms
        self._keeper: StampKeeper
        self._server: asyncio.Server
        self._open: set[Connection] = set()

    async def __aenter__(self) -> Emulator:
        self._alarms = Alarms()
        self._keeper = StampKeeper()
        self.clock = StampClock() if self._keeper.works else None
        self.engine = EmulatedEngine(self.options, self._alarms, monotonic_ns)
        loop = asyncio.get_running_loop()
        options = self.options
        try:
            self._server = await loop.create_server(
                lambda: Connection(self), options.host, options.port, backlog=BACKLOG
            )
        except OSError as error:
            self._alarms.close()
            self._keeper.close()
            raise EmulatorError(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self._alarms.close()
        self._keeper.close()
        for connection in tuple(self._open):
            connection.drop()
        await asyncio.sleep(0)

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://{self.options.host}:{self.port}"

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)
        self.connections += 1

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)

    def reset(self) -> None:
        """Forget the past: truth, peaks, the numbering of answers."""
        self.truth.clear()
        self.number = 0
        self.engine.counts = Counts()

    def plain(self, method: bytes, path: str, body: bytes) -> bytes:
        """The response to everything that is not a completion."""
        options = self.options
        if method == b"POST":
            if path == "/tokenize":
                return self._tokenize(read_object(body))
            if path == "/truth/reset":
                self.reset()
                return response(200, {})
            return response(404, error_document(404, f"there is no POST {path}"))
        if method != b"GET":
            return response(405, error_document(405, f"there is no {method.decode('latin-1')} {path}"))
        match path:
            case "/health":
                return response(200, {"status": "ok"})
            case "/version":
                return response(200, {"version": VERSION})
            case "/v1/models":
                entry = {"id": options.model, "object": "model", "created": 0, "owned_by": "pagedbench-emulator"}
                model = {**entry, "max_model_len": options.max_model_len}
                return response(200, {"object": "list", "data": [model]})
            case "/metrics":
                return response(200, exposition(self.engine, options), "text/plain; version=0.0.4; charset=utf-8")
            case "/truth":
                return response(200, self._truth())
        return response(404, error_document(404, f"there is no GET {path}"))

    def _tokenize(self, document: dict[str, Any]) -> bytes:
        if "messages" in document:
            count = count_messages(document["messages"])
        else:
            prompt = document.get("prompt")
            if not isinstance(prompt, str):
                raise BadRequest("prompt must be a text")
            count = count_words(prompt)
        known = {"count": count, "tokens": list(range(count)), "max_model_len": self.options.max_model_len}
        return response(200, known)

    def _truth(self) -> dict[str, Any]:
        counts = self.engine.counts
        return {
            "answers": [stamps.tolist() for stamps in self.truth],
            "connections": self.connections,
            "peak_kv_tokens": counts.peak_live,
            "peak_kv_slots": counts.peak_blocks * self.options.block_size,
            "peak_running": counts.peak_running,
            "preemptions": counts.preemptions,
        }


class Connection(asyncio.Protocol):
    """One client connection: one request at a time, in order."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._options = emulator.options
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._path = b""
        self._body: list[bytes] = []
        self._size = 0
        self._authorization = b""
        self._keep = True
        self._sequence: Sequence | None = None
        self._asked: Asked | None = None
        self._word = 0
        self._stamps: array[int] = array("q")
        self._reason = "length"
        self._arrival = 0  # of the bytes read last

    # Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        stream = cast(asyncio.Transport, transport)
        descriptor, clock = stream.get_extra_info("socket").fileno(), self._emulator.clock
        if clock is None:
            self._transport = DirectTransport(stream, descriptor)
        else:
            reads = StampedReads(stream, clock, self._received, lambda: self._transport.close())
            self._transport = StampedTransport(stream, descriptor, reads)
        self._emulator.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport.close()
        self._emulator.closed(self)
        self._leave()

    def data_received(self, data: bytes) -> None:
        self._received(data, monotonic_ns())

    def _received(self, data: bytes, t: int) -> None:
        """Bytes that arrived at ``t``."""
        self._arrival = t
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._write(response(400, error_document(400, f"not HTTP: {error}")))
            self._transport.close()

    def drop(self) -> None:
        """Reset the connection."""
        self._transport.abort()

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def _leave(self) -> None:
        if self._sequence is not None:
            self._emulator.engine.abort(self._sequence)
            self._sequence = None

    # HTTP, called by the parser

    def on_message_begin(self) -> None:
        self._path, self._body, self._size, self._authorization = b"", [], 0, b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self._authorization = value

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= MAX_BODY_BYTES:
            self._body.append(body)

    def on_message_complete(self) -> None:
        now = self._arrival
        self._keep = self._parser.should_keep_alive()
        path = self._path.partition(b"?")[0].decode("latin-1")
        try:
            if self._size > MAX_BODY_BYTES:
                self._refuse(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
            elif self._is_locked_out(path):
                self._refuse(401, "the API key is missing or wrong")
            elif path in ("/v1/completions", "/v1/chat/completions") and self._parser.get_method() == b"POST":
                self._complete(read(b"".join(self._body), path.endswith("chat/completions")), now)
            else:
                self._answer(self._emulator.plain(self._parser.get_method(), path, b"".join(self._body)))
        except BadRequest as error:
            self._refuse(400, str(error))

    def _is_locked_out(self, path: str) -> bool:
        key = self._options.api_key
        return key is not None and path != "/health" and self._authorization != f"Bearer {key}".encode()

    def _refuse(self, status: int, message: str) -> None:
        self._answer(response(status, error_document(status, message)))

    def _answer(self, data: bytes) -> None:
        self._write(data)
        if not self._keep:
            self._transport.close()

    # A completion

    def _complete(self, asked: Asked, now: int) -> None:
        emulator, options = self._emulator, self._options
        answer = draw(options, emulator.number)
        own_length = answer.tokens or options.tokens
        limit = asked.output_tokens or own_length
        tokens = limit if asked.ignore_eos and answer.tokens is None else min(limit, own_length)
        room = options.max_model_len - asked.prompt_tokens
        if room < 1 or (asked.output_tokens or 0) > room:
            raise BadRequest(f"prompt and answer exceed the context of {options.max_model_len} tokens")
        tokens = min(tokens, room)
        if not emulator.engine.fits(asked.prompt_tokens, tokens, asked.n):
            raise BadRequest(f"the KV pool of {options.kv_tokens} tokens can never hold this request")
        emulator.number += 1
        if answer.fault in EARLY_FAULTS:
            if answer.fault != "hang":
                self._refuse(int(answer.fault.removeprefix("http_")), "this request was chosen to fail")
            return
        if len(emulator.engine.waiting) > options.max_waiting:
            self._refuse(429, "too many requests are waiting")
            return
        self._asked = asked
        self._word = start_of(asked.prompt)
        self._reason = "length" if tokens == limit else "stop"
        self._stamps = array("q", (now,))
        self._sequence = Sequence(asked.prompt_tokens, tokens, answer, self, now, asked.n)
        emulator.engine.add(self._sequence)

    def tokens(self, first: int, count: int, is_last: bool) -> None:
        """The engine gives tokens ``first`` to ``first + count``."""
        asked, sequence, frames = self._asked, self._sequence, self._emulator.frames
        assert asked is not None
        assert sequence is not None
        if asked.stream:
            data = frames.tokens(asked.chat, asked.n, self._word + first, count)
            if first == 0:
                data = STREAM_HEAD + (frames.opening(asked.n) if asked.chat else b"") + data
            if is_last:
                data += self._ending(asked, sequence)
            self._stamps.append(monotonic_ns())
            self._write(data)
        elif is_last:
            usage = self._usage(asked, sequence)
            whole = frames.whole(asked.chat, asked.n, self._word, sequence.generated, self._reason, usage)
            self._stamps.append(monotonic_ns())
            self._write(whole)
        if is_last:
            self._sequence = None
            self._emulator.truth.append(self._stamps)
            if not self._keep:
                self._transport.close()

    def fault(self, kind: Fault) -> None:
        """The engine spoils the answer here."""
        asked = self._asked
        assert asked is not None
        if kind == "stall":
            return
        self._sequence = None
        if kind == "reset":
            self._transport.abort()
        elif kind == "close" or not asked.stream:
            self._transport.close()
        else:
            head = b"" if len(self._stamps) > 1 else STREAM_HEAD
            said = event(error_document(500, "this answer was chosen to fail"))
            self._write(head + frame(said) + frame(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _ending(self, asked: Asked, sequence: Sequence) -> bytes:
        usage = self._usage(asked, sequence) if asked.include_usage else None
        fault = sequence.answer.fault
        reason = None if fault == "no_finish" else self._reason
        return self._emulator.frames.ending(asked.chat, asked.n, reason, usage, fault != "no_done")

    @staticmethod
    def _usage(asked: Asked, sequence: Sequence) -> dict[str, int]:
        output = asked.n * sequence.generated
        prompt = asked.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


async def serve(options: EmulatorOptions, on_ready: Callable[[str], None], over: asyncio.Event) -> None:
    """Serve until ``over`` is set; ``on_ready`` gets the URL.  Raises :class:`EmulatorError`."""
    async with Emulator(options) as emulator:
        on_ready(emulator.url)
        await over.wait()
