"""A thread that does one thing at fixed moments, off the load loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Periodic:
    """Calls ``work`` every ``period_s`` seconds on a thread of its own, first at once, last when it is stopped.

    Moments are absolute: work that takes long skips the moments it overran and never shifts the others.  An exception
    that ``work`` lets out ends the thread; ``error`` then holds it.
    """

    def __init__(self, name: str, period_s: float, work: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self._period_s = period_s
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread after the work in hand and one last sample."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        start, ticks = time.monotonic(), 0
        try:
            while True:
                self._work()
                ticks = max(ticks + 1, int((time.monotonic() - start) / self._period_s) + 1)
                if self._stop.wait(start + ticks * self._period_s - time.monotonic()):
                    break
            self._work()
        except Exception as error:
            self.error = error
