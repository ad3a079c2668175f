"""One cell over several workers: every request keeps its place, its time and its bytes; only who sends it changes."""

from __future__ import annotations

from dataclasses import replace

from harness.load.cell import CellPlan
from workloads.request import Load, RequestSpec


def split_plan(plan: CellPlan, workers: int) -> list[CellPlan]:
    """The cell's parts, one a worker that has something to do.

    Conversations are dealt out in turn and stay whole.  Planned times are those of the one schedule, so all workers
    together send exactly what one would have sent.  In a closed loop the requests in flight are shared out evenly.
    """
    if plan.load.concurrency is not None:
        workers = min(workers, plan.load.concurrency)
    owner: dict[int, int] = {}
    arrivals: list[list[int]] = [[] for _ in range(workers)]
    parts: list[tuple[list[RequestSpec], list[RequestSpec]]] = [([], []) for _ in range(workers)]
    turn = 0
    for position, spec in enumerate((*plan.warmup, *plan.requests)):
        if spec.after is None:
            worker = turn % workers
            if plan.arrivals_ns is not None:
                arrivals[worker].append(plan.arrivals_ns[turn])
            turn += 1
        else:
            worker = owner[spec.after]
        owner[spec.index] = worker
        parts[worker][position >= len(plan.warmup)].append(spec)
    return [
        replace(
            plan,
            load=_share(plan, workers, worker),
            warmup=tuple(warmup),
            requests=tuple(requests),
            arrivals_ns=None if plan.arrivals_ns is None else tuple(arrivals[worker]),
        )
        for worker, (warmup, requests) in enumerate(parts)
        if warmup or requests
    ]


def _share(plan: CellPlan, workers: int, worker: int) -> Load:
    if plan.load.concurrency is None:
        return plan.load
    whole, rest = divmod(plan.load.concurrency, workers)
    return replace(plan.load, concurrency=whole + (worker < rest))
