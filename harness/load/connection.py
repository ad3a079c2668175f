"""Connections: where bytes leave and arrive, and where their times are taken.

``SocketConnection`` reads a plain TCP socket itself, so that the kernel's stamp comes with the bytes, and writes
straight to it, so that a request leaves at its stamp and not at the end of a turn of the event loop.
``TransportConnection`` goes through asyncio (TLS, systems without socket readers) and reads the clock first thing.
"""

from __future__ import annotations

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from harness.load.exchange import Exchange
from harness.load.http_reader import ResponseReader
from harness.load.stamps import ANCILLARY_BYTES, LATE_READ_NS, READ_BYTES, StampClock, stamp_of

monotonic_ns = time.monotonic_ns


class Connection(ABC):
    """One connection to one server, carrying one exchange at a time.

    ``on_idle_end`` is called when the connection ends, or gets bytes that nobody asked for, while it carries none.
    """

    def __init__(self, endpoint: int, on_idle_end: Callable[[Connection], None]) -> None:
        self.endpoint = endpoint
        self.idle_since = 0
        self.has_served = False
        self.is_closed = False
        self._on_idle_end = on_idle_end
        self._reader: ResponseReader | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def carry(self, exchange: Exchange, request: bytes) -> None:
        """Write ``request`` and wait until its response is over or the connection has ended.

        ``exchange`` says afterwards what happened.  Raises only CancelledError; the connection is then closed.
        """
        exchange.reused_connection = self.has_served
        self._waiter = asyncio.get_running_loop().create_future()
        self._reader = ResponseReader(exchange)
        self._write(exchange, request)
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            reader, self._reader, self._waiter = self._reader, None, None
            if reader is not None and not reader.is_reusable:
                self.close()

    def end(self) -> None:
        """Stop the exchange under way here and now; whoever does so has said why in the exchange."""
        self.close()
        self._over()

    @abstractmethod
    def close(self) -> None:
        """Give the connection up.  Idempotent."""

    @abstractmethod
    def _write(self, exchange: Exchange, data: bytes) -> None:
        """Send ``data`` and stamp ``exchange.t_send`` as the last of it is handed to the system."""

    def _arrived(self, data: bytes, t: int) -> None:
        reader = self._reader
        if reader is None:
            self.close()
            self._on_idle_end(self)
            return
        reader.feed(data, t)
        self.has_served = True
        if reader.is_over:
            exchange = reader.exchange
            exchange.t_done = t
            self._over()

    def _ended(self, reason: str | None) -> None:
        """The other side closed, or the connection broke (``reason``)."""
        self.close()
        if self._reader is None:
            self._on_idle_end(self)
            return
        self._reader.end(reason)
        self._over()

    def _over(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class SocketConnection(Connection):
    """Over a connected plain TCP socket.  With a ``clock`` its bytes are stamped by the kernel."""

    def __init__(
        self,
        sock: socket.socket,
        clock: StampClock | None,
        endpoint: int,
        on_idle_end: Callable[[Connection], None],
    ) -> None:
        super().__init__(endpoint, on_idle_end)
        self._sock = sock
        self._clock = clock
        self._unsent = memoryview(b"")
        self._last_stamp = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable if clock is None else self._readable_stamped)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            descriptor = self._sock.fileno()
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)
            self._sock.close()

    def _write(self, exchange: Exchange, data: bytes) -> None:
        exchange.stamp_source = "user" if self._clock is None else "kernel"
        self._unsent = memoryview(data)
        self._send(exchange)
        if self._unsent and not self.is_closed:
            self._loop.add_writer(self._sock.fileno(), self._send, exchange)

    def _send(self, exchange: Exchange) -> None:
        exchange.t_send = self._last_stamp = monotonic_ns()
        try:
            sent = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            # What the server said before it closed may still wait to be read; reading reports the end.
            self._unsent = memoryview(b"")
            self._loop.remove_writer(self._sock.fileno())
            if not isinstance(error, (BrokenPipeError, ConnectionResetError)):
                self._ended(describe(error))
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _readable_stamped(self) -> None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._ended(describe(error))
            return
        if not data:
            self._ended(None)
            return
        assert self._clock is not None
        stamp = stamp_of(ancillary)
        t = None if stamp is None else self._clock.monotonic(stamp, self._last_stamp)
        if t is None:
            t = monotonic_ns()
            if self._reader is not None:
                self._reader.exchange.stamp_source = "user"
        elif self._clock.now - t > LATE_READ_NS and self._reader is not None:
            exchange = self._reader.exchange
            exchange.late_reads.add(len(exchange.stamps))
        self._last_stamp = t
        self._arrived(data, t)

    def _readable(self) -> None:
        t = monotonic_ns()
        try:
            data = self._sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._ended(describe(error))
            return
        if data:
            self._arrived(data, t)
        else:
            self._ended(None)


class TransportConnection(Connection, asyncio.Protocol):
    """Over an asyncio transport."""

    def __init__(self, endpoint: int, on_idle_end: Callable[[Connection], None]) -> None:
        super().__init__(endpoint, on_idle_end)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._arrived(data, monotonic_ns())

    def connection_lost(self, error: Exception | None) -> None:
        if not self.is_closed:
            self._ended(None if error is None else describe(error))

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            if self._transport is not None:
                self._transport.abort()

    def _write(self, exchange: Exchange, data: bytes) -> None:
        assert self._transport is not None
        exchange.t_send = monotonic_ns()
        self._transport.write(data)


def describe(error: BaseException) -> str:
    """An error in words, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
