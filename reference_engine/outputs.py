"""What the engine hands out after a step, and the numbers it keeps about itself.  No torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from reference_engine.request import FinishReason


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token, its log-probability (natural log), and the most likely tokens of its position, best first.

    ``rank`` is 1 for the most likely token; None where it was not asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


# One entry a prompt position; None for the first, which nothing precedes.
PromptLogprobs = tuple[TokenLogprob | None, ...]


@dataclass(slots=True)  # not frozen: one is made per token, and frozen ones take twice as long to make
class SequenceOutput:
    """One new token of one continuation, or the news that its request failed (``error``; then there is no token).

    ``text`` is what became certain with this token: empty while a character or a possible stop string is incomplete.
    """

    request_id: str
    index: int  # continuation, 0 .. n-1
    token: int | None
    text: str
    text_offset: int  # characters of the continuation before this token's text
    num_generated: int  # tokens of this continuation so far, this one included
    prompt_tokens: int
    cached_tokens: int  # prompt tokens found in the prefix cache
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id that ended it
    prompt_logprobs: PromptLogprobs | None = None  # with a continuation's first token, where asked for
    error: str | None = None
    beam_score: float | None = None  # with a beam hypothesis' last token


class Histogram:
    """Counts of observations in fixed buckets (upper bounds in seconds), as Prometheus defines them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


def _ladder(first: float, last: float) -> list[float]:
    """1, 2.5, 5 steps from ``first`` to ``last``."""
    bounds = []
    scale = first
    while scale <= last:
        bounds += [round(scale * step, 9) for step in (1.0, 2.5, 5.0) if scale * step <= last]
        scale *= 10
    return bounds


class EngineTimes:
    """Latencies as the engine sees them: from admission, without the network."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(_ladder(0.001, 100.0))
        self.inter_token = Histogram(_ladder(0.0001, 10.0))
        self.end_to_end = Histogram(_ladder(0.01, 1000.0))
        self.step = Histogram(_ladder(0.0001, 10.0))
        self.finished: dict[str, int] = dict.fromkeys([*(reason.value for reason in FinishReason), "error"], 0)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A consistent copy of the engine's gauges and counters; ``values`` is keyed by the project's metric names."""

    values: dict[str, float]
