"""Choosing the next load level from what the last one came to: up a staircase, or towards the highest that meets an SLO."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.load.search import MAX_DISBELIEVED, MaxSearch, Staircase
from harness.results.schema import ProbeInfo, SearchInfo
from workloads.request import Load

# Load, repeat, number of requests (None: the plan's own) -> the cell's id, or None once the user has interrupted.
MeasureLevel = Callable[[Load, int, int | None], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Showing:
    """What a cell showed: of ``total`` requests ``good`` met every SLO; ``disbelief`` says why that counts for nothing."""

    good: int
    total: int
    disbelief: str | None = None


async def climb(
    loads: Sequence[Load], repeats: int, measure: MeasureLevel, speed_of: Callable[[str], float | None]
) -> int | None:
    """Run rising ``loads`` until throughput (``speed_of`` a cell, output tokens/s) stops rising.  The knee, if seen."""
    by_level = {load.concurrency or 1: load for load in loads}
    stairs = Staircase(list(by_level))
    while (level := stairs.next_level()) is not None:
        speeds = []
        for repeat in range(repeats):
            cell_id = await measure(by_level[level], repeat, None)
            if cell_id is None:
                return None
            speeds.append(speed_of(cell_id))
        known = [speed for speed in speeds if speed is not None]
        stairs.observe(level, sum(known) / len(known) if known else None)
    return stairs.knee


async def find_max(
    search: MaxSearch,
    number: int | None,
    measure: MeasureLevel,
    showing_of: Callable[[str], Showing],
    note: Callable[[str], None],
) -> bool:
    """Drive ``search`` to its end with ``number`` requests a cell.  False when the user interrupted."""
    while (level := search.next_level()) is not None:
        if search.over == "rate":
            load, enough = Load("poisson", rate=level), number
        else:
            load = Load("closed", concurrency=int(level))
            enough = None if number is None else max(number, 2 * int(level))  # else the duration counts
        before = search.probes[level].cells if level in search.probes else 0
        cell_id = await measure(load, before, enough)
        if cell_id is None:
            return False
        shown = showing_of(cell_id)
        if shown.disbelief is not None:
            search.disbelieve(level, shown.disbelief)
            left = MAX_DISBELIEVED - search.probes[level].disbelieved
            note(
                f"{cell_id} decides nothing: {shown.disbelief}; "
                + ("once more" if left > 0 else "the level is given up")
            )
            continue
        search.observe(level, shown.good, shown.total)
        low, high = search.interval(level)
        note(f"{cell_id}: {shown.good}/{shown.total} met the SLO ({low:.1%} to {high:.1%})")
    return True


def search_info(search: MaxSearch, engine: str, workload: str, slo: Mapping[str, float]) -> SearchInfo:
    """A finished search for the record."""
    probes = []
    for level, probe in sorted(search.probes.items()):
        low, high = search.interval(level)
        probes.append(
            ProbeInfo(
                level=level,
                good=probe.good,
                total=probe.total,
                low=low,
                high=high,
                verdict=search.verdict(level),
                disbelieved=probe.disbelieved,
                reason=probe.reason,
            )
        )
    return SearchInfo(
        engine=engine,
        workload=workload,
        over=search.over,
        attainment=search.attainment,
        confidence=search.confidence,
        best=search.best,
        refuted=search.refuted,
        inconclusive=search.is_inconclusive,
        sentence=search.sentence(", ".join(f"{name} <= {limit:g} ms" for name, limit in slo.items())),
        probes=probes,
    )
