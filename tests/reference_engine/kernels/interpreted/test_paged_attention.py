from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checking import TOLERANCE, Draw, assert_exact, attend, draw, row_error

from reference_engine.attention.base import AttentionMetadata, KVCacheLayer
from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.kernels.cases import Case, Problem, build_problem, exact_attention

CPU = torch.device("cpu")
NUM_DRAWN = 160
NUM_WIDE = 1000


@pytest.mark.parametrize("index", range(NUM_DRAWN))
def test_drawn_case(index: int, seed: int) -> None:
    assert_exact(draw(index), seed + index)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(NUM_DRAWN, NUM_WIDE))
def test_wide_sweep(index: int, seed: int) -> None:
    assert_exact(draw(index), seed + index)


def permuted(problem: Problem) -> Problem:
    """The same sequences in other physical blocks."""
    order = torch.randperm(problem.cache.key.shape[0], generator=torch.Generator().manual_seed(1))
    tables = problem.meta.block_tables.long()
    where = torch.argsort(order)
    moved = torch.where(tables >= 0, where[tables.clamp_min(0)], -1).to(torch.int32)
    cache = KVCacheLayer(problem.cache.key[order], problem.cache.value[order])
    return replace(problem, cache=cache, meta=replace(problem.meta, block_tables=moved))


@pytest.mark.parametrize("index", range(0, 40, 4))
def test_physical_blocks_do_not_matter(index: int, seed: int) -> None:
    drawn = draw(index)
    problem = build_problem(drawn.case, CPU, seed=seed, poison=drawn.poison)
    plan = drawn.plan()
    assert torch.equal(attend(problem, plan), attend(permuted(problem), plan))


DECODE = Case("decode", (1, 1, 1), (5, 33, 100), num_heads=6, num_kv_heads=2, head_dim=64, dtype=torch.float32)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("num_splits", [1, 4])
def test_garbage_in_unused_slots_never_enters(poison: float, num_splits: int, seed: int) -> None:
    drawn = Draw(DECODE, tile=16, num_splits=num_splits, split_size=0, block_m=16, poison=poison)
    clean = attend(build_problem(DECODE, CPU, seed=seed, poison=0.0), drawn.plan())
    assert torch.equal(attend(build_problem(DECODE, CPU, seed=seed, poison=poison), drawn.plan()), clean)


@pytest.mark.parametrize("num_splits", [7, 16, 33])
def test_empty_splits(num_splits: int, seed: int) -> None:
    """More splits than a short sequence has tiles: the surplus ones leave nothing but a note."""
    assert_exact(Draw(DECODE, 16, num_splits, 0, 16, float("nan")), seed)


@pytest.mark.parametrize("num_splits", [1, 4])
@pytest.mark.parametrize("split_size", [0, 32])
def test_padding_rows_are_zero_and_change_nothing(num_splits: int, split_size: int, seed: int) -> None:
    """A CUDA graph's padding: sequences of length 0 whose one row is stored nowhere."""
    problem = build_problem(DECODE, CPU, seed=seed)
    plan = Draw(DECODE, 16, num_splits, split_size, 16, float("nan")).plan()
    meta = problem.meta
    padded = AttentionMetadata(
        query_start_loc=torch.arange(6, dtype=torch.int32),
        seq_lens=torch.cat([meta.seq_lens, torch.zeros(2, dtype=torch.int32)]),
        block_tables=torch.cat([meta.block_tables, torch.full_like(meta.block_tables[:2], -1)]),
        slot_mapping=torch.cat([meta.slot_mapping, torch.full((2,), -1)]),
        block_size=meta.block_size,
        max_query_len=1,
        max_seq_len=meta.max_seq_len,
        query_lens=(1,) * 5,
        seq_lens_list=(*meta.seq_lens_list, 0, 0),
    )
    query = torch.cat([problem.query, torch.full_like(problem.query[:2], float("nan"))])
    result = attend(replace(problem, query=query, meta=padded), plan)
    assert torch.equal(result[3:], torch.zeros_like(result[3:]))
    assert torch.equal(result[:3], attend(problem, plan))


MIXED = Case("mixed", (1, 19, 40, 1), (90, 70, 40, 33), num_heads=8, num_kv_heads=2, head_dim=64, dtype=torch.float16)


def one_sequence(problem: Problem, index: int, first: int, count: int) -> Problem:
    """Sequence ``index`` alone, only ``count`` of its query rows from the ``first``."""
    case, meta = problem.case, problem.meta
    start = int(meta.query_start_loc[index]) + first
    seq_len = case.seq_lens[index] - case.query_lens[index] + first + count
    alone = AttentionMetadata(
        query_start_loc=torch.tensor([0, count], dtype=torch.int32),
        seq_lens=torch.tensor([seq_len], dtype=torch.int32),
        block_tables=meta.block_tables[index : index + 1],
        slot_mapping=meta.slot_mapping[start : start + count],
        block_size=meta.block_size,
        max_query_len=count,
        max_seq_len=seq_len,
        query_lens=(count,),
        seq_lens_list=(seq_len,),
    )
    return replace(problem, query=problem.query[start : start + count], meta=alone)


@pytest.mark.parametrize("window", [None, 37])
def test_deterministic_mode_depends_on_the_sequence_alone(window: int | None, seed: int) -> None:
    """Bitwise the same alone and in a batch, chunked and whole, with the runs in one program or in many."""
    case = replace(MIXED, window=window)
    problem = build_problem(case, CPU, seed=seed)
    together = attend(problem, Draw(case, 16, 1, 32, 64, float("nan")).plan())
    for index, (query_len, seq_len) in enumerate(zip(case.query_lens, case.seq_lens, strict=True)):
        start = int(problem.meta.query_start_loc[index])
        half = (query_len + 1) // 2
        for first, count in {(0, query_len), (0, half), (half, query_len - half)}:
            if not count:
                continue
            alone = one_sequence(problem, index, first, count)
            for num_splits in (1, 2):
                lengths = replace(case, query_lens=(count,), seq_lens=(seq_len - query_len + first + count,))
                plan = Draw(lengths, 16, num_splits, 32, 64, float("nan")).plan()
                assert torch.equal(attend(alone, plan), together[start + first : start + first + count])


def test_offsets_beyond_32_bits(seed: int) -> None:
    """A block whose first element lies past 2**31; the pool's memory is reserved, never touched elsewhere."""
    case = Case("far", (1,), (20,), num_heads=8, num_kv_heads=8, head_dim=128, dtype=torch.float16)
    problem = build_problem(case, CPU, seed=seed)
    blocks = 2**31 // (16 * 8 * 128) + 4
    pool = torch.empty(blocks, 16, 8, 128, dtype=torch.float16)
    tables = torch.tensor([[blocks - 1, blocks - 3]], dtype=torch.int32)
    for position in range(20):
        pool[int(tables[0, position // 16]), position % 16] = problem.keys[0][position]
    far = replace(
        problem,
        values=problem.keys,
        cache=KVCacheLayer(pool, pool),
        meta=replace(problem.meta, block_tables=tables),
    )
    result = attend(far, Draw(case, 16, 1, 0, 16, 0.0).plan())
    assert row_error(result, exact_attention(far)) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("query_lens", [(1, 1), (20, 3)])
def test_fp8_cache(dtype: torch.dtype, query_lens: tuple[int, ...], seed: int) -> None:
    """Scales differ by head and by K and V; the truth is the quantised cache, so only the query's rounding remains."""
    case = Case("fp8", query_lens, (40, 33), num_heads=4, num_kv_heads=2, head_dim=64, dtype=dtype)
    problem = build_problem(case, CPU, seed=seed, poison=0.0)
    key_scale, value_scale = torch.tensor([0.5, 0.013]), torch.tensor([0.02, 1.7])
    cache = KVCacheLayer(
        torch.zeros(problem.cache.key.shape, dtype=torch.float8_e4m3fn),
        torch.zeros(problem.cache.key.shape, dtype=torch.float8_e4m3fn),
        key_scale,
        value_scale,
    )
    backend = TritonPagedAttention(CPU)
    whole = replace(
        problem.meta,
        slot_mapping=torch.cat([slots_of(problem, i) for i in range(2)]),
    )
    every_key, every_value = torch.cat(problem.keys), torch.cat(problem.values)
    from reference_engine.kernels.store_kv import store_kv_launch  # late: the fault tests replace it

    store_kv_launch(
        every_key, every_value, cache.key, cache.value, whole.slot_mapping, key_scale=key_scale, value_scale=value_scale
    ).run()

    def quantised(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        units = (rows.float() / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
        return units.double() * scale.double()[:, None]

    truth = replace(
        problem,
        keys=tuple(quantised(k, key_scale) for k in problem.keys),
        values=tuple(quantised(v, value_scale) for v in problem.values),
    )
    result = backend.attend(problem.query, cache, problem.meta, scale=case.scale)
    assert row_error(result, exact_attention(truth)) <= TOLERANCE[dtype]


def slots_of(problem: Problem, index: int) -> torch.Tensor:
    """Slots of all positions of one sequence."""
    position = torch.arange(problem.case.seq_lens[index])
    page = problem.case.page
    return problem.meta.block_tables[index].long()[position // page] * page + position % page


def test_forward_stores_then_attends(seed: int) -> None:
    """The interface: new rows are stored first; a negative slot is not; the cache holds what was given."""
    problem = build_problem(MIXED, CPU, seed=seed)
    key, value = problem.new_rows()
    flat_key = problem.cache.key.view(-1, 2, 64)
    flat_key[problem.meta.slot_mapping] = float("nan")
    backend = TritonPagedAttention(CPU)
    result = backend.forward(problem.query, key, value, problem.cache, problem.meta, scale=MIXED.scale)
    assert row_error(result, exact_attention(problem)) <= TOLERANCE[torch.float16]
    assert torch.equal(flat_key[problem.meta.slot_mapping], key)


def test_strided_query_rows(seed: int) -> None:
    """Queries, keys and values as views of one fused projection, as the model hands them over."""
    problem = build_problem(MIXED, CPU, seed=seed)
    key, value = problem.new_rows()
    fused = torch.cat([problem.query, key, value], dim=1)
    backend = TritonPagedAttention(CPU)
    result = backend.forward(
        fused[:, :8], fused[:, 8:10], fused[:, 10:], problem.cache, problem.meta, scale=MIXED.scale
    )
    assert row_error(result, exact_attention(problem)) <= TOLERANCE[torch.float16]


def test_two_tiles_with_the_largest_page(seed: int) -> None:
    case = Case("page", (3, 1), (260, 257), num_heads=4, num_kv_heads=1, head_dim=64, page=256, dtype=torch.bfloat16)
    assert_exact(Draw(case, 64, 3, 0, 16, float("nan")), seed)
