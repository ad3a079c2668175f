"""How much of the machine other processes used during a run.

Only processes that were there before the run began are counted, so an engine that the run starts is never foreign,
however it manages its workers.
"""

from __future__ import annotations

import os
import time

import psutil


class ForeignLoad:
    """Measures from construction to :meth:`reason`.  CPU seconds by process, of all that this user may see."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._before = _cpu_by_process()

    def reason(self, limit: float) -> str | None:
        """A sentence when others used more than ``limit`` of the machine's CPU time, else None."""
        seconds = max(1e-9, time.monotonic() - self._start)
        cores = psutil.cpu_count() or 1
        used: dict[tuple[int, float], float] = {}
        for key, now in _cpu_by_process().items():
            before = self._before.get(key)
            if before is not None and key[0] != os.getpid():
                used[key] = now - before
        share = sum(used.values()) / seconds / cores
        if share <= limit:
            return None
        pid = max(used, key=lambda key: used[key])[0]
        return f"other processes used {share:.0%} of the machine, most of it {_name(pid)} (pid {pid})"


def _cpu_by_process() -> dict[tuple[int, float], float]:
    """(pid, start time) -> CPU seconds so far."""
    found = {}
    for process in psutil.process_iter(["pid", "create_time", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None:
            found[(process.info["pid"], process.info["create_time"] or 0.0)] = times.user + times.system
    return found


def _name(pid: int) -> str:
    try:
        return repr(psutil.Process(pid).name())
    except psutil.Error:
        return "a process"
