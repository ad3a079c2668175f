"""Memory and CPU of processes: the server's, where we know them, and our own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psutil

Row = dict[str, Any]
# PSS makes the kernel walk the page tables; at this period the walk of some GiB stays below 1 % of a core.
PSS_PERIOD_NS = 5_000_000_000


class ProcessSampler:
    """Rows for the processes that ``pids()`` names at each call (engines come and go with their workers).

    A process that ended or may not be read gives no row.  ``cpu_percent`` is of one core since the last sample and null
    (no row) at the first.
    """

    def __init__(self, pids: Callable[[], Sequence[int]], source: str = "process") -> None:
        self._pids = pids
        self._source = source
        self._known: dict[int, psutil.Process] = {}
        self._cpu: dict[int, tuple[int, float]] = {}
        self._next_pss = 0

    def sample(self) -> Iterable[Row]:
        now = time.monotonic_ns()
        with_pss = now >= self._next_pss
        if with_pss:
            self._next_pss = now + PSS_PERIOD_NS
        rows: list[Row] = []
        for pid in self._pids():
            try:
                process = self._known.get(pid) or self._known.setdefault(pid, psutil.Process(pid))
                with process.oneshot():
                    rows.append(self._row(now, pid, "rss_bytes", float(process.memory_info().rss)))
                    times = process.cpu_times()
                    used = times.user + times.system
                if pid in self._cpu:
                    t, before = self._cpu[pid]
                    if now > t:
                        rows.append(self._row(now, pid, "cpu_percent", 100 * (used - before) / ((now - t) / 1e9)))
                self._cpu[pid] = (now, used)
                pss = getattr(process.memory_full_info(), "pss", None) if with_pss else None
                if pss is not None:
                    rows.append(self._row(now, pid, "pss_bytes", float(pss)))
            except (psutil.Error, OSError):
                self._known.pop(pid, None)
                self._cpu.pop(pid, None)
        return rows

    def _row(self, t: int, pid: int, name: str, value: float) -> Row:
        return {"t": t, "source": self._source, "name": name, "label": str(pid), "value": value}
