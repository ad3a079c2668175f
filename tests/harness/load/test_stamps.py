"""The kernel's stamps: they come with the bytes, stay true when this process reads late, and survive a stepped clock."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from typing import Any

import pytest

from harness.load.client import Client
from harness.load.connection import SocketConnection
from harness.load.dialect import Dialect, prepare
from harness.load.exchange import Exchange
from harness.load.settle import Rules, settle
from harness.load.stamps import ANCILLARY_BYTES, LATE_READ_NS, REFRESH_NS, StampClock, StampKeeper, enable, stamp_of
from workloads.request import RequestSpec

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SO_TIMESTAMPNS is a part of Linux")

SPEC = RequestSpec(0, None, "one two three", 3, 6)


class TwoClocks:
    """A monotonic and a real-time clock that the test moves."""

    def __init__(self) -> None:
        self.mono, self.real = 1_000_000_000, 50_000_000_000

    def pass_time(self, ns: int) -> None:
        self.mono += ns
        self.real += ns

    def make(self) -> StampClock:
        return StampClock(lambda: self.mono, lambda: self.real)


def test_stamps_move_to_the_monotonic_clock() -> None:
    clocks = TwoClocks()
    clock = clocks.make()
    stamp = clocks.real
    clocks.pass_time(700_000)
    assert clock.monotonic(stamp, 0) == clocks.mono - 700_000


@pytest.mark.parametrize("step", [-3_600_000_000_000, -1_000_000_000, 1_000_000_000, 3_600_000_000_000])
def test_a_stepped_clock_changes_nothing_and_is_counted(step: int) -> None:
    clocks = TwoClocks()
    clock = clocks.make()
    before = clock.monotonic(clocks.real, 0)
    clocks.pass_time(5_000_000)
    clocks.real += step
    stamp = clocks.real
    clocks.pass_time(1_000_000)
    assert before is not None
    assert clock.monotonic(stamp, before) == clocks.mono - 1_000_000
    assert clock.steps == 1


def test_a_step_between_stamp_and_reading_gives_no_stamp_rather_than_a_wrong_one() -> None:
    clocks = TwoClocks()
    clock = clocks.make()
    stamp = clocks.real
    clocks.real += 10_000_000_000
    clocks.pass_time(REFRESH_NS + 1)
    assert clock.monotonic(stamp, clocks.mono - 1_000_000) is None


def test_slewing_is_followed() -> None:
    clocks = TwoClocks()
    clock = clocks.make()
    for _ in range(20):
        clocks.pass_time(REFRESH_NS)
        clocks.real += 20_000  # 400 ppm
        stamp = clocks.real
        clocks.pass_time(10_000)
        t = clock.monotonic(stamp, 0)
        assert t is not None
        assert abs(t - (clocks.mono - 10_000)) <= 40_000
    assert clock.steps == 0


@needs_linux
def test_the_kernel_stamps_what_waits_to_be_read() -> None:
    keeper = StampKeeper()
    assert keeper.works
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert enable(client)
        server, _ = listener.accept()
        clock = StampClock()
        with server:
            for _ in range(20):
                sent = time.monotonic_ns()
                server.send(b"x")
                after = time.monotonic_ns()
                time.sleep(0.02)  # a reader that is late
                _, ancillary, _, _ = client.recvmsg(100, ANCILLARY_BYTES)
                stamp = stamp_of(ancillary)
                assert stamp is not None
                t = clock.monotonic(stamp, 0)
                assert t is not None
                assert sent - 200_000 <= t <= after + 5_000_000 < time.monotonic_ns()
    keeper.close()


class SlowTalk:
    """A server on a thread of its own, so that it goes on while the loop sleeps: six chunks, each when it is told to.

    Nothing waits for a length of time, so that a pause of the machine joins no chunks that are meant to come apart.
    """

    CHUNKS = 6

    def __init__(self, wire: Any) -> None:
        self._wire = wire
        self.sent: list[int] = []  # just before each chunk left
        self._turns = threading.Semaphore(0)
        self._left = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> SlowTalk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._turns.release(self.CHUNKS)
        self._thread.join()
        self._listener.close()

    def _speak(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(100_000)
            for index in range(self.CHUNKS):
                self._turns.acquire()
                is_last = index == self.CHUNKS - 1
                event = self._wire.text("x", "stop" if is_last else None) + (self._wire.done if is_last else b"")
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" if index == 0 else b""
                self.sent.append(time.monotonic_ns())
                connection.sendall(head + event)
                self._left.release()

    def say(self) -> None:
        """Return when the next chunk has left."""
        self._turns.release()
        self._left.acquire()

    async def ask(self, sleep_over: int) -> tuple[Exchange, int]:
        """One request by a client that sleeps while ``sleep_over`` chunks come, the fourth first; when it woke."""
        request = prepare(SPEC, Dialect("words"))
        async with Client(self.url) as client:
            exchange = Exchange(0, t_ready=0)
            task = asyncio.create_task(client.send(exchange, request.path, request.body))

            async def one_by_one(reads: int) -> None:
                for _ in range(reads):
                    before = len(exchange.stamps)
                    await asyncio.to_thread(self.say)
                    while len(exchange.stamps) == before and not task.done():
                        await asyncio.sleep(0.001)

            await one_by_one(3)
            for _ in range(sleep_over):
                self.say()
                time.sleep(0.015)  # the loop is late on purpose
            woken = time.monotonic_ns()
            while len(exchange.stamps) == 3:
                await asyncio.sleep(0.001)
            await one_by_one(self.CHUNKS - 3 - sleep_over)
            await task
        return exchange, woken


@needs_linux
async def test_a_blocked_client_reports_the_times_of_the_wire(wire: Any) -> None:
    """The event loop sleeps while a chunk comes; its stamp does not."""
    with SlowTalk(wire) as server:
        exchange, woken = await server.ask(sleep_over=1)
    record, chunks = settle(exchange, SPEC, rules=Rules(sends_done=True))
    assert record.ok, record.error
    assert record.stamp == exchange.stamp_source == "kernel"
    assert all(chunk.t >= t - 200_000 for chunk, t in zip(chunks, server.sent, strict=True))
    assert chunks[3].t < woken  # it was read after the sleep and says when it came
    assert chunks[3].t - server.sent[3] < woken - server.sent[3] - 2_000_000
    assert not any(chunk.is_blurred for chunk in chunks)


@needs_linux
async def test_chunks_that_waited_together_bear_one_time_and_are_known_for_it(wire: Any) -> None:
    """The kernel joins what waits unread and keeps the stamp of the last: here the record cannot be right, and says so."""
    with SlowTalk(wire) as server:
        exchange, _ = await server.ask(sleep_over=2)
    _, chunks = settle(exchange, SPEC, rules=Rules(sends_done=True))
    assert chunks[3].t == chunks[4].t >= server.sent[4] - 200_000
    assert [chunk.is_blurred for chunk in chunks].index(True) == 4


class SlowReader(StampClock):
    """Says of every read that its last byte had waited for ``waited_ns``."""

    def __init__(self, waited_ns: int) -> None:
        super().__init__()
        self._waited_ns = waited_ns

    def monotonic(self, stamp: int, not_before: int) -> int | None:
        t = super().monotonic(stamp, not_before)
        self.now = (t or 0) + self._waited_ns
        return t


@needs_linux
@pytest.mark.parametrize(("waited_ns", "blurred"), [(LATE_READ_NS, 0), (LATE_READ_NS + 1, 2)])
async def test_a_servers_own_burst_is_not_held_against_the_client(wire: Any, waited_ns: int, blurred: int) -> None:
    """Three chunks in one write belong together, unless the client was late: then nobody can tell."""
    keeper = StampKeeper()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        sock.setblocking(False)
        assert enable(sock)
        connection = SocketConnection(sock, SlowReader(waited_ns), 0, lambda _: None)
        exchange = Exchange(0, t_ready=0)
        task = asyncio.create_task(connection.carry(exchange, b"POST / HTTP/1.1\r\n\r\n"))
        peer, _ = listener.accept()
        with peer:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
            peer.sendall(head + wire.text("x") + wire.text("x") + wire.text("x", "stop") + wire.done)
        await task
    keeper.close()
    exchange.body = bytes(exchange.received)
    _, chunks = settle(exchange, SPEC)
    assert [chunk.coalesced for chunk in chunks] == [False, True, True]
    assert sum(chunk.is_blurred for chunk in chunks) == blurred


async def test_without_the_kernel_this_process_stamps_and_says_so(server: Any) -> None:
    request = prepare(SPEC, Dialect("words"))
    async with Client(server.url, stamps="user") as client:
        exchange = Exchange(0, t_ready=0)
        await client.send(exchange, request.path, request.body)
    record, _ = settle(exchange, SPEC)
    assert (record.ok, record.stamp) == (True, "user")
