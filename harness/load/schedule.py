"""The schedules of a run: what every engine will be asked, built once, before any engine is measured."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from harness.load.plan import RunPlan, WorkloadAsked, workload_parameters
from harness.results.schema import LoadInfo, WorkloadInfo
from workloads.arrivals import arrivals_of, poisson_arrivals
from workloads.request import Load, RequestSpec, WorkloadError, digest
from workloads.tokens import TokenCounter
from workloads.workload import Workload, climbs, default_count, describe

# Requests of a closed loop when no number is given: enough rounds to see more than the first burst.
ROUNDS = 4
MIN_REQUESTS = 16
# With a duration and no number, the pool is made for this many requests/s; an engine that is faster runs dry and is
# told.
POOL_RATE = 20


@dataclass(frozen=True, slots=True)
class Schedule:
    """One (workload, load, repeat): the same for every engine."""

    key: str  # unique in the run; part of the cell ids
    workload: WorkloadInfo
    load: Load
    repeat: int
    warmup: tuple[RequestSpec, ...]
    requests: tuple[RequestSpec, ...]
    arrivals_ns: tuple[int, ...] | None  # warm-up included
    duration_s: float | None
    is_pool: bool  # the number of requests is a guess at what the duration takes

    @property
    def load_info(self) -> LoadInfo:
        return LoadInfo(**asdict(self.load))


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits from anything that has a stable text."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8]) >> 1


@dataclass(frozen=True, slots=True)
class Chapter:
    """One workload of the plan with its loads.  ``labels`` tell apart cells that would otherwise be called the same."""

    asked: WorkloadAsked
    workload: Workload
    loads: tuple[Load, ...]
    labels: tuple[str, ...]
    climbs: bool = False  # the loads are a staircase that ends beyond the knee

    def key(self, load: Load) -> str:
        """Name of the cells at ``load``, without the repeat."""
        if load in self.loads:
            return self.labels[self.loads.index(load)]
        return f"{self.workload.name}.{load.label}"


def chapters(plan: RunPlan) -> Iterator[Chapter]:
    """The workloads of a plan, in the order in which they run."""
    seen: dict[str, int] = {}
    for asked in plan.workloads:
        workload = asked.make()
        loads = plan.loads_of(workload)
        labels = []
        for load in loads:
            label = f"{workload.name}.{load.label}"
            seen[label] = seen.get(label, 0) + 1
            labels.append(label if seen[label] == 1 else f"{label}.{seen[label]}")
        yield Chapter(asked, workload, loads, tuple(labels), not plan.explicit_loads() and climbs(workload))


def build_schedules(plan: RunPlan, counter: TokenCounter, max_model_len: int | None) -> Iterator[Schedule]:
    """Every schedule of the plan, in the order in which its cells run.

    Raises :class:`workloads.request.WorkloadError` and :class:`workloads.tokens.CountError`.
    """
    for chapter in chapters(plan):
        for load in chapter.loads:
            number, is_pool = number_of_requests(plan, chapter.asked, load)
            for repeat in range(plan.repeats):
                key = f"{chapter.key(load)}.{repeat}"
                yield build_schedule(key, chapter.workload, load, repeat, number, is_pool, plan, counter, max_model_len)


def build_schedule(
    key: str,
    workload: Workload,
    load: Load,
    repeat: int,
    number: int | None,
    is_pool: bool,
    plan: RunPlan,
    counter: TokenCounter,
    max_model_len: int | None,
) -> Schedule:
    """One schedule of ``number`` requests (None: as many as arrive in the plan's duration).

    Repeats ask different things, so that none finds its prompts in a cache that the last one filled; warm-up prompts
    are new in every run, so that they warm no measured one.
    """
    seed = derive_seed(plan.seed, key)
    arrivals = arrivals_of(load, seed, count=number, duration_s=plan.duration)
    if arrivals is not None:
        number = len(arrivals)
    assert number is not None
    requests = workload.requests(number, seed, counter, max_model_len)
    if load.mode == "trace":
        arrivals = trace_arrivals(requests, workload.name)
    elif arrivals is not None:
        arrivals = arrivals[: sum(request.after is None for request in requests)]
    warmup: tuple[RequestSpec, ...] = ()
    if plan.warmup:
        salted = workload.requests(plan.warmup, secrets.randbits(62), counter, max_model_len)
        warmup = tuple(shift(request, -plan.warmup) for request in salted)
    info = WorkloadInfo(
        name=workload.name,
        parameters={
            **workload_parameters(workload),
            "schedule": {**describe(requests), "tokenizer": counter.name, "max_model_len": max_model_len},
        },
        seed=seed,
        digest=digest(requests, arrivals),
    )
    if arrivals is not None and warmup:
        arrivals = prepend_arrivals(warmup, arrivals, load)
    return Schedule(key, info, load, repeat, warmup, requests, arrivals, plan.duration, is_pool)


def number_of_requests(plan: RunPlan, asked: WorkloadAsked, load: Load) -> tuple[int | None, bool]:
    """How many requests to plan, None where the duration alone counts the arrivals; and whether that is a guess."""
    number = asked.num_requests or (None if asked.rounds else plan.num_requests)
    if number is not None:
        return number, False
    own = default_count(asked.make(), load)
    if own is not None and (plan.duration is None or load.mode == "trace") and asked.rounds is None:
        return own, False
    if load.concurrency is None:
        return (MIN_REQUESTS if plan.duration is None else None), False
    if asked.rounds is not None:
        return asked.rounds * load.concurrency, False
    rounds = max(MIN_REQUESTS, ROUNDS * load.concurrency)
    if plan.duration is None:
        return rounds, False
    return max(rounds, math.ceil(plan.duration * POOL_RATE)), True


def trace_arrivals(requests: tuple[RequestSpec, ...], workload: str) -> tuple[int, ...]:
    """The times that the workload itself brings, ascending."""
    times = [request.at_ns for request in requests if request.after is None]
    if any(time is None for time in times):
        raise WorkloadError(f"workload {workload} brings no arrival times; give --concurrency or --rate")
    return tuple(sorted(time for time in times if time is not None))


def shift(request: RequestSpec, by: int) -> RequestSpec:
    """The request with its index, and the indices that it refers to, moved."""
    after = None if request.after is None else request.after + by
    answers = tuple((position, index + by) for position, index in request.answers)
    return replace(request, index=request.index + by, after=after, answers=answers)


def prepend_arrivals(warmup: tuple[RequestSpec, ...], arrivals: tuple[int, ...], load: Load) -> tuple[int, ...]:
    """Arrivals of the warm-up at the same rate (that of the trace on average), and the measured ones after them."""
    first_turns = sum(request.after is None for request in warmup)
    span_s = max(1e-3, (arrivals[-1] - arrivals[0]) / 1e9) if arrivals else 1.0
    rate = load.rate if load.rate is not None else len(arrivals) / span_s
    before = poisson_arrivals(rate, secrets.randbits(62), count=first_turns)
    return (*before, *(before[-1] + arrival for arrival in arrivals))
