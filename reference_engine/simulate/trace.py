"""Traces of requests: arrival times and token lengths, seeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class TracedRequest(NamedTuple):
    """One request.  ``arrival`` in seconds from the start, lengths in tokens."""

    arrival: float
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class LengthLaw:
    """A gamma law of token counts; ``cv`` = standard deviation / mean."""

    mean: float
    cv: float

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """int64 [count], each at least 1."""
        shape = self.cv**-2
        return np.maximum(1, np.rint(rng.gamma(shape, self.mean / shape, count))).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Lengths of prompts and answers, independent of each other."""

    name: str
    prompt: LengthLaw
    output: LengthLaw

    def trace(self, *, rate: float, count: int, seed: int, max_model_len: int) -> list[TracedRequest]:
        """``count`` requests that arrive as a Poisson process of ``rate`` per second; 0 means all at the start."""
        rng = np.random.default_rng(seed)
        prompts = np.minimum(self.prompt.draw(rng, count), max_model_len - 1)
        outputs = np.minimum(self.output.draw(rng, count), max_model_len - prompts)
        arrivals = np.cumsum(rng.exponential(1 / rate, count)) if rate else np.zeros(count)
        return [TracedRequest(*row) for row in zip(arrivals.tolist(), prompts.tolist(), outputs.tolist(), strict=True)]


# Means: Fig. 11 of the PagedAttention paper.  Coefficients of variation, fitted: ShareGPT's output to the resident and
# reserved tokens of Orca (Max) in Fig. 2; Alpaca's to the batch sizes of Orca (Pow2) and (Oracle) in Fig. 13 and to the
# saving of parallel sampling in Fig. 15.
SHAREGPT = Dataset("ShareGPT-like", LengthLaw(161.31, 1.5), LengthLaw(337.99, 0.87))
ALPACA = Dataset("Alpaca-like", LengthLaw(19.31, 0.45), LengthLaw(58.45, 1.1))
