"""Which answers of a loaded cell are kept, so that they can be judged once the engine is idle."""

from __future__ import annotations

from random import Random

from harness.load.schedule import Schedule
from workloads.request import RequestSpec

# A cell that ends by time sends only the beginning of its pool; keeping more of it leaves enough to draw from.
POOL_FACTOR = 16


def kept_indices(schedule: Schedule, answers: int, seed: int) -> frozenset[int]:
    """Indices of about ``answers`` greedy requests drawn over the whole cell, the same ones for every engine.

    Requests that sample, ask for several answers or hang up have no one right answer and are left out.
    """
    greedy = [request.index for request in schedule.requests if is_greedy(request)]
    wanted = min(len(greedy), answers * (POOL_FACTOR if schedule.is_pool else 1))
    return frozenset(Random(f"{seed} {schedule.key} keep").sample(greedy, wanted))


def is_greedy(request: RequestSpec) -> bool:
    return request.sampling.temperature == 0 and request.n == 1 and request.cancel_after_s is None
