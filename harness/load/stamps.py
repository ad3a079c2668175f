"""When bytes arrived, by the kernel.

Linux notes the time at which a packet came in (``SO_TIMESTAMPNS``) and hands it out with the bytes (``recvmsg``).  It
stays within some 0.05 ms of the sender's clock however late this process reads, so a busy client cannot bend a
measured time.  When a read takes in several packets, the stamp is that of the last (``tcp_recvmsg`` and, where packets
were joined while they waited, ``tcp_try_coalesce``).  Two chunks of one stream then bear one time::

    the server     A . . . . . . . B                    A and B left apart
    a late client                     [AB] read here    both bear the time of B: a gap that is too long, then none
    the server     AB                                   A and B left together: one time is the truth
    a timely one   [AB]

Only the first is an error, and the two are told apart by how long the read's last byte had waited: in a client that reads
in time no byte waits longer than ``LATE_READ_NS``.

The kernel's stamps are on the real-time clock, which may be stepped; everything here is on the monotonic clock.  The
difference of the two is measured again every ``REFRESH_NS``, and at once when a stamp comes out impossible (in the
future, or before what came before it).
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable

SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)
ANCILLARY_BYTES = 64
READ_BYTES = 65_536
REFRESH_NS = 50_000_000
TOLERANCE_NS = 100_000  # reading two clocks takes time, and clocks are slewed
LATE_READ_NS = 1_000_000
PROOFS, PROOF_PAUSE_S = 300, 0.001
_BRACKET_NS = 3_000  # a reading of both clocks that took longer was interrupted
_TRIES = 20

_timespec = struct.Struct("qq").unpack


def enable(sock: socket.socket) -> bool:
    """Ask for stamps on ``sock``.  False where the system has none."""
    if not sys.platform.startswith("linux") or struct.calcsize("l") != 8:
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


def stamp_of(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """The real time (ns) in what ``recvmsg`` gave beside the bytes, or None."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = _timespec(data)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return None


class StampKeeper:
    """Switches the kernel's stamping on, proves it over loopback, and keeps it on until it is closed.

    The kernel stamps packets only while some socket wants it, and begins a moment after the first one asks.
    ``works`` says whether it did.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        try:
            self.works = self._prove()
        except OSError:
            self.works = False

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def _prove(self) -> bool:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            receiver = socket.create_connection(listener.getsockname(), timeout=1)
            self._sockets.append(receiver)
            if not enable(receiver):
                return False
            sender, _ = listener.accept()
            self._sockets.append(sender)
        for _ in range(PROOFS):
            sender.send(b"?")
            if stamp_of(receiver.recvmsg(1, ANCILLARY_BYTES)[1]) is not None:
                return True
            time.sleep(PROOF_PAUSE_S)
        return False


class StampClock:
    """Turns the kernel's real-time stamps into monotonic ones."""

    def __init__(
        self, monotonic_ns: Callable[[], int] = time.monotonic_ns, realtime_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._realtime_ns = realtime_ns
        self._offset = 0
        self._measured_at = 0
        self.now = 0  # when ``monotonic`` was called last: the moment of the read
        self.steps = 0  # times that the real-time clock was found to have jumped
        self._measure(monotonic_ns())

    def monotonic(self, stamp: int, not_before: int) -> int | None:
        """``stamp`` on the monotonic clock; None when it makes no sense (before ``not_before``, or in the future)."""
        now = self.now = self._monotonic_ns()
        if now - self._measured_at > REFRESH_NS:
            self._measure(now)
        t = stamp - self._offset
        if not_before - TOLERANCE_NS <= t <= now + TOLERANCE_NS:
            return min(now, max(t, not_before))
        self.steps += 1
        self._measure(now)
        t = stamp - self._offset
        return min(now, max(t, not_before)) if not_before - TOLERANCE_NS <= t <= now + TOLERANCE_NS else None

    def _measure(self, now: int) -> None:
        """Read both clocks together, undisturbed."""
        best = None
        for _ in range(_TRIES):
            before = self._monotonic_ns()
            real = self._realtime_ns()
            bracket = self._monotonic_ns() - before
            if best is None or bracket < best:
                best, self._offset = bracket, real - before - bracket // 2
            if bracket <= _BRACKET_NS:
                break
        self._measured_at = now
