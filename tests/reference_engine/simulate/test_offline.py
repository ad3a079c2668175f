"""Virtual time: clocks that can be computed by hand, and the paper's anchors at a small scale."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from simulated_model import flat_profile

from reference_engine.simulate.beam import beam_blocks_saved
from reference_engine.simulate.offline import WORDS, simulate
from reference_engine.simulate.profile import load_profile
from reference_engine.simulate.trace import ALPACA, SHAREGPT, TracedRequest


def test_the_clock_is_the_sum_of_the_steps() -> None:
    trace = [TracedRequest(0.0, 10, 3), TracedRequest(0.0, 10, 5), TracedRequest(100.0, 4, 2)]
    outcome = simulate(trace, flat_profile(step_seconds=1.0))
    assert (outcome.steps, outcome.seconds, outcome.output_tokens) == (7, 102.0, 10)
    assert sorted(outcome.e2e) == [2.0, 3.0, 5.0]
    assert outcome.ttft == [1.0, 1.0, 1.0]
    assert outcome.normalised_latency == pytest.approx(1.0)


def test_means_are_weighted_by_time_inside_the_window() -> None:
    trace = [TracedRequest(0.0, 10, 4), TracedRequest(0.0, 10, 2)]
    assert simulate(trace, flat_profile(1.0)).running == pytest.approx((2 + 2 + 1 + 1) / 4)
    assert simulate(trace, flat_profile(1.0), window=(1.0, 3.5)).running == pytest.approx((2 + 1 + 0.5) / 2.5)


@pytest.mark.parametrize("policy", ["static", "orca-max", "orca-pow2", "orca-oracle", "paged"])
def test_the_ledger_of_every_policy_adds_up_to_the_pool(policy: str) -> None:
    trace = SHAREGPT.trace(rate=0, count=60, seed=1, max_model_len=2048)
    outcome = simulate(trace, load_profile("a100-opt-13b"), policy=policy, timeline_every=1.0)
    assert sum(outcome.ledger.values()) == pytest.approx(1.0)
    assert len(outcome.e2e) == 60
    assert outcome.output_tokens == sum(request.output for request in trace)
    for _, words in outcome.timeline:
        assert sum(words[word] for word in WORDS) == 983 * 16


def test_the_papers_anchors_hold_on_a_short_saturated_run() -> None:
    trace = SHAREGPT.trace(rate=0, count=220, seed=3, max_model_len=2048)
    profile = load_profile("a100-opt-13b")
    found = {
        policy: simulate(trace, profile, policy=policy, window=(20.0, 80.0), until=80.0)
        for policy in ("orca-max", "orca-pow2", "orca-oracle", "paged")
    }
    running = [outcome.running for outcome in found.values()]
    assert running == sorted(running)
    assert running[0] == pytest.approx(7.0, abs=0.05)
    assert found["orca-max"].ledger["external"] == pytest.approx(0.0885, abs=0.002)
    assert found["paged"].waste < 0.04


def test_a_seed_repeats_a_trace_and_its_lengths_have_the_stated_means() -> None:
    first = ALPACA.trace(rate=10, count=20_000, seed=7, max_model_len=2048)
    assert first == ALPACA.trace(rate=10, count=20_000, seed=7, max_model_len=2048)
    assert first != ALPACA.trace(rate=10, count=20_000, seed=8, max_model_len=2048)
    assert sum(r.prompt for r in first) / 20_000 == pytest.approx(19.31, rel=0.05)
    assert sum(r.output for r in first) / 20_000 == pytest.approx(58.45, rel=0.05)
    assert first[-1].arrival == pytest.approx(2000, rel=0.05)


def test_a_request_that_can_never_fit_is_counted_as_refused() -> None:
    outcome = simulate([TracedRequest(0.0, 100, 50)], flat_profile(1.0), kv_slots=64)
    assert (outcome.refused, outcome.steps) == (1, 0)


def test_samples_share_their_prompt_and_hypotheses_more_than_that() -> None:
    trace = ALPACA.trace(rate=5.0, count=30, seed=1, max_model_len=2048)
    parallel = simulate(trace, load_profile("a100-opt-13b"), n=4).sharing_saved
    alone = simulate(trace, load_profile("a100-opt-13b")).sharing_saved
    assert alone == 0.0
    assert 0.02 < parallel < beam_blocks_saved(trace, width=4, death=0.08, seed=1) < 0.75
    assert beam_blocks_saved(trace, width=4, death=0.0, seed=1) < beam_blocks_saved(trace, width=4, death=0.3, seed=1)
