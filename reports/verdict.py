"""The answer in words, computed from the data and never claiming more than it holds.

Rules: a cell that is INVALID is left out.  The headline speaks about the heaviest load of one workload, chosen before
any result is looked at.  Equal KV memory is claimed only of engines that reported their pool, and when pools are equal.
A difference without repeats is called "one run each"; with repeats, ranges that overlap are no difference.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

from harness.results.schema import Validity
from reports.comparability import differences
from reports.compare import (
    comparable,
    differ,
    extremes,
    memory_was_not_full,
    pools,
    pools_equal,
    ratios,
)
from reports.dataset import Cell, Dataset, Group, load_level
from reports.metrics import RUNNING, THROUGHPUT
from reports.words import Spread, count, factor, listing, mean_count, number, percent, plural

# The workload made to fill KV memory leads; any other stands in where it was not run.
LEADING_WORKLOAD = "concurrency"


class Segment(NamedTuple):
    """A piece of a sentence: plain text, or the name of an engine (untrusted, shown in bold)."""

    text: str
    is_name: bool = False


Phrase = tuple[Segment, ...]
Badge = Literal["VALID", "SUSPECT", "INVALID", "NOT JUDGED"]


def phrase(*parts: str | Segment) -> Phrase:
    """A sentence from pieces."""
    return tuple(part if isinstance(part, Segment) else Segment(part) for part in parts)


def plain(sentence: Phrase) -> str:
    """A sentence as text."""
    return "".join(segment.text for segment in sentence)


def name(label: str) -> Segment:
    """An engine's name within a sentence."""
    return Segment(label, is_name=True)


@dataclass(frozen=True)
class Reason:
    """Why a cell is not simply VALID."""

    cell: Cell
    validity: Validity
    text: str


@dataclass(frozen=True)
class Verdict:
    """What the first screen says."""

    headline: Phrase
    points: list[Phrase]
    badge: Badge
    badge_text: str
    reasons: list[Reason]
    differences: list[str]
    group: Group | None  # what the headline and the tiles speak about

    @property
    def doubts(self) -> list[list[Reason]]:
        """The reasons cell by cell; cells that the headline speaks about come first, then INVALID before SUSPECT."""
        by_cell: dict[int, list[Reason]] = {}
        for reason in self.reasons:
            by_cell.setdefault(id(reason.cell), []).append(reason)
        leading = [id(cell) for cells in self.group.cells.values() for cell in cells] if self.group else []
        return sorted(by_cell.values(), key=lambda reasons: id(reasons[0].cell) not in leading)


def judge(data: Dataset) -> Verdict:
    """The verdict on a dataset."""
    badge, badge_text, reasons = _validity(data)
    group = leading_group(data)
    unlike = differences(data)
    unfinished = _unfinished(data)
    if group is None:
        return Verdict(_nothing(data), unfinished, badge, badge_text, reasons, unlike, None)
    compared = [label for label in group.cells if THROUGHPUT.spread(group, label).values]
    if len(compared) == 1:
        headline, points = _single(data, group, compared[0])
    else:
        headline, points = _compare(data, group, compared)
    return Verdict(headline, [*points, *unfinished], badge, badge_text, reasons, unlike, group)


def leading_group(data: Dataset) -> Group | None:
    """The group the headline speaks about: most engines with a result, then the leading workload, then most load."""
    candidates = [
        group for group in data.groups if any(THROUGHPUT.spread(group, label).values for label in group.cells)
    ]
    return max(candidates, key=_lead, default=None)


def _lead(group: Group) -> tuple[int, bool, float]:
    answered = sum(bool(THROUGHPUT.spread(group, label).values) for label in group.cells)
    return answered, group.workload == LEADING_WORKLOAD, load_level(group.load)


def _validity(data: Dataset) -> tuple[Badge, str, list[Reason]]:
    judged = [cell for cell in data.cells if cell.summary is not None]
    counts = Counter(cell.summary.validity for cell in judged if cell.summary is not None)
    reasons = [
        Reason(cell, cell.summary.validity, text)
        for cell in judged
        if cell.summary is not None and cell.summary.validity != "VALID"
        for text in cell.summary.reasons or ["no reason was recorded"]
    ]
    reasons.sort(key=lambda reason: reason.validity != "INVALID")
    if not judged:
        return "NOT JUDGED", "no cell has a summary", reasons
    total = plural(len(data.cells), "cell")
    if len(judged) < len(data.cells):
        return "NOT JUDGED", f"{len(judged)} of {total} have a summary", reasons
    badge: Badge = "INVALID" if counts["INVALID"] else "SUSPECT" if counts["SUSPECT"] else "VALID"
    if badge == "VALID":
        return badge, f"all {total}" if len(data.cells) > 1 else total, reasons
    told = [f"{counts[word]} {word}" for word in ("INVALID", "SUSPECT", "VALID") if counts[word]]
    return badge, f"{', '.join(told)} of {total}", reasons


def _unfinished(data: Dataset) -> list[Phrase]:
    runs = [run.run.manifest for run in data.runs if run.run.manifest.status != "complete"]
    return [
        phrase(f"Run {run.run_id} did not finish (status: {run.status}); this page shows what was recorded until then.")
        for run in runs
    ]


def _nothing(data: Dataset) -> Phrase:
    if not data.cells:
        return phrase("This run holds no cells: nothing was measured.")
    if all(cell.summary is None for cell in data.cells):
        return phrase("This run has no summary, so nothing is concluded from it.")
    if any(not cell.is_valid for cell in data.cells):
        return phrase("No valid cell produced output tokens, so there is nothing to compare. The reasons are below.")
    return phrase("No request produced output tokens, so there is nothing to compare.")


def _single(data: Dataset, group: Group, label: str) -> tuple[Phrase, list[Phrase]]:
    running, speed = RUNNING.spread(group, label), THROUGHPUT.spread(group, label)
    held = f" with {mean_count(running.middle)} requests running at once on average" if running.values else ""
    headline = phrase(
        name(label), f" gives {number(speed.middle)} output tokens/s under {group.workload} ({_load(group)}){held}."
    )
    alone = "One engine, so there is nothing to compare it with."
    if len(data.engines) > 1:
        alone = "No other engine has a valid result under this load, so nothing is compared."
    return headline, [phrase(alone), *_certainty(group, [label])]


def _compare(data: Dataset, group: Group, labels: list[str]) -> tuple[Phrase, list[Phrase]]:
    memory = _memory_headline(group, labels)
    ranking = sorted(labels, key=lambda label: -(THROUGHPUT.spread(group, label).middle or 0))
    headline = memory or _speed_headline(group, ranking)
    points = []
    if memory:
        points += _over_workloads(data, group, labels)
        silent = [label for label in labels if label not in comparable(group, labels)]
        if silent:
            why = "no KV pool reported, or no request seen running"
            points.append(phrase(f"Left out of that comparison ({why}): {listing(silent)}."))
        if len(labels) > 2:
            speeds = [f"{label} {number(THROUGHPUT.spread(group, label).middle)}" for label in ranking]
            points.append(phrase(f"Output tokens/s: {', '.join(speeds)}."))
    else:
        points.append(phrase(_why_no_memory(group, labels)))
    return headline, [*points, _agreement(data), *_certainty(group, labels)]


def _load(group: Group) -> str:
    if group.load.mode == "closed":
        return f"{group.load.concurrency} requests in flight"
    return f"{number(group.load.rate)} requests/s" if group.load.rate is not None else "the trace's arrival times"


def _memory_headline(group: Group, labels: list[str]) -> Phrase | None:
    """Who holds more requests in the same memory; null where the data cannot say."""
    sizes, told = pools(group, labels), comparable(group, labels)
    if len(told) < 2 or not pools_equal(sizes[label] for label in told):
        return None
    if all(memory_was_not_full(group, label) for label in told):
        return None
    running = {label: RUNNING.spread(group, label) for label in told}
    most, least = extremes(group, told)
    same = f"In the same KV memory ({count(sizes[most])} token slots), "
    if not differ(running[most], running[least]):
        return phrase(
            same, *_names(told), f" keep about the same number of requests running at once ({_pair(running, told)})."
        )
    a, b = running[most].middle or 0, running[least].middle or 0
    atleast = "at least " if memory_was_not_full(group, most) else ""
    speed = _speed_clause(group, most, least)
    return phrase(
        same,
        name(most),
        f" keeps {mean_count(a)} requests running at once where ",
        name(least),
        f" keeps {mean_count(b)}: {atleast}{factor(a / b)} as many, {speed}.",
    )


def _names(labels: list[str]) -> list[Segment]:
    parts: list[Segment] = []
    for i, label in enumerate(labels):
        if i:
            parts.append(Segment(" and " if i == len(labels) - 1 else ", "))
        parts.append(name(label))
    return parts


def _pair(values: dict[str, Spread], labels: list[str]) -> str:
    return listing([mean_count(values[label].middle) for label in labels])


def _speed_clause(group: Group, first: str, second: str) -> str:
    a, b = THROUGHPUT.spread(group, first), THROUGHPUT.spread(group, second)
    fast, slow = a.middle or 0, b.middle or 0
    numbers = f"at {number(fast)} against {number(slow)} output tokens/s"
    if not differ(a, b):
        return f"{numbers} (about the same)"
    return f"{numbers} ({factor(fast / slow)})" if slow > 0 else numbers


def _speed_headline(group: Group, ranking: list[str]) -> Phrase:
    spreads = [THROUGHPUT.spread(group, label) for label in ranking]
    best, rest = spreads[0], spreads[1:]
    where = f"Under {group.workload} ({_load(group)}), "
    ties = [label for label, spread in zip(ranking[1:], rest, strict=True) if not differ(best, spread)]
    others = [label for label in ranking[1:] if label not in ties]
    middles = {label: spread.middle or 0 for label, spread in zip(ranking, spreads, strict=True)}
    if ties:
        together = [ranking[0], *ties]
        numbers = listing([number(middles[label]) for label in together])
        parts: list[str | Segment] = [where, *_names(together), f" give about the same output tokens/s ({numbers})"]
    else:
        parts = [where, name(ranking[0]), f" gives the most output tokens/s: {number(middles[ranking[0]])}"]
    for i, label in enumerate(others):
        parts += ["; " if ties and i == 0 else " against " if i == 0 else ", "]
        ratio = f", {factor(middles[ranking[0]] / middles[label])}" if middles[label] > 0 else ""
        parts += [name(label), f" {number(middles[label])}{ratio and f' ({ratio[2:]})'}"]
    return phrase(*parts, ".")


def _why_no_memory(group: Group, labels: list[str]) -> str:
    sizes = pools(group, labels)
    limited = comparable(group, labels)
    if limited and all(memory_was_not_full(group, label) for label in limited):
        fitted = f"all {group.load.concurrency} requests in flight ran at once on {listing(limited)}"
        return f"KV memory was not the limit: {fitted}."
    silent = [label for label in labels if label not in sizes]
    if silent:
        verb = "does" if len(silent) == 1 else "do"
        return f"KV memory cannot be compared here: {listing(silent)} {verb} not report the size of the KV pool."
    if not pools_equal(sizes.values()):
        told = listing([f"{count(size)} slots ({label})" for label, size in sizes.items()])
        return f"The KV pools differ in size: {told}. Requests at once are not compared as if they were equal."
    unseen = [label for label in labels if label not in limited]
    return f"KV memory cannot be compared here: no running request was ever seen on {listing(unseen)}."


def _over_workloads(data: Dataset, lead: Group, labels: list[str]) -> list[Phrase]:
    """The range of the two ratios of the headline over all groups, so that one workload does not speak for all."""
    most, least = extremes(lead, comparable(lead, labels))
    if not differ(RUNNING.spread(lead, most), RUNNING.spread(lead, least)):
        return []
    parts = []
    for metric, words in ((RUNNING, "as many requests at once"), (THROUGHPUT, "the output tokens/s")):
        found = ratios(data, metric, most, least)
        if len(found) > 1:
            low, high = factor(min(found)), factor(max(found))
            parts.append(f"{low if low == high else f'{low} to {high}'} {words}")
    if not parts:
        return []
    n = len(ratios(data, RUNNING, most, least))
    which = "both" if n == 2 else f"all {n}"
    return [phrase(f"Over {which} combinations of workload and load: {listing(parts)}.")]


def _agreement(data: Dataset) -> Phrase:
    """Did the engines return the same text?"""
    engine_of = {(id(cell.tables), cell.info.cell_id): cell.engine.label for cell in data.cells}
    shares = [
        (share, cell.engine.label, engine_of[id(cell.tables), other], cell.info.workload.name)
        for cell in data.cells
        if cell.summary is not None and cell.is_valid
        for other, share in cell.summary.tokens_identical_to.items()
        if engine_of.get((id(cell.tables), other), cell.engine.label) != cell.engine.label
    ]
    if not shares:
        return phrase("Whether the outputs agree was not measured.")
    share, one, other, workload = min(shares)
    if share >= 1:
        return phrase("Outputs agree: every request compared got the same text from every engine.")
    return phrase(
        "Outputs differ: ", name(one), " and ", name(other), f" agree on {percent(share)} of requests under {workload}."
    )


def _certainty(group: Group, labels: list[str]) -> list[Phrase]:
    repeats = [len(THROUGHPUT.spread(group, label).values) for label in labels]
    if min(repeats) <= 1:
        return [phrase("One run each: noise between runs was not measured, so small differences mean nothing.")]
    runs = str(min(repeats)) if min(repeats) == max(repeats) else f"{min(repeats)} to {max(repeats)}"
    return [
        phrase(f"{runs} repeats each: medians are given, and a difference is stated only where the ranges are apart.")
    ]
