"""A streaming server of known times for accuracy tests: run as a process, one argument a number.

``python truth_server.py TTFT_S ITL_S TOKENS`` prints its port, serves, and answers ``GET /truth`` with its own times of
every finished answer: ``[[received, chunk, chunk, ...], ...]`` in seconds of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

CHUNK = {"id": "cmpl-0123456789", "object": "text_completion", "model": "words"}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

truth: list[list[float]] = []


def frame(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(text: str, reason: str | None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return b"data: " + json.dumps({**CHUNK, "choices": [choice]}).encode() + b"\n\n"


class Answering(asyncio.Protocol):
    """One connection; answers requests one after another."""

    ttft_s: float
    itl_s: float
    tokens: int

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        usage = {"prompt_tokens": 3, "completion_tokens": self.tokens}
        last = event(" word", "length") + b"data: " + json.dumps({"choices": [], "usage": usage}).encode()
        self.first = frame(event(" word", None))
        self.last = frame(last + b"\n\ndata: [DONE]\n\n") + b"0\r\n\r\n"

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(b"GET"):
            self.buffer = b""
            answer = json.dumps(truth).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) >= length:
            self.buffer = b""
            self.times = [time.monotonic()]
            self.start = self.loop.time()
            self.loop.call_at(self.start + self.ttft_s, self.tick)

    def tick(self) -> None:
        if self.transport.is_closing():
            return
        sent = len(self.times)
        self.times.append(time.monotonic())
        if sent == self.tokens:
            self.transport.write(self.last)
            truth.append(self.times)
            return
        self.transport.write(HEAD + self.first if sent == 1 else self.first)
        self.loop.call_at(self.start + self.ttft_s + self.itl_s * sent, self.tick)


async def main() -> None:
    Answering.ttft_s, Answering.itl_s, Answering.tokens = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
