"""What a round of simultaneous requests looked like from outside: when each token came, and where a stream stood still.

::

    stream a   P===|.............................|......    P: prompt known, = waiting, . a token, | one finished
    stream b   P====|......................              <- its last token before the pool was full
                                          ^^^^^^^^^^^^ stands still while a goes on: preempted
    stream c   P=======================================|.   first token only after another one left: it had to wait

Times are monotonic ns.  A stream that stands still while no other moves either (a long prefill step, a busy machine) is
not preempted.  After such a pause the bytes of all streams are read one stream after the other: tokens that come in
one burst show no more progress than one token does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

STALL_STEPS = 8  # so many times the usual gap, and so many tokens of another stream, make a gap a preemption
PAUSE_STEPS = 3  # so many already leave open whether the stream still holds its memory


@dataclass(slots=True)
class Stream:
    """One request.  ``tokens[i]`` is the moment at which output token ``i`` came."""

    prompt_tokens: int
    t_send: int
    tokens: list[int] = field(default_factory=list)
    t_end: int | None = None  # of the answer or of the failure; None while it goes on
    finished: bool = False  # the answer came to its end
    failure: str | None = None  # the server refused or broke off

    @property
    def t_first(self) -> int | None:
        return self.tokens[0] if self.tokens else None


@dataclass(frozen=True, slots=True)
class Stall:
    """A stretch in which a stream held no memory.  ``end`` is None when it had not gone on by the end of the round."""

    start: int  # its last token before
    end: int | None


def usual_gap(streams: Sequence[Stream]) -> float:
    """Median time between two arrivals of a stream (of one token or of several), over all, ns; infinite without any."""
    gaps = [b - a for stream in streams for a, b in pairwise(stream.tokens) if b > a]
    return float(median(gaps)) if gaps else float("inf")


def stalls(stream: Stream, others: Sequence[Stream], gap: float, now: int, steps: int = STALL_STEPS) -> list[Stall]:
    """Where ``stream`` stood still for ``steps`` while another went on.  ``now`` is the end of the observation."""
    found = []
    marks = [*stream.tokens, *([] if stream.t_end is not None else [now])]
    for before, after in pairwise(marks):
        if after - before <= (steps - 0.5) * gap:
            continue
        if any(_moves(other.tokens, before, after, gap, steps) for other in others if other is not stream):
            is_over = after is not now or stream.t_end is not None
            found.append(Stall(before, after if is_over else None))
    if stream.failure is not None and stream.tokens:
        # Broken off by the server in the middle: it held memory until then.
        found.append(Stall(stream.tokens[-1], None))
    return found


def had_to_wait(stream: Stream, others: Sequence[Stream], now: int) -> bool:
    """Whether its first token came only after another stream had finished."""
    first = stream.t_first if stream.t_first is not None else now
    ends = [other.t_end for other in others if other is not stream and other.finished and other.t_end is not None]
    return any(stream.t_send < end < first for end in ends)


def _moves(times: Sequence[int], start: int, end: int, gap: float, steps: int) -> bool:
    """Whether at least ``steps`` tokens came between, each half a usual gap or more after the one before."""
    last = float(start)
    for _ in range(steps):
        position = bisect_left(times, last + gap / 2)
        if position == len(times) or times[position] >= end:
            return False
        last = times[position]
    return True
