"""The arithmetic of the KV benchmarks, and a drained batch on an engine without weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "reference_engine"))

from bench_pressure import BLOCK, blocks_of, lengths
from engine_bench import paired_cost, spread
from hash_model import make_engine

from reference_engine.bench import Ask, drive
from reference_engine.request import SamplingParams


def test_the_cost_is_that_of_the_pairs_and_its_interval_grows_with_their_noise() -> None:
    without = [100.0, 50.0, 200.0, 80.0, 120.0, 90.0, 70.0, 60.0]
    cost, half_width = paired_cost([0.98 * rate for rate in without], without)
    assert cost == pytest.approx(0.02)
    assert half_width == pytest.approx(0.0, abs=1e-9)
    noisy = [rate * factor for rate, factor in zip(without, (0.9, 1.1) * 4, strict=True)]
    assert paired_cost(noisy, without)[1] == pytest.approx(0.1)


def test_the_interval_has_the_ranks_of_the_sign_test() -> None:
    """Of 12 pairs the 3rd and the 10th: 2 * P(Binomial(12, 1/2) <= 2) = 3.9 %, with one rank more 14.6 %."""
    _, half_width = paired_cost([1 - k / 100 for k in range(12)], [1.0] * 12)
    assert half_width == pytest.approx((9 - 2) / 100 / 2)


def test_too_few_pairs_give_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 6"):
        paired_cost([1.0] * 5, [1.0] * 5)


def test_spread_names_median_and_range() -> None:
    assert spread([3.0, 1.0, 2.25]) == "2.2 (1.0-3.0)"


def test_the_full_pool_holds_every_request_to_its_end() -> None:
    asked = lengths(9, seed=2)
    engine, _ = make_engine(num_blocks=blocks_of(asked), block_size=BLOCK, prefix_caching=False, watermark=0.0)
    asks = [Ask((65,) * prompt, SamplingParams(max_tokens=output, ignore_eos=True)) for prompt, output in asked]
    found = drive(engine, asks)
    assert found.preemptions == found.recomputed_tokens == 0
    assert found.output_tokens == sum(output for _, output in asked)
    assert len(found.ttft_s) == len(asks)


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_a_cut_pool_shows_in_the_counters(mode: str) -> None:
    engine, _ = make_engine(
        num_blocks=24, block_size=4, num_host_blocks=100, prefix_caching=False, preemption=mode, watermark=0.0
    )
    asks = [Ask((65 + k,) * 8, SamplingParams(max_tokens=40, ignore_eos=True)) for k in range(6)]
    found = drive(engine, asks)
    assert found.preemptions > 0
    assert (found.swaps > 0) == (mode == "swap")
    assert (found.swapped_out_blocks > 0) == (mode == "swap")
    assert (found.recomputed_tokens > 0) == (mode == "recompute")
    assert 1 < found.at_once < 6
