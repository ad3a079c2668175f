"""Calibration: the fit gives back the costs that made the log, and leaves out times in which the engine stood idle."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from reference_engine.config import ConfigError
from reference_engine.simulate.calibrate import calibrate
from reference_engine.simulate.profile import load_profile


def log(steps: int, idle_every: int = 10**9) -> Iterator[str]:
    """5 ms a step, 0.2 ms a sequence, 1 us a context token, 50 us a token."""
    r = random.Random(1)
    now, first = 0.0, 0
    for step in range(steps):
        if step and step % idle_every == 0:
            now, first = now + 10.0, first + 100
        parts = [(first + i, r.randint(0, 900), r.choice((1, 1, 1, 40))) for i in range(r.randint(1, 12))]
        seqs = [{"seq_id": seq, "start": start, "tokens": [0] * count} for seq, start, count in parts]
        yield json.dumps({"step": step, "t_ns": round(now * 1e9), "seqs": seqs})
        tokens = sum(count for _, _, count in parts)
        now += 5e-3 + 2e-4 * len(parts) + 1e-6 * (sum(start for _, start, _ in parts) + tokens) + 5e-5 * tokens


@pytest.mark.parametrize("idle_every", [10**9, 20])
def test_the_costs_behind_a_log_are_found(idle_every: int) -> None:
    found = calibrate(log(400, idle_every), load_profile("a100-opt-13b"), "mine")
    profile = found.profile
    times = (profile.fixed, profile.per_sequence, profile.per_context_token, profile.per_token)
    assert times == pytest.approx((5e-3, 2e-4, 1e-6, 5e-5), rel=1e-3)
    assert found.r_squared > 0.9999
    assert profile.name == "mine"
    assert profile.sources["fixed"].startswith("measured")
    assert profile.cost(3, 5, 1000, 16) == pytest.approx(5e-3 + 6e-4 + 1e-3 + 2.5e-4, rel=1e-3)


def test_a_short_or_foreign_log_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 9 steps with a time; 50 are needed"):
        calibrate(log(10), load_profile("a100-opt-13b"), "mine")
    with pytest.raises(ConfigError, match="not a plan log"):
        calibrate(["{}"], load_profile("a100-opt-13b"), "mine")
