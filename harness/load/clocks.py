"""Clocks of other machines, told in ours.

Monotonic clocks begin at a machine's start, so those of two machines differ by hours.  The offset is measured as NTP does
(RFC 5905, section 8): our clock before and after asking, theirs in between; of many askings the shortest is the best::

    ours     before --------- middle --------- after          offset = theirs - middle
    theirs                    theirs                           it is off by at most (after - before) / 2

Workers on this machine (the same boot) read the very same clock: their offset is 0, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ASKINGS = 20
# The columns of each table that hold a time of the client's.
TIME_COLUMNS: dict[str, tuple[str, ...]] = {
    "requests": ("t_sched", "t_ready", "t_send", "t_first", "t_last", "t_done"),
    "chunks": ("t",),
    "system": ("t",),
    "metrics": ("t",),
    "answers": (),
}


@dataclass(frozen=True, slots=True)
class Offset:
    """Their clock minus ours, and by how much that may be wrong, ns."""

    ns: int
    uncertainty_ns: int


def boot_id() -> str | None:
    """Names this start of this machine; None where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def measure_offset(ask: Callable[[], int], now: Callable[[], int], askings: int = ASKINGS) -> Offset:
    """``ask()`` gives their clock, ``now()`` ours."""
    best: tuple[int, int] | None = None
    for _ in range(askings):
        before = now()
        theirs = ask()
        after = now()
        if best is None or after - before < best[0]:
            best = (after - before, theirs - (before + after) // 2)
    assert best is not None
    return Offset(best[1], best[0] // 2)


def in_our_time(table: str, rows: Iterable[Mapping[str, Any]], offset_ns: int) -> list[dict[str, Any]]:
    """Rows with their times moved to our clock; what is null stays null."""
    columns = TIME_COLUMNS[table]
    moved = []
    for row in rows:
        copy = dict(row)
        for column in columns:
            if copy.get(column) is not None:
                copy[column] -= offset_ns
        moved.append(copy)
    return moved
