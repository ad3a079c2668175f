"""Numbers as readers see them: a missing value is never a number."""

from __future__ import annotations

import math

import pytest

from reports.words import Spread, byte_size, count, factor, listing, mean_count, number, percent, plural

PRINTERS = (number, percent, count, mean_count, byte_size)


@pytest.mark.parametrize("printer", PRINTERS)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_was_not_measured_is_a_dash(printer: object, value: float | None) -> None:
    assert callable(printer)
    assert printer(value) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.001234, "0.00123"),
        (1.5, "1.50"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (1e6, "1,000,000"),
    ],
)
def test_three_significant_figures(value: float, text: str) -> None:
    assert number(value) == text


def test_shares_counts_bytes_and_factors() -> None:
    assert percent(0.0) == "0 %"
    assert percent(0.004) == "0.40 %"
    assert percent(0.0432) == "4.3 %"
    assert count(7.0) == "7"
    assert count(7.25) == "7.2"
    assert mean_count(7.0) == "7.0"
    assert byte_size(16 << 30) == "16.0 GiB"
    assert byte_size(1536) == "1.50 KiB"
    assert factor(1.06) == "1.06×"
    assert factor(3.14) == "3.1×"
    assert factor(18.2) == "18×"


def test_phrases() -> None:
    assert listing([]) == ""
    assert listing(["a"]) == "a"
    assert listing(["a", "b"]) == "a and b"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert plural(1, "cell") == "1 cell"
    assert plural(1200, "cell") == "1,200 cells"


def test_spread_is_the_median_and_the_range() -> None:
    empty, one, many = Spread(()), Spread((2.0,)), Spread((3.0, 1.0, 2.0))
    assert empty.middle is None
    assert empty.low is None
    assert not one.is_repeated
    assert (many.low, many.middle, many.high) == (1.0, 2.0, 3.0)
