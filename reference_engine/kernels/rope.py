"""Rotary position embedding in half-split order, in place; alone, or while the new K/V go to their cache slots.

::

    x          [T, heads, D], a view into wider rows, heads D apart        first half a, second half b of each head:
    cos, sin   [T, D], both halves equal                                  a <- a cos - b sin,  b <- b cos + a sin

    rope            grid (T,): all heads of a row in one program
    rope_store_kv   qkv [T, (Hq + 2 Hkv) * D]: rotates the query heads in place; rotates the key heads straight into the
                    cache and copies the value heads there (slot < 0: nothing is stored).  Saves a launch and a pass
                    over K. grid (T, 2): queries, keys and values

Source: Su et al., "RoFormer" (2021), in the half-split order of the Llama checkpoints.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from reference_engine.kernels.launcher import Launch, next_power_of_2
from reference_engine.kernels.store_kv import FP8_E4M3_MAX, store_row

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def rotate(source_ptr, cos_ptr, sin_ptr, heads, half, live, HEAD_DIM: tl.constexpr):
    """Both rotated halves, fp32 ``[heads, half]``, of the heads at ``source_ptr``."""
    dim_live = half < HEAD_DIM // 2
    cos = tl.load(cos_ptr + half, mask=dim_live, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + half, mask=dim_live, other=0.0).to(tl.float32)[None, :]
    offs = heads[:, None] * HEAD_DIM + half[None, :]
    a = tl.load(source_ptr + offs, mask=live, other=0.0).to(tl.float32)
    b = tl.load(source_ptr + HEAD_DIM // 2 + offs, mask=live, other=0.0).to(tl.float32)
    return a * cos - b * sin, b * cos + a * sin


@triton.jit
def rope_kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    x_stride,
    angle_stride,
    HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_PAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS_PAD)
    half = tl.arange(0, HALF_PAD)
    live = (heads < HEADS)[:, None] & (half < HEAD_DIM // 2)[None, :]
    x_ptr += token * x_stride
    a, b = rotate(x_ptr, cos_ptr + token * angle_stride, sin_ptr + token * angle_stride, heads, half, live, HEAD_DIM)
    offs = heads[:, None] * HEAD_DIM + half[None, :]
    dtype = x_ptr.dtype.element_ty
    tl.store(x_ptr + offs, a.to(dtype), mask=live)
    tl.store(x_ptr + HEAD_DIM // 2 + offs, b.to(dtype), mask=live)


@triton.jit
def rope_store_kv_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    key_cache_ptr,
    value_cache_ptr,
    key_scale_ptr,
    value_scale_ptr,
    slot_mapping_ptr,
    qkv_stride,
    angle_stride,
    NUM_HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    KV_HEADS_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_PAD: tl.constexpr,
    ROW: tl.constexpr,
    ROW_PAD: tl.constexpr,
    FP8_MAX: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, HALF_PAD)
    qkv_ptr += token * qkv_stride
    cos_ptr += token * angle_stride
    sin_ptr += token * angle_stride
    if tl.program_id(1) == 0:
        heads = tl.arange(0, HEADS_PAD)
        live = (heads < NUM_HEADS)[:, None] & (half < HEAD_DIM // 2)[None, :]
        a, b = rotate(qkv_ptr, cos_ptr, sin_ptr, heads, half, live, HEAD_DIM)
        offs = heads[:, None] * HEAD_DIM + half[None, :]
        dtype = qkv_ptr.dtype.element_ty
        tl.store(qkv_ptr + offs, a.to(dtype), mask=live)
        tl.store(qkv_ptr + HEAD_DIM // 2 + offs, b.to(dtype), mask=live)
    else:
        slot = tl.load(slot_mapping_ptr + token)
        if slot >= 0:
            kv_heads = tl.arange(0, KV_HEADS_PAD)
            live = (kv_heads < NUM_KV_HEADS)[:, None] & (half < HEAD_DIM // 2)[None, :]
            key_ptr = qkv_ptr + NUM_HEADS * HEAD_DIM
            a, b = rotate(key_ptr, cos_ptr, sin_ptr, kv_heads, half, live, HEAD_DIM)
            # Rounded to the model's dtype first, as when K is rotated alone and stored afterwards.
            a = a.to(qkv_ptr.dtype.element_ty)
            b = b.to(qkv_ptr.dtype.element_ty)
            if key_scale_ptr is not None:
                scale = tl.load(key_scale_ptr + kv_heads, mask=kv_heads < NUM_KV_HEADS, other=1.0)[:, None]
                a = tl.minimum(tl.maximum(a.to(tl.float32) / scale, -FP8_MAX), FP8_MAX)
                b = tl.minimum(tl.maximum(b.to(tl.float32) / scale, -FP8_MAX), FP8_MAX)
            target = key_cache_ptr + slot * ROW + (kv_heads[:, None] * HEAD_DIM + half[None, :])
            cache_dtype = key_cache_ptr.dtype.element_ty
            tl.store(target, a.to(cache_dtype), mask=live)
            tl.store(target + HEAD_DIM // 2, b.to(cache_dtype), mask=live)
            offs = tl.arange(0, ROW_PAD)
            value_ptr = qkv_ptr + (NUM_HEADS + NUM_KV_HEADS) * HEAD_DIM
            store_row(value_ptr, value_cache_ptr + slot * ROW, value_scale_ptr, offs, offs < ROW, HEAD_DIM, FP8_MAX)


def rope_launch(x: Tensor, cos: Tensor, sin: Tensor) -> Launch:
    """Prepare the launch; ``cos, sin [T, D]`` or ``[T, 1, D]``."""
    tokens, heads, head_dim = x.shape
    return Launch(
        kernel=rope_kernel,
        grid=(tokens,),
        arguments={
            "x_ptr": x,
            "cos_ptr": cos,
            "sin_ptr": sin,
            "x_stride": x.stride(0),
            "angle_stride": cos.stride(0),
            "HEADS": heads,
            "HEADS_PAD": next_power_of_2(heads),
            "HEAD_DIM": head_dim,
            "HALF_PAD": next_power_of_2(head_dim // 2),
        },
        options={"num_warps": warps_for(heads * head_dim)},
    )


def rope_store_kv_launch(
    qkv: Tensor,
    num_heads: int,
    num_kv_heads: int,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Launch:
    """Prepare the launch.  ``qkv [T, (Hq + 2 Hkv) * D]``; the cache as in store_kv.py."""
    head_dim = key_cache.shape[3]
    row = num_kv_heads * head_dim
    return Launch(
        kernel=rope_store_kv_kernel,
        grid=(qkv.shape[0], 2),
        arguments={
            "qkv_ptr": qkv,
            "cos_ptr": cos,
            "sin_ptr": sin,
            "key_cache_ptr": key_cache,
            "value_cache_ptr": value_cache,
            "key_scale_ptr": key_scale,
            "value_scale_ptr": value_scale,
            "slot_mapping_ptr": slot_mapping,
            "qkv_stride": qkv.stride(0),
            "angle_stride": cos.stride(0),
            "NUM_HEADS": num_heads,
            "HEADS_PAD": next_power_of_2(num_heads),
            "NUM_KV_HEADS": num_kv_heads,
            "KV_HEADS_PAD": next_power_of_2(num_kv_heads),
            "HEAD_DIM": head_dim,
            "HALF_PAD": next_power_of_2(head_dim // 2),
            "ROW": row,
            "ROW_PAD": next_power_of_2(row),
            "FP8_MAX": FP8_E4M3_MAX,
        },
        options={"num_warps": warps_for(num_heads * head_dim)},
    )


def warps_for(elements: int) -> int:
    """Warps for a program that handles ``elements`` 16-bit elements: eight 16-byte accesses a thread at most."""
    return max(1, min(8, next_power_of_2(elements) // 1024))
