"""Sequences that wait to be admitted, most urgent first, and the rule that none of them starves.

A sequence's rank is ``(0, 0, arrival, index)`` once promoted, else ``(1, priority, arrival, index)``; smaller goes
first.  ``arrival`` counts requests in the order they came, ``index`` is the continuation's index within the request.
Under FCFS every priority counts as 0, so ranks are arrival order.

Strict priorities starve the least urgent.  Two rules bound that:

* the sequence that arrived first among those waiting is promoted after ``OVERTAKE_LIMIT`` admissions in a row went to
  others;
* a sequence that lost its blocks ``PREEMPTION_LIMIT`` times to sequences that arrived later is promoted.

Only older promoted sequences outrank a promoted one, and it stays promoted until it ends.  So the oldest unfinished
sequence waits for at most ``OVERTAKE_LIMIT`` admissions at a time and starts over at most ``PREEMPTION_LIMIT`` times;
after that nothing can delay it.  It ends, then the next oldest does, however many urgent requests keep coming.
Among equal priorities nobody is overtaken, so nobody is promoted: FCFS stays strictly in order.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from reference_engine.request import Sequence

OVERTAKE_LIMIT = 64
PREEMPTION_LIMIT = 8

Rank = tuple[int, int, int, int]


@dataclass(slots=True, eq=False)
class Entry:
    """What the scheduler remembers of an unfinished sequence beside its three counters."""

    sequence: Sequence
    arrival: int
    priority: int
    continuations: int = 1  # sequences this one stands for: n until the n continuations have forked, then 1
    promoted: bool = False
    losses: int = 0  # how often it lost its blocks to a sequence that arrived later
    running: bool = False
    parked: bool = (
        False  # a beam whose next token is being chosen: nothing to compute, and not queued if it lost its blocks
    )
    admitted: bool = False  # at least once
    most_computed: int = 0  # highest `computed` ever reached; below it, work is being repeated
    rows_returned: int = 0  # prompt positions whose logits were computed, when prompt logprobs are asked for

    @property
    def rank(self) -> Rank:
        index = self.sequence.index
        return (0, 0, self.arrival, index) if self.promoted else (1, self.priority, self.arrival, index)

    @property
    def age(self) -> tuple[int, int]:
        return self.arrival, self.sequence.index

    def may_displace(self, other: Entry) -> bool:
        """Whether it may take a running sequence's place to be admitted: by priority alone.  Having come earlier is no
        reason, nor is a promotion; a promoted sequence is first in the queue for what others give back.
        """
        return self.priority < other.priority and not other.promoted


def _rank(entry: Entry) -> Rank:
    return entry.rank


def _age(entry: Entry) -> tuple[int, int]:
    return entry.age


class RankedList:
    """Entries sorted by rank.  Ranks are unique and do not change while an entry is in the list."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def snapshot(self) -> tuple[Entry, ...]:
        """The entries now, most urgent first; safe to walk while the list changes."""
        return tuple(self._entries)

    def last(self) -> Entry:
        return self._entries[-1]

    def first(self) -> Entry:
        return self._entries[0]

    def add(self, entry: Entry) -> None:
        insort(self._entries, entry, key=_rank)

    def remove(self, entry: Entry) -> None:
        del self._entries[bisect_left(self._entries, entry.rank, key=_rank)]


class WaitingQueue:
    """The queue before admission.  ``head`` is whom to admit next; nobody behind it may pass when it does not fit."""

    def __init__(self) -> None:
        self._by_rank = RankedList()
        self._by_age: list[Entry] = []
        self._overtakes = 0  # admissions in a row that did not go to the oldest

    def __len__(self) -> int:
        return len(self._by_age)

    def push(self, entry: Entry) -> None:
        """Queue a new sequence or one that lost its blocks; the latter stands at its old place in arrival order."""
        if entry.losses >= PREEMPTION_LIMIT:
            entry.promoted = True
        self._by_rank.add(entry)
        insort(self._by_age, entry, key=_age)

    def head(self) -> Entry | None:
        return self._by_rank.first() if self._by_age else None

    def remove(self, entry: Entry) -> None:
        """Take an entry out without admitting it."""
        self._by_rank.remove(entry)
        del self._by_age[bisect_left(self._by_age, entry.age, key=_age)]

    def pop_admitted(self, entry: Entry) -> None:
        """Take out an entry that was admitted, and count the overtaking."""
        overtook = self._by_age[0] is not entry
        self.remove(entry)
        self._overtakes = self._overtakes + 1 if overtook else 0
        if self._overtakes >= OVERTAKE_LIMIT:
            self._overtakes = 0
            self._promote(self._by_age[0])

    def _promote(self, entry: Entry) -> None:
        self._by_rank.remove(entry)
        entry.promoted = True
        self._by_rank.add(entry)
