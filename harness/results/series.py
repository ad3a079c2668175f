"""Sampled values over time: a sample holds until the next one, so means are weighted by time and not by samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of one quantity: ``t`` in monotonic ns, ascending, and ``v`` of the same length."""

    t: Ints
    v: Floats

    def within(self, start: int, end: int) -> Series:
        """The samples of the window, begun by the one that holds at its start, if there is one."""
        first = max(0, int(np.searchsorted(self.t, start, side="right")) - 1)
        last = int(np.searchsorted(self.t, end, side="right"))
        t = np.maximum(self.t[first:last], start)
        return Series(t, self.v[first:last])

    def mean(self, start: int, end: int) -> float | None:
        """Time-weighted mean over the window from its first sample on, or None when it has none."""
        part = self.within(start, end)
        if part.t.size == 0 or part.t[0] >= end:
            return None
        spans = np.diff(np.append(part.t, end)).astype(np.float64)
        total = float(spans.sum())
        # Weights first: a value near the end of the number range times nanoseconds would leave it.
        return float((part.v * (spans / total)).sum()) if total > 0 else None

    def maximum(self, start: int, end: int) -> float | None:
        part = self.within(start, end)
        return float(part.v.max()) if part.v.size else None

    def increase(self, start: int, end: int) -> float | None:
        """How much a counter grew over the window.  A fall means that the server restarted: counting goes on from 0."""
        part = self.within(start, end)
        if part.v.size < 2:
            return None
        steps = np.diff(part.v)
        return float(np.where(steps >= 0, steps, part.v[1:]).sum())

    def largest_gap(self, start: int, end: int) -> int:
        """The longest time in the window without a sample, ns."""
        inside = self.t[(self.t >= start) & (self.t <= end)]
        return int(np.diff(np.concatenate(([start], inside, [end]))).max())
