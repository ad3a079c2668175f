"""The simulated runner: answers depend on the tokens before them, and steps take their time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import simulated_model

from reference_engine.config import CacheConfig
from reference_engine.plan import BlockCopy, ScheduledSeq, StepPlan
from reference_engine.simulate.runner import SimulatedRunner


def runner(step_seconds: float = 0.0, slept: list[float] | None = None) -> SimulatedRunner:
    sleep = (slept if slept is not None else []).append
    return SimulatedRunner(simulated_model.flat_profile(step_seconds), CacheConfig(8, 4), sleep)


def test_logits_depend_on_every_token_before_through_any_table() -> None:
    one = runner()
    one.execute(StepPlan(0, (ScheduledSeq(0, 0, (5, 6, 7, 8, 9), (6, 2), 0),)))
    logits = one.execute(StepPlan(1, (ScheduledSeq(0, 5, (10,), (6, 2), 1),))).sampled[0].numpy()
    assert np.array_equal(logits, simulated_model.next_logits([5, 6, 7, 8, 9, 10]))
    assert not np.array_equal(logits, simulated_model.next_logits([6, 5, 7, 8, 9, 10]))


def test_a_copied_block_carries_the_history() -> None:
    one = runner()
    one.execute(StepPlan(0, (ScheduledSeq(0, 0, (5, 6), (0,), 0),)))
    plan = StepPlan(1, (ScheduledSeq(1, 2, (7,), (3,), 1),), (BlockCopy(0, 3),))
    assert np.array_equal(one.execute(plan).sampled[0].numpy(), simulated_model.next_logits([5, 6, 7]))


def test_a_step_lasts_what_the_profile_says() -> None:
    slept: list[float] = []
    runner(0.5, slept).execute(StepPlan(0, (ScheduledSeq(0, 0, (5,), (0,), 1),)))
    assert slept[0] == pytest.approx(0.5, abs=0.1)


def test_answers_end_after_the_profiles_mean_length() -> None:
    rng = np.random.default_rng(1)
    chains = rng.integers(0, 1 << 63, 20_000).astype(np.uint64)
    from reference_engine.simulate.runner import logits_of
    from reference_engine.simulate.tokenizer import EOS

    ends = (logits_of(chains, 50.0).argmax(-1) == EOS).mean()
    assert ends == pytest.approx(1 / 50, rel=0.2)
