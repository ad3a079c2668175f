"""The soak of ``soak.py``, shorter: on the simulated runner by default, on the real model when slow tests run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import soak


def test_everything_is_given_back_after_a_short_soak() -> None:
    found = asyncio.run(soak.soak(6.0, ["--simulate", "h100-llama-3.1-8b"]))
    assert found["broken"] == [], found
    assert found["requests"]["answered"] > 20
    assert found["requests"]["cut"] > 3


@pytest.mark.slow
def test_everything_is_given_back_after_two_minutes_on_the_real_model() -> None:
    found = asyncio.run(soak.soak(120.0, ["--model", "smollm2"]))
    assert found["broken"] == [], found


@pytest.mark.parametrize(("leak", "is_growth"), [(0.0, False), (6.0, True)])
def test_steps_up_and_down_are_no_growth_and_a_leak_is(leak: float, is_growth: bool) -> None:
    """Ten minutes, a sample a second: steps of 14 MiB that last 45 to 90 s, as measured, over ``leak`` [MiB/min]."""
    stairs = [14.0 * ((second // 45) % 3 == 0) for second in range(600)]
    rss = [(float(s), int((1500 + stair + leak * s / 60) * 2**20)) for s, stair in enumerate(stairs)]
    growth, noise = soak._slope(rss)
    assert (growth > max(3 * noise, 2.0)) == is_growth
    assert noise > 0.5
