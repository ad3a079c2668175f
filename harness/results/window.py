"""The stretch of a cell over which its rates are counted: while the load was up, after the warm-up.

The **measured window** runs from the first measured request to the moment from which the load could no longer be kept
up.  With planned arrivals that is the last of them.  In a closed loop a slot holds one conversation (one request, where
there are no turns), and an end that another conversation follows is part of the load: of K conversations over c slots
the first K - c ends are followed by another, and with the next one the load begins to drain.  Counting conversations
keeps two things apart: a drain as planned is no missing load, and a client that is slow to follow shortens no window.

Where there is no such stretch worth the name (fewer than two requests or conversations a slot, or arrivals over less
than half of the cell), the window is the whole cell.
"""

from __future__ import annotations

import numpy as np

from harness.results.cells import CellData
from harness.results.series import Floats
from harness.results.steady import steady_start

ROUNDS_FOR_A_WINDOW = 2
STEADY_BIN_NS = 250_000_000


def measured_window(data: CellData) -> tuple[int, int] | None:
    """Start and end in ns (see the top of this file), or None when nothing was sent."""
    send = data.column("t_send")
    sent = data.measured & ~np.isnan(send)
    if not sent.any():
        return None
    start, last_send = float(send[sent].min()), float(send[sent].max())
    done = data.column("t_done")[sent]
    end = float(np.nanmax(done)) if not np.isnan(done).all() else last_send
    if data.info.load.concurrency is None:
        loaded_end = last_send if last_send - start >= (end - start) / 2 else end
    else:
        drain = drain_start(data)
        loaded_end = end if drain is None or drain <= start else min(drain, end)
    return round(start), max(round(start) + 1, round(loaded_end))


def steady_window(data: CellData, loaded: tuple[int, int] | None) -> tuple[int, int] | None:
    """The part of ``loaded`` after the warm-up; all of it where none can be told."""
    if loaded is None:
        return None
    start = steady_start(data.chunk_t, data.chunk_tokens, loaded, STEADY_BIN_NS)
    return loaded if start is None else (start, loaded[1])


def drain_start(data: CellData) -> float | None:
    """When (ns) the first slot of a closed loop had no conversation left to take.

    None for planned arrivals, and where fewer than two measured conversations came to a slot.
    """
    concurrency = data.info.load.concurrency
    if concurrency is None:
        return None
    send, done = data.column("t_send"), data.column("t_done")
    sent = ~np.isnan(send)
    slots = _slots(data)
    if np.unique(slots[sent & data.measured]).size < ROUNDS_FOR_A_WINDOW * concurrency:
        return None
    _, group = np.unique(slots[sent], return_inverse=True)
    ends = np.full(group.max() + 1, -np.inf)
    # A request without an end (the run was cut) never freed its slot.
    np.maximum.at(ends, group, np.where(np.isnan(done[sent]), np.inf, done[sent]))
    ends.sort()
    first_unfollowed = float(ends[ends.size - concurrency])
    return first_unfollowed if np.isfinite(first_unfollowed) else None


def _slots(data: CellData) -> Floats:
    """For each request a number that it shares with the other turns of its conversation only.

    Warm-up conversations are numbered from 0 as the measured ones are: theirs become odd, the measured ones' even, and
    lone requests negative.
    """
    conversation = data.column("conversation")
    return np.where(np.isnan(conversation), -1.0 - np.arange(conversation.size), 2 * conversation + ~data.measured)
