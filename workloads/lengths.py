"""Token lengths: seeded draws with a given mean and coefficient of variation, clipped to what the model can hold.

ShareGPT means (161.31 tokens in, 337.99 out) are those of Fig. 11 of the PagedAttention paper.  The coefficients of
variation (1.5 and 0.87) are those with which gamma lengths reproduce the memory split of its Fig. 2: the figure fixes
the output's, as resident = in + E[out^2] / (2 E[out]).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from statistics import NormalDist
from typing import Literal, Protocol

from workloads.request import WorkloadError

Shape = Literal["gamma", "lognormal", "fixed"]
SHAPES: tuple[Shape, ...] = ("gamma", "lognormal", "fixed")

SHAREGPT_INPUT_MEAN = 161.31
SHAREGPT_OUTPUT_MEAN = 337.99
SHAREGPT_INPUT_CV = 1.5
SHAREGPT_OUTPUT_CV = 0.87

_NORMAL = NormalDist()


class Law(Protocol):
    """A distribution of token counts."""

    def draw(self, random: Random) -> int:
        """One length in tokens, at least 1."""
        ...


@dataclass(frozen=True, slots=True)
class LogUniform:
    """Lengths from ``low`` to ``high`` tokens, evenly on a log scale: as many between 256 and 512 as 8192 and 16384."""

    low: int
    high: int

    def draw(self, random: Random) -> int:
        return max(self.low, min(self.high, round(self.low * (self.high / self.low) ** random.random())))


@dataclass(frozen=True, slots=True)
class LengthLaw:
    """A distribution of token counts.  ``cv`` is standard deviation / mean; a ``fixed`` law ignores it."""

    mean: float
    cv: float = 0.0
    shape: Shape = "gamma"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and self.mean > 0):
            raise WorkloadError(f"a mean length must be above 0 tokens, not {self.mean}")
        if not (math.isfinite(self.cv) and self.cv >= 0):
            raise WorkloadError(f"a coefficient of variation must be 0 or more, not {self.cv}")
        if self.shape not in SHAPES:
            raise WorkloadError(f"length shape {self.shape!r} is not known; choose one of {', '.join(SHAPES)}")

    def draw(self, random: Random) -> int:
        """One length in tokens, at least 1."""
        if self.shape == "fixed" or self.cv == 0:
            value = self.mean
        elif self.shape == "gamma":
            value = random.gammavariate(1 / self.cv**2, self.mean * self.cv**2)
        else:
            variance = math.log1p(self.cv**2)
            uniform = min(max(random.random(), 1e-12), 1 - 1e-12)
            value = math.exp(math.log(self.mean) - variance / 2 + math.sqrt(variance) * _NORMAL.inv_cdf(uniform))
        return max(1, round(value))
