"""store_kv, copy_blocks, merge, norms, RoPE, activation, deterministic product: each against float64 torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference_engine.kernels.copy_blocks import copy_blocks_launch
from reference_engine.kernels.launch_plan import Device, choose_launch
from reference_engine.kernels.linear import linear_launch
from reference_engine.kernels.merge_splits import merge_splits_launch
from reference_engine.kernels.ops import TritonOps
from reference_engine.kernels.rms_norm import head_norm_launch, rms_norm_launch
from reference_engine.kernels.rope import rope_launch, rope_store_kv_launch
from reference_engine.kernels.silu_mul import silu_mul_launch
from reference_engine.kernels.store_kv import store_kv_launch
from reference_engine.models.ops import TorchOps

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ULP = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_close(result: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Element by element within two roundings of ``dtype``."""
    exact = exact.double()
    error = ((result.double() - exact).abs() / (exact.abs() + exact.abs().mean())).max()
    assert float(error) <= ULP[dtype]


@pytest.fixture
def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(random: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=random).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim", "page"), [(1, 64, 16), (3, 80, 7), (8, 128, 1), (2, 256, 256)])
def test_store_kv(dtype: torch.dtype, heads: int, dim: int, page: int, random: torch.Generator) -> None:
    tokens, blocks = 9, 16 if page < 64 else 2
    fused = normal(random, tokens, 2 * heads + 1, dim, dtype=dtype)
    key, value = fused[:, :heads], fused[:, heads : 2 * heads]
    cache = [torch.full((blocks, page, heads, dim), float("nan"), dtype=dtype) for _ in range(2)]
    slots = torch.randperm(blocks * page, generator=random)[:tokens]
    slots[[2, 5]] = -1
    store_kv_launch(key, value, *cache, slots).run()
    stored = slots >= 0
    for pool, rows in zip(cache, (key, value), strict=True):
        flat = pool.view(-1, heads, dim)
        assert torch.equal(flat[slots[stored]], rows[stored])
        untouched = torch.ones(len(flat), dtype=torch.bool)
        untouched[slots[stored]] = False
        assert bool(flat[untouched].isnan().all())


def test_store_kv_in_fp8_rounds_and_saturates_as_torch_does(random: torch.Generator) -> None:
    key = normal(random, 64, 2, 64) * 3
    value = normal(random, 64, 2, 64) * 0.01
    value[0, 0, 0], key[1, 1, 1] = 1e9, -1e9
    scales = torch.tensor([0.1, 0.02]), torch.tensor([1.0, 3e-4])
    cache = [torch.zeros(4, 16, 2, 64, dtype=torch.float8_e4m3fn) for _ in range(2)]
    store_kv_launch(key, value, *cache, torch.arange(64), key_scale=scales[0], value_scale=scales[1]).run()
    for pool, rows, scale in zip(cache, (key, value), scales, strict=True):
        expected = (rows / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
        assert torch.equal(pool.view(64, 2, 64).view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8])
def test_copy_blocks(dtype: torch.dtype, random: torch.Generator) -> None:
    pool = (normal(random, 10, 16, 3, 96) * 50).to(dtype)
    before = pool.clone()
    pairs = torch.tensor([[0, 7], [3, 2], [3, 9]])
    copy_blocks_launch(pool, pool, pairs).run()
    expected = before.clone()
    expected[pairs[:, 1]] = before[pairs[:, 0]]
    assert torch.equal(pool, expected)
    staging = torch.zeros(2, 16, 3, 96, dtype=dtype)
    copy_blocks_launch(pool, staging, torch.tensor([[7, 1], [9, 0]])).run()
    assert torch.equal(staging, pool[[9, 7]])


@pytest.mark.parametrize("split_size", [0, 32])
@pytest.mark.parametrize("num_splits", [2, 5, 40])
def test_merge_splits(split_size: int, num_splits: int, random: torch.Generator) -> None:
    """Any split may be empty; an empty split's acc is NaN and must not be read."""
    from dataclasses import replace

    rows, heads, dim = 3, 4, 80
    plan = choose_launch(
        num_seqs=rows, max_query_len=1, max_seq_len=64, num_heads=heads, num_kv_heads=2, head_dim=dim,
        device=Device("none", 4, (9, 0)),
    )  # fmt: skip
    plan = replace(plan, num_splits=num_splits, splits=True, split_size=split_size)
    parts = rows * heads * num_splits
    acc, top, total = normal(random, parts, dim), normal(random, parts) * 9, normal(random, parts).abs() + 0.5
    empty = torch.rand(parts, generator=random) < 0.4
    empty.view(rows, heads, num_splits)[1] = True
    acc[empty], top[empty], total[empty] = float("nan"), float("-inf"), 0.0
    out = torch.full((rows + 1, heads, dim), float("nan"))
    # One row more than the sequences have: it lies past query_start_loc[-1] and gets zeros.
    padded = (
        torch.cat([acc, torch.full((heads * num_splits, dim), float("nan"))]),
        torch.cat([top, torch.full((heads * num_splits,), float("nan"))]),
        torch.cat([total, torch.full((heads * num_splits,), float("nan"))]),
    )
    seq_lens = torch.full((rows,), 32 * num_splits, dtype=torch.int32)
    merge_splits_launch(out, padded, seq_lens, torch.arange(rows + 1, dtype=torch.int32), 2, plan).run()
    weight = torch.exp2(top.double() - 20).view(rows, heads, num_splits)
    acc = acc.nan_to_num().double().view(rows, heads, num_splits, dim)
    exact = (weight[..., None] * acc).sum(2) / (weight * total.double().view(weight.shape)).sum(2)[..., None]
    exact = exact.nan_to_num(0.0)
    assert torch.equal(out[3], torch.zeros(heads, dim))
    assert torch.equal(out[1], torch.zeros(heads, dim))
    assert_close(out[:3], exact, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 576, 4096])
def test_rms_norm_adds_the_residual_in_place(dtype: torch.dtype, hidden: int, random: torch.Generator) -> None:
    x, residual = normal(random, 3, hidden, dtype=dtype), normal(random, 3, hidden, dtype=dtype)
    weight = normal(random, hidden, dtype=dtype)
    total = (x.double() + residual.double()).to(dtype)
    normed = torch.full_like(x, float("nan"))
    rms_norm_launch(normed, x, residual, weight, 1e-5).run()
    assert torch.equal(residual, total)
    wide = total.double()
    exact = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    assert_close(normed, exact, dtype)
    plain = torch.full_like(x, float("nan"))
    rms_norm_launch(plain, total, None, weight, 1e-5).run()
    assert torch.equal(plain, normed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (5, 80), (3, 128)])
def test_head_norm(dtype: torch.dtype, heads: int, dim: int, random: torch.Generator) -> None:
    x = normal(random, 4, heads + 2, dim, dtype=dtype)[:, 1 : heads + 1]
    weight = normal(random, dim, dtype=dtype)
    out = torch.full((4, heads, dim), float("nan"), dtype=dtype)
    head_norm_launch(out, x, weight, 1e-6).run()
    wide = x.double()
    assert_close(out, wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * weight.double(), dtype)


def angles(random: torch.Generator, tokens: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    half = torch.rand(tokens, dim // 2, generator=random) * 6.28
    full = torch.cat((half, half), -1)[:, None]
    return full.cos().to(dtype), full.sin().to(dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x, cos, sin = x.double(), cos.double(), sin.double()
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (5, 80), (12, 96)])
def test_rope_in_place(dtype: torch.dtype, heads: int, dim: int, random: torch.Generator) -> None:
    fused = normal(random, 4, heads + 2, dim, dtype=dtype)
    before = fused.clone()
    cos, sin = angles(random, 4, dim, dtype)
    rope_launch(fused[:, :heads], cos, sin).run()
    assert_close(fused[:, :heads], rotated(before[:, :heads], cos, sin), dtype)
    assert torch.equal(fused[:, heads:], before[:, heads:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (9, 3, 64), (5, 5, 80)])
def test_rope_store_kv(dtype: torch.dtype, heads: int, kv_heads: int, dim: int, random: torch.Generator) -> None:
    """One launch gives the bits that rotating and storing in two give; a negative slot stores nothing."""
    tokens = 6
    qkv = normal(random, tokens, heads + 2 * kv_heads, dim, dtype=dtype)
    cos, sin = angles(random, tokens, dim, dtype)
    slots = torch.randperm(32, generator=random)[:tokens]
    slots[4] = -1
    apart = qkv.clone()
    rope_launch(apart[:, : heads + kv_heads], cos, sin).run()
    expected = [torch.full((2, 16, kv_heads, dim), float("nan"), dtype=dtype) for _ in range(2)]
    store_kv_launch(apart[:, heads : heads + kv_heads], apart[:, heads + kv_heads :], *expected, slots).run()
    cache = [torch.full_like(pool, float("nan")) for pool in expected]
    rope_store_kv_launch(qkv.view(tokens, -1), heads, kv_heads, cos, sin, *cache, slots).run()
    assert torch.equal(qkv[:, :heads], apart[:, :heads])
    for pool, want in zip(cache, expected, strict=True):
        assert torch.equal(pool.nan_to_num(-7.0), want.nan_to_num(-7.0))


def test_rope_store_kv_in_fp8(random: torch.Generator) -> None:
    qkv = normal(random, 5, 8, 64)
    cos, sin = angles(random, 5, 64, torch.float32)
    scales = {"key_scale": torch.tensor([0.01, 0.2]), "value_scale": torch.tensor([0.03, 2.0])}
    apart = qkv.clone()
    rope_launch(apart[:, :6], cos, sin).run()
    expected = [torch.zeros(1, 16, 2, 64, dtype=torch.float8_e4m3fn) for _ in range(2)]
    store_kv_launch(apart[:, 4:6], apart[:, 6:], *expected, torch.arange(5), **scales).run()
    cache = [torch.zeros_like(pool) for pool in expected]
    rope_store_kv_launch(qkv.view(5, -1), 4, 2, cos, sin, *cache, torch.arange(5), **scales).run()
    for pool, want in zip(cache, expected, strict=True):
        assert torch.equal(pool.view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("intermediate", [64, 1024, 1536])
def test_silu_mul(dtype: torch.dtype, intermediate: int, random: torch.Generator) -> None:
    gate_up = normal(random, 3, 2 * intermediate, dtype=dtype) * 4
    gate_up[0, 0] = -200.0
    out = torch.full((3, intermediate), float("nan"), dtype=dtype)
    silu_mul_launch(out, gate_up).run()
    gate, up = gate_up.double().chunk(2, -1)
    assert_close(out, torch.nn.functional.silu(gate) * up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_right_and_a_row_does_not_depend_on_the_others(
    dtype: torch.dtype, bias: bool, random: torch.Generator
) -> None:
    x, weight = normal(random, 70, 200, dtype=dtype), normal(random, 90, 200, dtype=dtype)
    offset = normal(random, 90, dtype=dtype) if bias else None
    out = torch.full((70, 90), float("nan"), dtype=dtype)
    linear_launch(out, x, weight, offset).run()
    exact = x.double() @ weight.double().T + (offset.double() if offset is not None else 0.0)
    assert_close(out, exact, dtype)
    alone = torch.full((1, 90), float("nan"), dtype=dtype)
    linear_launch(alone, x[69:], weight, offset).run()
    assert torch.equal(alone, out[69:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_triton_ops_agree_with_torch_ops(dtype: torch.dtype, deterministic: bool, random: torch.Generator) -> None:
    ours, theirs = TritonOps(deterministic=deterministic), TorchOps()
    x, weight = normal(random, 4, 128, dtype=dtype), normal(random, 64, 128, dtype=dtype)
    norm_weight = normal(random, 128, dtype=dtype)
    packed = ours.prepare_linear(weight, None)
    assert_close(ours.linear(x, packed), theirs.linear(x.double(), (weight.double(), None)), dtype)
    for mine, other in zip(
        ours.rms_norm(x, norm_weight, 1e-5, x.clone()), theirs.rms_norm(x, norm_weight, 1e-5, x.clone()), strict=True
    ):
        assert_close(mine, other, dtype)
    cos, sin = angles(random, 4, 32, dtype)
    heads = x.view(4, 4, 32)
    assert_close(ours.rope(heads.clone(), cos, sin), rotated(heads, cos, sin), dtype)
    assert_close(ours.head_norm(heads, norm_weight[:32], 1e-5), theirs.head_norm(heads, norm_weight[:32], 1e-5), dtype)
    assert_close(ours.silu_mul(x), theirs.silu_mul(x.double()), dtype)
    empty = x[:0]
    assert ours.rms_norm(empty, norm_weight, 1e-5)[0].shape == (0, 128)
    assert ours.linear(empty, packed).shape == (0, 64)
    assert ours.silu_mul(empty).shape == (0, 64)
