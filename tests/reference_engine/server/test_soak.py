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
