"""How much of the machine's CPU time went to others while an engine ran on it: other processes, and other guests.

The kernel counts what all CPUs did; what our own processes used is taken off.  So a process counts however short it
lives, which a walk over the processes that are there would miss.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psutil

from harness.telemetry.process import Row


class ForeignSampler:
    """Rows ``machine/foreign_cpu_percent`` and ``machine/stolen_cpu_percent``: shares of the CPUs that ours may use.

    ``ours()``: the process ids of the harness and of the engine, at each call; the others are foreign.  Stolen is what
    the hypervisor gave to other guests (Linux).  Both hold from their row's ``t`` on, until the moment of the sample
    that gave them; the first sample gives none.
    """

    def __init__(self, ours: Callable[[], Sequence[int]]) -> None:
        self._ours = ours
        self._last: tuple[int, dict[int, Any], dict[int, float]] | None = None

    def sample(self) -> Iterable[Row]:
        now = time.monotonic_ns()
        used, cpus = self._use()
        machine = dict(enumerate(psutil.cpu_times(percpu=True)))
        last, self._last = self._last, (now, machine, used)
        if last is None:
            return []
        since, before, used_before = last
        seconds = (now - since) / 1e9 * len(cpus)
        if seconds <= 0:
            return []
        busy = sum(_busy(machine[cpu]) - _busy(before[cpu]) for cpu in cpus if cpu in before and cpu in machine)
        stolen = sum(_stolen(machine[cpu]) - _stolen(before[cpu]) for cpu in cpus if cpu in before and cpu in machine)
        # A process that came since then has used all of its time since then.
        own = sum(value - used_before.get(pid, 0.0) for pid, value in used.items())
        shares = {"foreign_cpu_percent": busy - own, "stolen_cpu_percent": stolen}
        return [
            {
                "t": since,
                "source": "machine",
                "name": name,
                "label": "",
                "value": 100 * min(1.0, max(0.0, value / seconds)),
            }
            for name, value in shares.items()
        ]

    def _use(self) -> tuple[dict[int, float], set[int]]:
        """CPU seconds of each of our processes, and the CPUs that one of them may use."""
        used: dict[int, float] = {}
        cpus: set[int] = set()
        for pid in self._ours():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                times = process.cpu_times()
                used[pid] = times.user + times.system
                if hasattr(process, "cpu_affinity"):
                    cpus.update(process.cpu_affinity())
        return used, cpus or set(range(os.cpu_count() or 1))


def _busy(times: Any) -> float:
    """Seconds in which the CPU worked.  ``guest`` time is part of ``user`` already."""
    parts = ("user", "nice", "system", "irq", "softirq")
    return float(sum(getattr(times, part, 0.0) for part in parts))


def _stolen(times: Any) -> float:
    return float(getattr(times, "steal", 0.0))
