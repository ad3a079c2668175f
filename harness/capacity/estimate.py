"""KV capacity from what rounds of requests showed.

An engine that **pages** runs until the pool is full and then preempts: the most that running sequences were seen to
hold, each rounded up to whole blocks, is the capacity.  The block size is not known from outside; with the right one,
rounds of few long and of many short sequences agree, with a wrong one the shorter sequences' larger tails show.

An engine that **reserves** room for a whole request before it starts never preempts, it lets requests wait::

    n ran at once, the next had to wait:    n x (prompt + output) <= capacity < (n + 1) x (prompt + output)

so that rounds of different sizes close in on the capacity from both sides.  Where the same number runs at once whatever
the size, the engine is limited by its **slots** and the pool is only known to hold at least what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from harness.capacity.streams import PAUSE_STEPS, Stream, had_to_wait, stalls, usual_gap

Limit = Literal["preemption", "reservation", "slots", "none"]
BLOCK_SIZES = (1, 8, 16, 32, 64, 128, 256)
# Numbers at once that vary less than this between sizes do not show a pool.
SAME = 0.15
ABOUT_AS_WELL = 0.005
UNTOLD_BLOCK = 16  # tokens; engines' usual block


@dataclass(frozen=True, slots=True)
class Round:
    """One round: ``n`` requests of ``prompt`` and at most ``output`` tokens, sent together."""

    prompt: int
    output: int
    streams: tuple[Stream, ...]
    now: int  # end of the observation, monotonic ns

    @property
    def total(self) -> float:
        """Tokens of a whole request, on average."""
        return self.output + sum(stream.prompt_tokens for stream in self.streams) / max(1, len(self.streams))


@dataclass(frozen=True, slots=True)
class Seen:
    """What a round showed."""

    preempted: int  # streams that stood still or were broken off
    waited: int
    at_once: int  # most streams that ran at the same time
    held: dict[int, int]  # block size -> most tokens held at once, in whole blocks


@dataclass(frozen=True, slots=True)
class Capacity:
    """The answer.  ``tokens`` is null when the pool was not filled; ``low`` to ``high`` is what all rounds allow."""

    limit: Limit
    tokens: int | None
    low: int
    high: int | None
    block_size: int | None = None


def look_at(round_: Round) -> Seen:
    """Reduce a round to what the estimate needs."""
    gap = usual_gap(round_.streams)
    intervals: list[tuple[int, int, int, list[int]]] = []  # from, to (excluded), prompt, token times
    preempted = waited = 0
    unsure: list[tuple[int, int]] = []  # around a preemption: who had got the step's token by then is not known
    for stream in round_.streams:
        preempted += bool(stalls(stream, round_.streams, gap, round_.now))
        found = stalls(stream, round_.streams, gap, round_.now, PAUSE_STEPS)
        waited += had_to_wait(stream, round_.streams, round_.now)
        start = stream.t_first
        if start is None:
            continue
        for stall in found:
            unsure.append((round(stall.start - gap), round(stall.start + gap)))
            if start < stall.start:
                intervals.append((start, stall.start, stream.prompt_tokens, stream.tokens))
            start = stall.end if stall.end is not None else round_.now
        end = stream.t_end if stream.t_end is not None else round_.now
        if start < end:
            intervals.append((start, end, stream.prompt_tokens, stream.tokens))
    return Seen(preempted, waited, *_most(intervals, unsure))


def _most(
    intervals: Sequence[tuple[int, int, int, list[int]]], unsure: Sequence[tuple[int, int]]
) -> tuple[int, dict[int, int]]:
    """Most streams at once and, for each block size, most tokens held at once outside of the ``unsure`` stretches.

    A sweep over all events in order.
    """
    events: list[tuple[int, int, int]] = []  # time, kind (0: ends, 1: begins, 2: a token), interval
    for number, (start, end, _, tokens) in enumerate(intervals):
        events += ((start, 1, number), (end, 0, number))
        events += ((t, 2, number) for t in tokens if start < t < end)
    events.sort()
    lengths: dict[int, int] = {}
    held = dict.fromkeys(BLOCK_SIZES, 0)
    most = dict.fromkeys(BLOCK_SIZES, 0)
    at_once = 0
    for time, kind, number in events:
        before = lengths.get(number, 0)
        if kind == 0:
            lengths.pop(number, None)
            after = 0
        elif kind == 1:
            _, _, prompt, tokens = intervals[number]
            after = lengths[number] = prompt + sum(t <= time for t in tokens)
        elif number in lengths:
            after = lengths[number] = before + 1
        else:
            continue
        at_once = max(at_once, len(lengths))
        is_sure = not any(start <= time <= end for start, end in unsure)
        for block in BLOCK_SIZES:
            held[block] += block * (-(-after // block) - -(-before // block))
            if is_sure:
                most[block] = max(most[block], held[block])
    return at_once, most


def estimate(rounds: Sequence[Round]) -> Capacity:
    """The capacity that all rounds together show."""
    seen = [look_at(round_) for round_ in rounds]
    floor = max((one.held[1] for one in seen), default=0)
    full = [one for one in seen if one.preempted]
    if full:
        block = best_block_size(full)
        values = sorted(one.held[block] for one in full)
        return Capacity("preemption", round(median(values)), values[0], values[-1], block)
    waiting = [(one, round_) for one, round_ in zip(seen, rounds, strict=True) if one.waited]
    if not waiting:
        return Capacity("none", None, floor, None)
    counts = [one.at_once for one, _ in waiting]
    sizes = [round_.total for _, round_ in waiting]
    if max(counts) - min(counts) <= max(1, SAME * max(counts)):
        return Capacity("slots", None, floor, None)
    return closest_bounds(counts, sizes)


def closest_bounds(counts: Sequence[int], sizes: Sequence[float]) -> Capacity:
    """What a reserving pool holds, by the smallest block size under which numbers at once and sizes agree best.

    Reservations are rounded up to blocks whose size nobody told: where the bounds agree without rounding, they still
    leave room for the tails of blocks as large as ``UNTOLD_BLOCK``, so ``high`` covers those, too.
    """

    def bounds(block: int) -> tuple[int, int]:
        whole = [block * math.ceil(size / block) for size in sizes]
        low = max(n * size for n, size in zip(counts, whole, strict=True))
        return low, min((n + 1) * size for n, size in zip(counts, whole, strict=True))

    best = (0, 0, 1)
    gap = float("inf")
    for block in BLOCK_SIZES:
        low, high = bounds(block)
        if low - high < gap and gap > 0:
            gap, best = low - high, (min(low, high), max(low, high), block)
    low, high, block = best
    return Capacity("reservation", (low + high) // 2, low, max(high, bounds(UNTOLD_BLOCK)[1]), block)


def best_block_size(seen: Sequence[Seen]) -> int:
    """The block size under which full rounds agree best; the smallest of those that do about as well.

    Sizes that cannot be told apart so give about the same capacity, too.
    """

    def spread(block: int) -> float:
        values = [one.held[block] for one in seen]
        return (max(values) - min(values)) / max(values)

    least = min(spread(block) for block in BLOCK_SIZES)
    return min(block for block in BLOCK_SIZES if spread(block) <= least + ABOUT_AS_WELL)
