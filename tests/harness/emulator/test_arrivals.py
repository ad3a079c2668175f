"""An emulator that reads late still knows when its requests arrived."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from harness.emulator.options import EmulatorOptions
from harness.emulator.server import Emulator

BODY = b'{"model": "emulated", "prompt": "a b c", "max_tokens": 2, "stream": true, "ignore_eos": true}'
REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
BLOCKED_S = 0.2
LOOPS = pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def run(factory: Callable[[], asyncio.AbstractEventLoop], main: Any) -> Any:
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def late_read(stamped: bool) -> tuple[float, float]:
    """Milliseconds from sending to what the emulator takes for the arrival, and from there to its first chunk."""
    async with Emulator(EmulatorOptions(port=0, ttft_ms=300.0, itl_ms=1.0, tokens=2)) as emulator:
        if emulator.clock is None:
            pytest.skip("the kernel gives no stamps here")
        if not stamped:
            emulator.clock = None
        with socket.create_connection(("127.0.0.1", emulator.port)) as client:
            while not emulator.connections:
                await asyncio.sleep(0.01)
            sent = time.monotonic_ns()
            client.sendall(REQUEST)
            time.sleep(BLOCKED_S)  # the loop stands still while the request comes
            while not emulator.truth:
                await asyncio.sleep(0.01)
        arrived, first = emulator.truth[0][:2]
        return (arrived - sent) / 1e6, (first - arrived) / 1e6


@LOOPS
def test_the_arrival_is_the_kernels(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    late, first = run(factory, late_read(stamped=True))
    assert -1 < late < 1000 * BLOCKED_S / 2
    assert first >= 300


@LOOPS
def test_without_stamps_it_is_the_moment_of_the_read(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    late, _ = run(factory, late_read(stamped=False))
    assert late > 1000 * BLOCKED_S * 0.7


@LOOPS
@pytest.mark.parametrize("way", ["close", "half-close", "reset"])
def test_a_client_that_leaves_ends_its_connection(factory: Callable[[], asyncio.AbstractEventLoop], way: str) -> None:
    async def leave() -> None:
        async with Emulator(EmulatorOptions(port=0, ttft_ms=60_000.0, itl_ms=1.0, tokens=2)) as emulator:
            client = socket.create_connection(("127.0.0.1", emulator.port))
            client.sendall(REQUEST)
            while not emulator.engine.running:
                await asyncio.sleep(0.01)
            if way == "half-close":
                client.shutdown(socket.SHUT_WR)
            if way == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if way != "half-close":
                client.close()
            async with asyncio.timeout(20):
                while emulator.engine.running or emulator._open:
                    await asyncio.sleep(0.01)
            client.close()

    run(factory, leave())
