"""Changes between two engines (or builds), metric by metric: how much, how sure, and what could not have been seen.

The unit of the statistics is a run of a cell, never a request: requests of one run share batches, queues and caches.
Values of the repeats are compared on the log scale by the Hodges-Lehmann estimate with the exact interval of Mann and
Whitney, which needs 4 repeats on both sides (or 3 and 5) at 95 %.  With fewer there is a change and no interval, and
then nothing is called better or worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.results.intervals import hodges_lehmann_unpaired
from reports.dataset import Dataset, Engine, Group, ReportError
from reports.metrics import TABLE, Metric
from reports.words import NULL_TEXT, Spread, percent

Verdict = Literal["better", "worse", "changed", "no change shown", "too few repeats", "not measured", "INVALID"]

CONFIDENCE = 0.95
# A half interval spans 1.96 standard errors of normal noise; a change seen in 4 of 5 comparisons is 0.84 of them more.
SEEN_IN_FOUR_OF_FIVE = 1 + 0.8416 / 1.9600
# A change must also matter: nobody acts on less than this, however small its interval is.
RELEVANT = 0.005


@dataclass(frozen=True)
class Change:
    """One metric of one group, ``new`` against ``base``.  Shares: 0.1 is 10 % more than the base."""

    group: Group
    metric: Metric
    base: Engine
    new: Engine
    base_values: Spread
    new_values: Spread
    change: float | None  # null where a value is missing or a ratio has no meaning (zero, negative)
    low: float | None  # 95 % interval, null where there are too few repeats
    high: float | None
    detectable: float | None  # the smallest change that would have been seen in 4 of 5 such comparisons
    verdict: Verdict

    @property
    def delta(self) -> float | None:
        """Difference of the medians in the metric's own unit."""
        a, b = self.base_values.middle, self.new_values.middle
        return None if a is None or b is None else b - a

    @property
    def n(self) -> str:
        """Repeats behind the two numbers."""
        return f"{len(self.base_values.values)}+{len(self.new_values.values)}"

    @property
    def change_text(self) -> str:
        return signed(self.change)

    @property
    def interval_text(self) -> str:
        return interval_words(self.low, self.high)

    @property
    def detectable_text(self) -> str:
        return NULL_TEXT if self.detectable is None else f"±{percent(self.detectable)}"


def signed(share: float | None) -> str:
    """A change of a share with its sign, one decimal."""
    if share is None or not math.isfinite(share):
        return NULL_TEXT
    text = f"{100 * share:+,.{1 if abs(share) < 10 else 0}f} %"
    return "0.0 %" if text in ("+0.0 %", "-0.0 %") else text.replace("-", "−")


def interval_words(low: float | None, high: float | None) -> str:
    """``−3.1 to +0.4 %``."""
    if low is None or high is None:
        return NULL_TEXT
    return f"{signed(low).removesuffix(' %')} to {signed(high)}"


def bases(data: Dataset, base: str | None = None) -> list[tuple[Engine, Engine]]:
    """Who is compared with whom, as (base, new).

    With several runs kept apart, an engine is compared with the engine of the same name in the first run that has it;
    otherwise with ``base``, by default the first engine.  Raises :class:`ReportError` for a base that is not there.
    """
    if base is not None:
        chosen = [engine for engine in data.engines if base in (engine.label, engine.info.name)]
        if not chosen:
            known = ", ".join(engine.label for engine in data.engines)
            raise ReportError(f"--base {base!r} is none of the engines compared; choose one of {known}")
        return [(chosen[0], engine) for engine in data.engines if engine != chosen[0]]
    first_of: dict[str, Engine] = {}
    for engine in data.engines:
        first_of.setdefault(engine.info.name, engine)
    is_matched = any(first_of[engine.info.name] != engine for engine in data.engines)
    found = []
    for engine in data.engines:
        against = first_of[engine.info.name] if is_matched else data.engines[0]
        if against != engine:
            found.append((against, engine))
    return found


def changes(
    data: Dataset, group: Group, pair: tuple[Engine, Engine], metrics: Sequence[Metric] = tuple(TABLE)
) -> list[Change]:
    """Every metric of ``metrics`` that either side measured in ``group``; empty where a side did not run it."""
    base, new = pair
    if base.label not in group.cells or new.label not in group.cells:
        return []
    return [found for metric in metrics if (found := change_of(group, metric, base, new)) is not None]


def change_of(group: Group, metric: Metric, base: Engine, new: Engine) -> Change | None:
    """The change of one metric; None where neither side measured it (unless a side is INVALID, which is told)."""
    a, b = metric.spread(group, base.label), metric.spread(group, new.label)

    def told(
        verdict: Verdict,
        share: float | None = None,
        low: float | None = None,
        high: float | None = None,
        seen: float | None = None,
    ) -> Change:
        return Change(group, metric, base, new, a, b, share, low, high, seen, verdict)

    if not group.valid(base.label) or not group.valid(new.label):
        return told("INVALID")
    if not a.values and not b.values:
        return None
    if not a.values or not b.values:
        return told("not measured")
    if min(*a.values, *b.values) <= 0:
        return told(_plain(a, b))
    found = hodges_lehmann_unpaired(np.log(a.values), np.log(b.values), CONFIDENCE)
    share = math.expm1(float(found.estimate))
    if not math.isfinite(found.low) or not math.isfinite(found.high):
        return told("too few repeats", share)
    low, high = math.expm1(float(found.low)), math.expm1(float(found.high))
    seen = math.expm1(SEEN_IN_FOUR_OF_FIVE * (float(found.high) - float(found.low)) / 2)
    return told(_verdict(metric, share, low, high), share, low, high, seen)


def _plain(a: Spread, b: Spread) -> Verdict:
    """Values with a zero among them: a ratio has no meaning, so only their order can be told, and only of repeats."""
    enough = len(a.values) >= 4 and len(b.values) >= 4
    apart = min(a.values) > max(b.values) or min(b.values) > max(a.values)
    return ("changed" if apart else "no change shown") if enough else "too few repeats"


def _verdict(metric: Metric, share: float, low: float, high: float) -> Verdict:
    if low <= 0 <= high or abs(share) < RELEVANT:
        return "no change shown"
    if metric.better == "neither":
        return "changed"
    return "better" if (share > 0) == (metric.better == "higher") else "worse"
