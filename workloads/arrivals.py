"""Arrival times, computed before the first byte is sent.

One generator and one running sum: times are absolute offsets from the start, so lateness of one send never moves
another, and the realised rate is left to chance (no rescaling), as a Poisson process has it.
"""

from __future__ import annotations

import math
from random import Random

from workloads.request import WorkloadError

NS_PER_S = 1_000_000_000


def poisson_arrivals(
    rate: float, seed: int, *, count: int | None = None, duration_s: float | None = None
) -> tuple[int, ...]:
    """Arrival offsets in ns of a Poisson process of ``rate`` requests/s.

    The first ``count`` of them or all within ``duration_s``; with both given, whichever
    ends first.  The gaps are independent exponentials, the first one included.
    """
    if count is None and duration_s is None:
        raise WorkloadError("Poisson arrivals need an end: give a number of requests or a duration")
    random = Random(f"arrivals/{seed}")
    end = math.inf if duration_s is None else duration_s
    times: list[int] = []
    now = 0.0
    while count is None or len(times) < count:
        now -= math.log(1.0 - random.random()) / rate
        if now >= end:
            break
        times.append(round(now * NS_PER_S))
    return tuple(times)
