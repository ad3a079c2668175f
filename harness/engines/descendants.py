"""The processes that belong to one: itself and all that came from it.

They are asked for while an engine is measured.  To look at every process of a busy machine costs tens of milliseconds;
Linux keeps the children of each thread in a file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants, parents first, without zombies; empty if it is gone."""
    if not Path(f"/proc/{pid}/task/{pid}/children").exists():  # another system, a kernel without it, or gone
        return walked(pid)
    found, at = [pid], 0
    while at < len(found):
        found += children(found[at])
        at += 1
    return [member for member in found if is_alive(member)]


def children(pid: int) -> list[int]:
    """Of all threads of ``pid``."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        # The name in parentheses may hold anything, parentheses and spaces too.
        return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    return False


def walked(pid: int) -> list[int]:
    """The same from the parents of all processes that there are."""
    try:
        root = psutil.Process(pid)
        members = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    alive = []
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            if member.status() != psutil.STATUS_ZOMBIE:
                alive.append(member.pid)
    return alive
