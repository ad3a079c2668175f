"""Requests with the kernel's time of arrival.

A hundred requests that arrive together are read one after the other; the last would get an arrival that is milliseconds
late, and with it an answer that is.  Here the bytes come with the time at which the kernel had them, so that an answer
is due when it was asked for, however busy the emulator was.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable

from harness.load.direct import DirectTransport
from harness.load.stamps import ANCILLARY_BYTES, READ_BYTES, StampClock, enable, stamp_of


class StampedReads:
    """Reads the socket of a server transport beside it; the transport only writes.

    ``received(data, t)`` gets the bytes and when they arrived (monotonic ns), ``ended()`` the end of the connection,
    once.  The end of a transport is delayed while this holds its socket: ``close`` comes before the transport's own.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        clock: StampClock,
        received: Callable[[bytes, int], None],
        ended: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._received, self._ended = received, ended
        self._sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self._sock.setblocking(False)
        enable(self._sock)
        self._transport = transport
        # A transport begins to read after it has told its protocol that it is there, and uvloop's does so even if it
        # was told not to; before the loop polls again, it is stopped.
        self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        if self._sock.fileno() >= 0:
            self._transport.pause_reading()
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def close(self) -> None:
        """Read no more.  Idempotent."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self.close()
            self._ended()
            return
        stamp = stamp_of(ancillary)
        t = None if stamp is None else self._clock.monotonic(stamp, 0)
        self._received(data, time.monotonic_ns() if t is None else t)


class StampedTransport(DirectTransport):
    """A transport with its :class:`StampedReads`, which end before it does."""

    def __init__(self, transport: asyncio.Transport, descriptor: int, reads: StampedReads) -> None:
        super().__init__(transport, descriptor)
        self._reads = reads

    def close(self) -> None:
        self._reads.close()
        self._transport.close()

    def abort(self) -> None:
        self._reads.close()
        self._transport.abort()
