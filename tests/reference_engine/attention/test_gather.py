"""The CPU backend against the fp64 oracle: fuzzed shapes, shuffled blocks, NaN wherever no token lies."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from reference_engine.attention.base import KVCacheLayer, store_kv
from reference_engine.attention.gather import GatherAttention
from reference_engine.attention.naive import NaiveAttention
from reference_engine.attention.sparse_decode import Group, SparseDecode, group_by_length

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def compare(case: Any, *, window: int | None = None, soft_cap: float | None = None, backend: Any = None) -> None:
    options = {"scale": case.query.shape[-1] ** -0.5, "window": window, "soft_cap": soft_cap}
    cache = case.fresh_cache()
    expected = NaiveAttention(torch.float64).forward(case.query, case.key, case.value, cache, case.meta, **options)
    ours = (backend or GatherAttention()).forward(case.query, case.key, case.value, case.cache, case.meta, **options)
    assert not expected.isnan().any()
    error = TOLERANCE[case.query.dtype]
    torch.testing.assert_close(ours, expected, rtol=error, atol=error)
    assert torch.equal(case.cache.key.nan_to_num(7), cache.key.nan_to_num(7)), "another slot was written"
    assert torch.equal(case.cache.value.nan_to_num(7), cache.value.nan_to_num(7))


def random_lengths() -> list[tuple[int, int]]:
    """Decodes, fresh prompts and chunks in any order."""
    kinds = [
        lambda: (random.randrange(1, 90), 1),
        lambda: (0, random.randrange(1, 40)),
        lambda: (random.randrange(1, 60), random.randrange(2, 20)),
    ]
    return [random.choice(kinds)() for _ in range(random.randrange(1, 7))]


@pytest.mark.parametrize("block_size", [1, 2, 3, 7, 16, 33, 256])
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (9, 3), (8, 1)], ids=lambda h: f"{h[0]}on{h[1]}")
def test_fuzz(block_size: int, heads: tuple[int, int], make_case: Any) -> None:
    dim = random.choice([8, 16, 20, 64])
    case = make_case(random_lengths(), *heads, dim, block_size)
    compare(case, window=random.choice([None, None, 1, 3, 17, 500]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 9])
def test_half_precision_pools(dtype: torch.dtype, window: int | None, make_case: Any) -> None:
    compare(make_case([(30, 1), (5, 1), (0, 12), (9, 4), (0, 1)], 6, 2, 16, 5, dtype), window=window)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("lengths", [[(30, 1)], [(30, 1), (5, 1), (17, 1)], [(0, 12)], [(9, 4), (3, 1)]])
def test_soft_cap(window: int | None, lengths: list[tuple[int, int]], make_case: Any) -> None:
    case = make_case(lengths)
    compare(case, window=window, soft_cap=0.8)
    uncapped = GatherAttention().forward(
        case.query, case.key, case.value, case.cache, case.meta, scale=0.25, window=window
    )
    capped = GatherAttention().forward(
        case.query, case.key, case.value, case.cache, case.meta, scale=0.25, window=window, soft_cap=0.8
    )
    assert (uncapped - capped).abs().max() > 1e-3, "the cap must matter here"


@pytest.mark.parametrize("lengths", [[(40, 1)], [(0, 40)], [(13, 27)], [(40, 1), (24, 5)]])
def test_blocks_in_one_run_give_the_same(lengths: list[tuple[int, int]], make_case: Any) -> None:
    """Physical blocks in ascending order are read in place; the result does not depend on it."""
    compare(make_case(lengths, in_order=True))


def test_one_instance_over_many_steps_and_windows(make_case: Any) -> None:
    backend = GatherAttention()
    for _ in range(12):
        case = make_case(random_lengths(), 6, 2, 16, random.choice([1, 4, 16]))
        for window in random.sample([None, 1, 6, 30], 3):
            compare(case, window=window, backend=backend)


def test_very_ragged_decodes(make_case: Any) -> None:
    """A long one among short ones must neither pad them all nor mix them up."""
    lengths = [(3, 1), (700, 1), (1, 1), (64, 1), (65, 1), (0, 1), (699, 1)]
    compare(make_case(lengths, 6, 2, 8, 16))


@pytest.mark.parametrize("spare_blocks", [0, 400])
@pytest.mark.parametrize("shared_blocks", [0, 3])
def test_both_orders_of_the_scores(spare_blocks: int, shared_blocks: int, make_case: Any) -> None:
    """Near each other in the pool or scattered over it, with a common prefix (each of its keys has many owners) or not."""
    lengths = [(random.randrange(12, 40), 1) for _ in range(5)]
    case = make_case(lengths, 6, 2, 16, 4, spare_blocks=spare_blocks, shared_blocks=shared_blocks)
    backend = GatherAttention()
    for window in (None, 9, 17):
        compare(case, window=window, backend=backend)
    decodes = backend._indices[None].decodes
    assert isinstance(decodes, SparseDecode)
    assert type(decodes._scorer).__name__ == ("_ScoresByKey" if spare_blocks == 0 else "_ScoresByQuery")


def test_rows_without_a_slot_are_not_stored(make_case: Any) -> None:
    """Padding rows carry slot -1: whatever they hold stays out of the pool."""
    case = make_case([(9, 1), (0, 5)])
    meta = case.meta
    negative = meta.slot_mapping.clone()
    negative[3] = -1
    padded = type(meta)(
        meta.query_start_loc,
        meta.seq_lens,
        meta.block_tables,
        negative,
        meta.block_size,
        meta.max_query_len,
        meta.max_seq_len,
        meta.query_lens,
        meta.seq_lens_list,
    )
    before = case.cache.key.clone()
    GatherAttention().forward(case.query, case.key, case.value, case.cache, padded, scale=1.0)
    skipped = int(meta.slot_mapping[3])
    assert case.cache.key.flatten(0, 1)[skipped].isnan().all()
    written = [int(s) for s in negative if s >= 0]
    flat, old = case.cache.key.flatten(0, 1), before.flatten(0, 1)
    others = [s for s in range(len(flat)) if s not in written]
    assert torch.equal(flat[others].nan_to_num(7), old[others].nan_to_num(7))


def test_store_kv_skips_negative_slots() -> None:
    cache = KVCacheLayer(torch.zeros(3, 4, 2, 5), torch.zeros(3, 4, 2, 5))
    key, value = torch.randn(4, 2, 5), torch.randn(4, 2, 5)
    store_kv(key, value, cache, torch.tensor([7, -1, 0, -5]))
    flat_key, flat_value = cache.key.flatten(0, 1), cache.value.flatten(0, 1)
    assert torch.equal(flat_key[7], key[0])
    assert torch.equal(flat_value[0], value[2])
    assert flat_key.abs().sum() == pytest.approx(float(key[[0, 2]].abs().sum()))
    assert flat_key[11].abs().sum() == 0, "a negative slot must not wrap around to the end"


def test_result_does_not_depend_on_physical_ids(make_case: Any) -> None:
    """The same tokens in other blocks: bitwise the same output."""
    torch.manual_seed(random.randrange(2**31))
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        torch.set_rng_state(state)
        case = make_case([(50, 1), (20, 1), (33, 6)], 6, 2, 16, 4)
        results.append(GatherAttention().forward(case.query, case.key, case.value, case.cache, case.meta, scale=0.25))
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize(
    ("lengths", "padding", "expected"),
    [
        ([5], 0, [Group(0, 1, 5)]),
        ([9, 9, 9], 0, [Group(0, 3, 9)]),
        ([9, 8], 0, [Group(0, 1, 9), Group(1, 2, 8)]),
        ([9, 8, 7, 1], 3, [Group(0, 3, 9), Group(3, 4, 1)]),
        ([100, 90, 10, 9], 16, [Group(0, 2, 100), Group(2, 4, 10)]),
    ],
)
def test_group_by_length(lengths: list[int], padding: int, expected: list[Group]) -> None:
    assert group_by_length(lengths, padding) == expected


def test_groups_cover_everything_and_bound_the_padding() -> None:
    for _ in range(300):
        lengths = sorted((random.randrange(1, 2000) for _ in range(random.randrange(1, 40))), reverse=True)
        allowed = random.randrange(0, 500)
        groups = group_by_length(lengths, allowed)
        assert [i for g in groups for i in range(g.begin, g.end)] == list(range(len(lengths)))
        for group in groups:
            inside = lengths[group.begin : group.end]
            assert group.length == max(inside)
            assert sum(group.length - length for length in inside) <= allowed
