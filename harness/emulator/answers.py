"""What is drawn for each answer: its times, its size, its fault.  A pure function of the options and its number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from harness.emulator.options import EmulatorOptions, Fault, ScriptedAnswer

NS_PER_MS = 1e6
UNUSED = Random(0)  # where nothing is drawn


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to come.  ``gaps`` gives ns: to the first chunk, then from chunk to chunk, without end."""

    ttft_ns: int
    gaps: Iterator[int]
    tokens: int | None  # where the request does not say
    tokens_per_chunk: int
    fault: Fault | None
    fault_after_tokens: int | None


def draw(options: EmulatorOptions, number: int) -> Answer:
    """Answer ``number`` (0 is the first request)."""
    scripted = options.script[number % len(options.script)] if options.script else ScriptedAnswer()
    random = Random(f"{options.seed}/{number}") if uses_chance(options) else UNUSED
    scale = options.slowdown * _factor(random, options.noise) * NS_PER_MS
    fault = scripted.fault if options.script else None
    if fault is None and options.faults:
        fault = _fault(options, random.random())
    ttft = options.ttft_ms if scripted.ttft_ms is None else scripted.ttft_ms
    itl = options.itl_ms if scripted.itl_ms is None else scripted.itl_ms
    times = scripted.times_ms or (ttft,)
    steps = itertools.chain((times[0],), (b - a for a, b in itertools.pairwise(times)), itertools.repeat(itl))
    return Answer(
        ttft_ns=round(times[0] * scale),
        gaps=(round(step * scale * _factor(random, options.jitter)) for step in steps),
        tokens=scripted.tokens,
        tokens_per_chunk=scripted.tokens_per_chunk or options.tokens_per_chunk,
        fault=fault,
        fault_after_tokens=scripted.fault_after_tokens,
    )


def uses_chance(options: EmulatorOptions) -> bool:
    """Whether anything of an answer is drawn.  Seeding a generator takes most of the time that a request does."""
    return bool(options.noise or options.jitter or options.faults)


def _factor(random: Random, cv: float) -> float:
    """A log-normal factor of mean 1 and coefficient of variation ``cv``."""
    if cv == 0:
        return 1.0
    variance = math.log1p(cv * cv)
    return math.exp(random.gauss(-variance / 2, math.sqrt(variance)))


def _fault(options: EmulatorOptions, drawn: float) -> Fault | None:
    """The fault whose share of the unit interval ``drawn`` falls into."""
    bound = 0.0
    for kind, share in options.faults.items():
        bound += share
        if drawn < bound:
            return kind
    return None
