"""Write new K/V rows into their cache slots.

::

    key, value     [T, Hkv, D], last dimension contiguous, heads D apart
    slot_mapping   int64 [T]; < 0 = skip the row (graph padding)
    cache          key, value: [num_blocks, page, Hkv, D], contiguous: slot s is row s of [num_blocks * page, Hkv * D]
    key_scale      fp32 [Hkv] for an fp8 e4m3 cache: the cache holds value / scale, clamped to +-448

    grid (T,), one row of all K/V heads a program.  Offsets are 64-bit: a cache may exceed 2^31 elements.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from reference_engine.kernels.launcher import Launch, next_power_of_2

if TYPE_CHECKING:
    from torch import Tensor

FP8_E4M3_MAX = 448.0


@triton.jit
def store_row(row_ptr, cache_ptr, scale_ptr, offs, live, HEAD_DIM: tl.constexpr, FP8_MAX: tl.constexpr):
    """Copy one row of all heads, scaled and clamped when ``scale_ptr`` is given."""
    values = tl.load(row_ptr + offs, mask=live, other=0.0)
    if scale_ptr is not None:
        values = values.to(tl.float32) / tl.load(scale_ptr + offs // HEAD_DIM, mask=live, other=1.0)
        values = tl.minimum(tl.maximum(values, -FP8_MAX), FP8_MAX)
    tl.store(cache_ptr + offs, values.to(cache_ptr.dtype.element_ty), mask=live)


@triton.jit
def store_kv_kernel(
    key_ptr,
    value_ptr,
    key_cache_ptr,
    value_cache_ptr,
    key_scale_ptr,
    value_scale_ptr,
    slot_mapping_ptr,
    key_stride,
    value_stride,
    HEAD_DIM: tl.constexpr,
    ROW: tl.constexpr,
    ROW_PAD: tl.constexpr,
    FP8_MAX: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + row)
    if slot < 0:
        return
    offs = tl.arange(0, ROW_PAD)
    live = offs < ROW
    store_row(key_ptr + row * key_stride, key_cache_ptr + slot * ROW, key_scale_ptr, offs, live, HEAD_DIM, FP8_MAX)
    store_row(
        value_ptr + row * value_stride, value_cache_ptr + slot * ROW, value_scale_ptr, offs, live, HEAD_DIM, FP8_MAX
    )


def store_kv_launch(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Launch:
    """Prepare the launch; shapes in the module's docstring."""
    num_tokens, num_kv_heads, head_dim = key.shape
    row = num_kv_heads * head_dim
    return Launch(
        kernel=store_kv_kernel,
        grid=(num_tokens,),
        arguments={
            "key_ptr": key,
            "value_ptr": value,
            "key_cache_ptr": key_cache,
            "value_cache_ptr": value_cache,
            "key_scale_ptr": key_scale,
            "value_scale_ptr": value_scale,
            "slot_mapping_ptr": slot_mapping,
            "key_stride": key.stride(0),
            "value_stride": value.stride(0),
            "HEAD_DIM": head_dim,
            "ROW": row,
            "ROW_PAD": next_power_of_2(row),
            "FP8_MAX": FP8_E4M3_MAX,
        },
        options={"num_warps": max(1, min(8, next_power_of_2(row) // 256))},
    )
