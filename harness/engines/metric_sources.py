"""Where one value of our vocabulary comes from in a Prometheus exposition: a family, a label, or a formula of those.

Samples of one family are joined over their labels.  Tensor- and pipeline-parallel ranks report the same pool, so the
largest of them counts; data-parallel ranks (``engine``, ``dp_rank``) and all other labels add up, or are averaged for
shares of a pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client.samples import Sample

Join = Literal["sum", "mean", "max"]
Families = Mapping[str, list[Sample]]

# Ranks that hold shards of one pool.
SHARD_LABELS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})


@dataclass(frozen=True)
class Gauge:
    """The value of one family, or the number in one of its labels (``*_info`` families)."""

    family: str
    join: Join = "sum"
    label: str | None = None
    where: tuple[str, str] | None = None  # only samples whose label has this value

    @property
    def families(self) -> tuple[str, ...]:
        return (self.family,)

    def read(self, families: Families) -> float | None:
        samples = families.get(self.family, [])
        if len(samples) == 1:  # the usual case
            return self._value(samples[0])
        groups: dict[frozenset[tuple[str, str]], float] = {}
        for sample in totals_only(samples):
            value = self._value(sample)
            if value is None:
                continue
            ranks = {name for name in sample.labels if name in SHARD_LABELS}
            rest = {(n, v) for n, v in sample.labels.items() if n not in ranks and n != self.label}
            key = frozenset(rest)
            groups[key] = max(groups.get(key, -math.inf), value)
        if not groups:
            return None
        values = list(groups.values())
        match self.join:
            case "sum":
                return sum(values)
            case "mean":
                return sum(values) / len(values)
            case "max":
                return max(values)

    def _value(self, sample: Sample) -> float | None:
        if self.where is not None and sample.labels.get(self.where[0]) != self.where[1]:
            return None
        if self.label is None:
            return sample.value if math.isfinite(sample.value) else None
        try:
            value = float(sample.labels[self.label])
        except (KeyError, ValueError):
            return None  # "None" where the engine does not know yet
        return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Formula:
    """A value computed from several gauges; absent when one of them is."""

    parts: tuple[Gauge, ...]
    combine: Callable[..., float]

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(part.family for part in self.parts)

    def read(self, families: Families) -> float | None:
        values = [part.read(families) for part in self.parts]
        return None if any(value is None for value in values) else self.combine(*values)


Table = Mapping[str, tuple[Gauge | Formula, ...]]


def totals_only(samples: list[Sample]) -> list[Sample]:
    """Drop SGLang's break-down by priority, which repeats the total that stands under ``priority=""``."""
    if any(sample.labels.get("priority") == "" for sample in samples):
        return [sample for sample in samples if sample.labels.get("priority") == ""]
    return samples


def counter(name: str) -> tuple[Gauge, Gauge]:
    """A counter with its suffix, or without as some releases and exporters show it."""
    return (Gauge(f"{name}_total"), Gauge(name))


def product(*values: float) -> float:
    return math.prod(values)
