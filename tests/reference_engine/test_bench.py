"""A drained batch on an engine without weights."""

from __future__ import annotations

from reference_engine.bench import Ask, drive, interleaved
from reference_engine.request import SamplingParams
from tests.reference_engine.hash_model import make_engine


def test_every_order_comes_first_once() -> None:
    order = interleaved(("a", "b", "c"), 3)
    assert [name for _, name in order] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert [number for number, _ in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_parallel_samples_save_blocks_and_single_ones_none() -> None:
    saved = []
    for n in (1, 4):
        engine, _ = make_engine(prefix_caching=False)
        saved.append(drive(engine, [Ask((70,) * 32, SamplingParams(max_tokens=8, ignore_eos=True, n=n))]).blocks_saved)
    assert saved[0] == 0
    # Eight prompt blocks stand once instead of four times, beside one or two own ones of each sample.
    assert 0.55 < saved[1] < 0.75


def test_reserving_policies_waste_what_paged_does_not() -> None:
    waste = {}
    for policy in ("orca-max", "paged"):
        engine, _ = make_engine(num_blocks=64, prefix_caching=False, policy=policy, max_model_len=128)
        asks = [Ask((70 + k,) * 8, SamplingParams(max_tokens=24, ignore_eos=True)) for k in range(12)]
        found = drive(engine, asks)
        waste[policy] = found.waste
        assert found.output_tokens == 12 * 24
    assert waste["orca-max"] > 0.5
    assert waste["paged"] < 0.25
