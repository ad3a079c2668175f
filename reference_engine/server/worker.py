"""The one thread that does arithmetic: it builds the engine, then runs it.

OpenMP keeps a team of workers for every thread that ever computed in parallel.  libgomp lets idle workers spin for a moment
before they sleep, but only while there are no more of them than processors.  A model loaded in one thread and run in another
makes two teams, and each of a step's hundreds of parallel regions then waits for a sleeping worker to be woken: on two cores
54 ms a decode step instead of 36.  So whatever computes does so here.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class EngineThread:
    """Carries out what it is given, one job after the other, in a daemon thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def call(self, job: Callable[[], Result]) -> Result:
        """Do ``job`` on the thread and wait for it; its result, or its exception."""
        return self.start(job).result()

    def start(self, job: Callable[[], Result]) -> Future[Result]:
        """Do ``job`` on the thread after what it was given before."""
        future: Future[Result] = Future()
        self._jobs.put((job, future))
        return future

    def join(self, timeout: float) -> None:
        """Let the thread end when its jobs are done; wait for that at most ``timeout`` seconds."""
        self._jobs.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, future = entry
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
