"""Callbacks at exact moments.

An event loop's own timers count whole milliseconds (epoll's timeout does).  Linux has ``timerfd``: a descriptor that
becomes readable at a monotonic time given in nanoseconds.  One of them, set to the earliest alarm, wakes the loop
within some 0.05 ms and costs nothing while it waits.  Elsewhere the loop's timers have to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import heapq
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

monotonic_ns = time.monotonic_ns

NS_PER_S = 1_000_000_000
_TFD_NONBLOCK_CLOEXEC = 0o2004000
_TFD_ABSTIME = 1


class _ITimerSpec(ctypes.Structure):
    _fields_ = [
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    ]


class TimerFd:
    """One kernel timer on the monotonic clock.  Raises OSError where the system has none."""

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("timerfd is a part of Linux")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._spec = _ITimerSpec()
        self._reference = ctypes.byref(self._spec)

    def set(self, t_ns: int) -> None:
        """Become readable at the monotonic time ``t_ns``, at once when it is past."""
        self._spec.value_s, self._spec.value_ns = divmod(max(1, t_ns), NS_PER_S)
        self._libc.timerfd_settime(self.fd, _TFD_ABSTIME, self._reference, None)

    def acknowledge(self) -> None:
        """Take note that it rang."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        os.close(self.fd)


class Alarm:
    """One callback to come; ``cancel()`` takes it back."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object] | None) -> None:
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None


class Alarms:
    """Many alarms over one timer, served by the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[int, int, Alarm]] = []
        self._order = itertools.count()
        self._armed: int | None = None
        self._handle: asyncio.TimerHandle | None = None
        try:
            self._timer: TimerFd | None = TimerFd()
        except OSError:
            self._timer = None
        else:
            self._loop.add_reader(self._timer.fd, self._rang)

    def call_at(self, t_ns: int, callback: Callable[[], object]) -> Alarm:
        """Call ``callback()`` at or just after the monotonic time ``t_ns``."""
        alarm = Alarm(callback)
        heapq.heappush(self._heap, (t_ns, next(self._order), alarm))
        if self._armed is None or t_ns < self._armed:
            self._arm(t_ns)
        return alarm

    async def sleep_until(self, t_ns: int) -> None:
        """Return at or just after ``t_ns``; at once when it is past."""
        if t_ns > monotonic_ns():
            waiter: asyncio.Future[None] = self._loop.create_future()
            alarm = self.call_at(t_ns, lambda: None if waiter.done() else waiter.set_result(None))
            try:
                await waiter
            finally:
                alarm.cancel()

    def close(self) -> None:
        """Forget every alarm."""
        self._heap.clear()
        if self._timer is not None:
            self._loop.remove_reader(self._timer.fd)
            self._timer.close()
            self._timer = None
        if self._handle is not None:
            self._handle.cancel()

    def _arm(self, t_ns: int) -> None:
        self._armed = t_ns
        if self._timer is not None:
            self._timer.set(t_ns)
            return
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_later(max(0.0, (t_ns - monotonic_ns()) / NS_PER_S), self._rang)

    def _rang(self) -> Any:
        if self._timer is not None:
            self._timer.acknowledge()
        self._armed = None
        heap, now = self._heap, monotonic_ns()
        while heap and heap[0][0] <= now:
            callback = heapq.heappop(heap)[2].callback
            if callback is not None:
                callback()
        if heap and (self._armed is None or heap[0][0] < self._armed):
            self._arm(heap[0][0])
