"""How series are told apart: colour, dash and marker together, so that colour is never the only channel.

Charts are drawn with placeholder colours; the page replaces each by a CSS class, so that one SVG serves light, dark and
print.  The hues are Okabe and Ito's; the page's style sheet shifts their lightness per theme to keep 3:1 contrast.
"""

from __future__ import annotations

from typing import NamedTuple


class SeriesStyle(NamedTuple):
    """One engine's look in line charts."""

    color: str  # placeholder
    dash: list[int]
    marker: str  # Vega symbol name
    css: str  # class suffix: .f-s1 fills, .k-s1 strokes


_DASHES: list[list[int]] = [[1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 2], [12, 3], [1, 3], [6, 2, 2, 2, 2, 2]]
_MARKERS = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]

SERIES = [
    SeriesStyle(f"#0a00{i:02x}", dash, marker, f"s{i}")
    for i, (dash, marker) in enumerate(zip(_DASHES, _MARKERS, strict=True), start=1)
]


class LedgerWord(NamedTuple):
    """One layer of the stacked KV charts."""

    name: str
    label: str
    color: str  # placeholder
    css: str
    is_waste: bool
    meaning: str


# From the bottom of the stack to its top.  Waste is hatched, so that it is seen without colour.
LEDGER = [
    LedgerWord(
        "token_states", "token states", "#0b0001", "live", False, "slots that hold a token of a running request"
    ),
    LedgerWord("internal", "internal", "#0b0002", "internal", True, "slots allocated that no token will ever use"),
    LedgerWord("reserved", "reserved", "#0b0003", "reserved", True, "slots kept for tokens that will still come"),
    LedgerWord("external", "external", "#0b0004", "external", True, "slots free, but not usable under this policy"),
    LedgerWord("cached", "cached", "#0b0005", "cached", False, "cached blocks that nobody holds and anyone may take"),
    LedgerWord("free", "free", "#0b0006", "free", False, "slots free"),
]

# What an engine without a ledger tells (reserved, allocated, live, evictable), as layers of the same stack.
POOL = [
    LedgerWord("live", "live", "#0b0001", "live", False, "tokens that can still be attended"),
    LedgerWord(
        "unfilled", "allocated, not live", "#0b0002", "internal", True, "slots of held blocks without such a token"
    ),
    LedgerWord("evictable", "evictable", "#0b0005", "cached", False, "cached blocks that nobody holds"),
    LedgerWord("unheld", "unheld", "#0b0006", "free", False, "the rest of the reserved pool"),
]

# What an engine tells that reports one gauge only.
USAGE = [
    LedgerWord("held", "held by requests", "#0b0007", "held", False, "share of the pool that requests hold"),
    LedgerWord("unheld", "unheld", "#0b0006", "free", False, "the rest of the pool"),
]

TEXT, MUTED, GRID, SURFACE, SLO, ON_LIVE = (f"#0c000{i}" for i in range(1, 7))

CLASSES: dict[str, str] = (
    {style.color: style.css for style in SERIES}
    | {word.color: word.css for word in (*LEDGER, *POOL, *USAGE)}
    | {TEXT: "text", MUTED: "muted", GRID: "grid", SURFACE: "surface", SLO: "slo", ON_LIVE: "onlive"}
)


def series_style(index: int) -> SeriesStyle:
    """The look of the engine with this index; after eight the looks repeat."""
    return SERIES[index % len(SERIES)]
