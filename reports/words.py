"""Numbers and words as readers see them.  A value that was not measured is a dash that says so, never 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

NULL_TEXT = "–"
NULL_HTML = Markup('<abbr class="null" title="not measured">–</abbr>')


def known(value: float | None) -> bool:
    """Was it measured?"""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant figures, thousands separated, whole numbers from 100 up; a dash for null and NaN."""
    if value is None or not math.isfinite(value):
        return NULL_TEXT
    size = abs(value)
    if size == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{value:,.{min(decimals, 6)}f}"
    return text.rstrip("0").rstrip(".") if decimals > 2 and "." in text else text


def percent(share: float | None) -> str:
    """A share of 1 as per cent with one decimal, two below 1 %."""
    if share is None or not math.isfinite(share):
        return NULL_TEXT
    value = 100 * share
    if value == 0:
        return "0 %"
    return f"{value:.{1 if abs(value) >= 1 else 2}f} %"


def count(value: float | None) -> str:
    """A whole number, or one decimal where it is a mean of counts."""
    if value is None or not math.isfinite(value):
        return NULL_TEXT
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def mean_count(value: float | None) -> str:
    """A mean of counts, with one decimal."""
    return NULL_TEXT if value is None or not math.isfinite(value) else f"{value:,.1f}"


def byte_size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None or not math.isfinite(value):
        return NULL_TEXT
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{number(value)} {unit}"
        value /= 1024
    return f"{number(value)} GiB"


def factor(ratio: float) -> str:
    """How many times as much."""
    return f"{ratio:.{2 if ratio < 1.995 else 1 if ratio < 9.95 else 0}f}×"


def listing(items: Sequence[str]) -> str:
    """Items as a phrase: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def plural(n: int, noun: str) -> str:
    """A count with its noun."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over the repeats of a cell: the median, and the range where there is more than one."""

    values: tuple[float, ...]

    @property
    def middle(self) -> float | None:
        return median(self.values) if self.values else None

    @property
    def low(self) -> float | None:
        return min(self.values, default=None)

    @property
    def high(self) -> float | None:
        return max(self.values, default=None)

    @property
    def is_repeated(self) -> bool:
        return len(self.values) > 1


DEFINITIONS: list[tuple[str, str]] = [
    ("Cell", "One engine under one workload at one load level, one repeat."),
    (
        "Requests at once",
        "Requests that hold KV memory and are computed, as the engine reports; mean over the measured window.",
    ),
    (
        "In flight",
        "Requests that the client has sent and not yet seen end; includes those that wait inside the engine.",
    ),
    ("Output tokens/s", "Tokens that arrived in the measured window, divided by its length."),
    (
        "Measured window",
        "From the first measured request to the moment from which the load could no longer be kept up.",
    ),
    ("TTFT", "Time to first token: from the moment the request was written to the first content chunk."),
    ("TTFT, queue-inclusive", "The same, from the moment the client's slot was granted."),
    ("TTFT, schedule-inclusive", "The same, from the planned start: a late client or a full server cannot hide."),
    ("ITL", "Inter-token latency: gaps between content chunks, pooled over all successful requests."),
    ("TPOT", "Time per output token of one request: (last - first content chunk) / (output tokens - 1)."),
    ("E2E", "From the moment the request was written to the end of its response."),
    ("Goodput", "Requests per second that met every limit (SLO) of the run."),
    ("Percentile", "Shown only where the sample is large enough to support it; otherwise a dash."),
    ("Reserved (pool)", "Token slots of the engine's KV pool."),
    ("Allocated", "Slots of blocks that a request holds."),
    ("Live", "Tokens that can still be attended; a shared token counts once."),
    ("Evictable", "Slots of cached blocks that nobody holds; they can be taken at once."),
    ("KV utilisation", "Live / reserved, mean over the measured window."),
    ("Internal fragmentation", "(Allocated - live) / allocated."),
    (
        "KV waste",
        "(Reserved for later + internal + external) / (pool - cached - free): held memory without a token in it.",
    ),
    ("Ledger", "Token states + reserved for later + internal + external + cached + free = every slot of the pool."),
    ("Sharing factor", "Tokens summed over sequences / tokens held, each once; above 1 where sequences share blocks."),
    ("Tokens held per GiB", "Tokens that running requests hold / GiB of the KV pool, mean over the measured window."),
    ("Stall", "A gap in a stream eight times the usual one while others went on: it looks like a preemption."),
    ("Preemption", "A running request lost its KV memory to another and had to be computed again."),
    ("Prefix hits", "Share of the prompt tokens that were found in the prefix cache."),
    ("Outputs agree", "Share of requests that got the same text from the other engine."),
    (
        "VALID / SUSPECT / INVALID",
        "Can this cell be believed? Late sends, loop lag, client CPU, errors, wrong lengths decide.",
    ),
    ("One run each", "No repeat was made, so noise between runs is unknown and small differences mean nothing."),
]
