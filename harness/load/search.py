"""The highest load under which enough requests meet every SLO: a bracketing search whose steps are statements.

A probe is one cell at one level.  Of ``total`` requests ``good`` met every SLO; a failed request did not.  The Wilson
interval of good/total says what the probe showed::

    ------[==low====high==]-----------> share of good requests
                 ^ target inside: nothing shown yet, the level is probed again and its requests are pooled
       target left of low: the level passes;  right of high: it fails

The search doubles until a level fails, then halves the (geometric) distance until the best level that passes and the
lowest that does not are near enough.  A level that stays undecided after all its tries does not pass.

A cell that cannot be believed (the client was late, the clocks were throttled) decides nothing: it is run once more, and
when that one cannot be believed either, the level is inconclusive.  The search then goes on below it, and its answer is
inconclusive where such a level is all that bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

Over = Literal["rate", "concurrency"]
Verdict = Literal["pass", "fail", "undecided", "inconclusive"]

MAX_DISBELIEVED = 2  # cells at one level that could not be believed, before it is given up

LOWEST_RATE = 1 / 64  # requests/s
LOWEST_CONCURRENCY = 1


def z_of(confidence: float) -> float:
    """The two-sided normal quantile of a confidence level."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(good: int, total: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927, JASA 22:209); (0, 1) without a sample."""
    if total == 0:
        return 0.0, 1.0
    z = z_of(confidence)
    share, denominator = good / total, 1 + z * z / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (middle - half) / denominator), min(1.0, (middle + half) / denominator)


def requests_to_pass(attainment: float, confidence: float) -> int:
    """The fewest requests, all of them good, whose interval clears ``attainment``: n / (n + z^2) >= attainment."""
    return math.ceil(z_of(confidence) ** 2 * attainment / (1 - attainment))


@dataclass(slots=True)
class Probe:
    """What is known about one level.  Requests of cells that could not be believed are not counted."""

    level: float
    good: int = 0
    total: int = 0
    tries: int = 0
    disbelieved: int = 0
    reason: str | None = None  # why the last of those could not be believed

    @property
    def cells(self) -> int:
        """Cells run at this level, believed or not."""
        return self.tries + self.disbelieved


@dataclass(slots=True)
class MaxSearch:
    """Call ``next_level()``, run it, ``observe()`` it, until ``next_level()`` is None.

    ``precision`` is the ratio by which the answer may be too low; concurrency is exact to one.
    """

    over: Over
    attainment: float = 0.95
    confidence: float = 0.95
    start: float = 1.0
    limit: float = 1024.0
    precision: float = 0.1
    tries: int = 3
    probes: dict[float, Probe] = field(default_factory=dict)

    @property
    def best(self) -> float | None:
        """The highest level that passes, with every level below it that was probed neither refuted nor unmeasured."""
        passed = [level for level in self.probes if self.verdict(level) == "pass"]
        ceiling = self.ceiling
        return max((level for level in passed if ceiling is None or level < ceiling), default=None)

    @property
    def unmeasured(self) -> float | None:
        """The lowest level of which nothing could be told because its cells could not be believed."""
        return min((level for level in self.probes if self.verdict(level) == "inconclusive"), default=None)

    @property
    def ceiling(self) -> float | None:
        """The lowest level that is not known to pass: refuted or unmeasured."""
        return min((level for level in (self.refuted, self.unmeasured) if level is not None), default=None)

    @property
    def is_inconclusive(self) -> bool:
        """Whether what bounds the answer is a level that could not be measured."""
        return self.unmeasured is not None and self.ceiling == self.unmeasured

    @property
    def refuted(self) -> float | None:
        """The lowest level that fails, or that stayed undecided after all its tries."""
        return min((level for level in self.probes if self._does_not_pass(level)), default=None)

    def interval(self, level: float) -> tuple[float, float]:
        probe = self.probes[level]
        return wilson(probe.good, probe.total, self.confidence)

    def verdict(self, level: float) -> Verdict:
        low, high = self.interval(level)
        if low >= self.attainment:
            return "pass"
        if high < self.attainment:
            return "fail"
        return "inconclusive" if self.probes[level].disbelieved >= MAX_DISBELIEVED else "undecided"

    def observe(self, level: float, good: int, total: int) -> None:
        """Add the outcome of one cell at ``level``."""
        probe = self.probes.setdefault(level, Probe(level))
        probe.good += good
        probe.total += total
        probe.tries += 1

    def disbelieve(self, level: float, reason: str) -> None:
        """A cell at ``level`` cannot be believed: it counts for nothing but itself."""
        probe = self.probes.setdefault(level, Probe(level))
        probe.disbelieved += 1
        probe.reason = reason

    def next_level(self) -> float | None:
        """The level to run now, or None when the answer is found."""
        for level, probe in self.probes.items():
            if self.verdict(level) == "undecided" and probe.tries < self.tries:
                return level
        best, ceiling = self.best, self.ceiling
        if best is None and ceiling is None:
            return self._clean(self.start)
        if ceiling is None:
            assert best is not None
            return self._clean(min(2 * best, self.limit)) if best < self.limit else None
        if best is None:
            lowest = LOWEST_RATE if self.over == "rate" else LOWEST_CONCURRENCY
            return self._clean(max(ceiling / 2, lowest)) if ceiling > lowest else None
        middle = self._clean(math.sqrt(best * ceiling))
        is_near = ceiling - best <= 1 if self.over == "concurrency" else ceiling / best <= 1 + self.precision
        return None if is_near or middle in self.probes else middle

    def sentence(self, slo: str) -> str:
        """The answer in words."""
        unit = "requests/s" if self.over == "rate" else "requests in flight"
        promise = f"at least {self.attainment:.0%} of the requests meet {slo} ({self.confidence:.0%} confidence)"
        best, refuted = self.best, self.refuted
        if self.is_inconclusive:
            level = self.unmeasured
            assert level is not None
            known = "nothing was shown" if best is None else f"up to {best:g} {unit} {promise}"
            return f"INCONCLUSIVE: {known}; {level:g} could not be measured ({self.probes[level].reason})"
        if best is None:
            return f"no probed level was shown to serve so that {promise}; the lowest was {min(self.probes):g} {unit}"
        if refuted is None:
            return f"up to {best:g} {unit}, the limit of the search, {promise}"
        low, high = self.interval(refuted)
        why = "does not" if self.verdict(refuted) == "fail" else "could not be shown to"
        return f"up to {best:g} {unit} {promise}; {refuted:g} {why} ({low:.1%} to {high:.1%})"

    def _does_not_pass(self, level: float) -> bool:
        verdict = self.verdict(level)
        return verdict == "fail" or (verdict == "undecided" and self.probes[level].tries >= self.tries)

    def _clean(self, level: float) -> float:
        """A level that people would write: whole, or three digits."""
        return float(max(1, round(level))) if self.over == "concurrency" else float(f"{level:.3g}")


@dataclass(slots=True)
class Staircase:
    """Rising levels until throughput stops rising: the knee, and ``beyond`` more levels to show that it was one.

    A level gains when it brings ``gain`` more output tokens/s than the best before it.
    """

    levels: Sequence[int]
    gain: float = 0.05
    beyond: int = 2
    seen: dict[int, float | None] = field(default_factory=dict)

    def next_level(self) -> int | None:
        left = [level for level in self.levels if level not in self.seen]
        knee = self.knee
        if not left or (self.beyond and knee is not None and self._levels_after(knee) >= self.beyond):
            return None
        return left[0]

    def observe(self, level: int, tokens_per_s: float | None) -> None:
        self.seen[level] = tokens_per_s

    @property
    def knee(self) -> int | None:
        """The last level that gained, once a later one did not; None while throughput still rises."""
        best, knee = 0.0, None
        for level, speed in self.seen.items():
            if speed is not None and speed > best * (1 + self.gain):
                best, knee = speed, level
        return knee if knee is not None and self._levels_after(knee) > 0 else None

    def _levels_after(self, level: int) -> int:
        seen = list(self.seen)
        return len(seen) - 1 - seen.index(level)
