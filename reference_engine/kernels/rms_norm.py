"""RMS norm: of whole rows with the residual addition fused in, and of single heads (QK norm).

::

    rms_norm    x, residual, normed [T, H]      residual <- x + residual (rounded to its dtype),
                normed <- norm(residual) * weight
                grid (T,), one row a program
    head_norm   x [T, heads, D] as a view into wider rows, out [T, heads, D] contiguous; norm over D
                grid (T, heads)

Sums in fp32.  A row's result depends on that row alone, so both are batch-invariant.
Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from reference_engine.kernels.launcher import Launch, next_power_of_2

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def normalize_row(row, weight, eps, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """``row`` fp32 over its root mean square, rounded to the model's dtype, times ``weight``: the order Llama models
    use.
    """
    scale = tl.rsqrt(tl.sum(row * row, 0) / WIDTH + eps)
    return (row * scale).to(DTYPE).to(tl.float32) * weight.to(tl.float32)


@triton.jit
def rms_norm_kernel(
    normed_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    x_stride,
    eps,
    HIDDEN: tl.constexpr,
    HIDDEN_PAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, HIDDEN_PAD)
    live = offs < HIDDEN
    row = tl.load(x_ptr + token * x_stride + offs, mask=live, other=0.0).to(tl.float32)
    dtype = normed_ptr.dtype.element_ty
    if residual_ptr is not None:
        residual_ptr += token * HIDDEN
        row += tl.load(residual_ptr + offs, mask=live, other=0.0).to(tl.float32)
        stored = row.to(dtype)
        tl.store(residual_ptr + offs, stored, mask=live)
        row = stored.to(tl.float32)
    weight = tl.load(weight_ptr + offs, mask=live, other=0.0)
    normed = normalize_row(row, weight, eps, HIDDEN, dtype)
    tl.store(normed_ptr + token * HIDDEN + offs, normed.to(dtype), mask=live)


@triton.jit
def head_norm_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    x_stride,
    eps,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    offs = tl.arange(0, HEAD_DIM_PAD)
    live = offs < HEAD_DIM
    row = tl.load(x_ptr + token * x_stride + head * HEAD_DIM + offs, mask=live, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + offs, mask=live, other=0.0)
    dtype = out_ptr.dtype.element_ty
    normed = normalize_row(row, weight, eps, HEAD_DIM, dtype)
    tl.store(out_ptr + (token * HEADS + head) * HEAD_DIM + offs, normed.to(dtype), mask=live)


def rms_norm_launch(normed: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Launch:
    """Prepare the launch.  ``normed`` and ``residual`` are contiguous; ``residual`` is updated in place."""
    hidden = x.shape[1]
    return Launch(
        kernel=rms_norm_kernel,
        grid=(x.shape[0],),
        arguments={
            "normed_ptr": normed,
            "x_ptr": x,
            "residual_ptr": residual,
            "weight_ptr": weight,
            "x_stride": x.stride(0),
            "eps": eps,
            "HIDDEN": hidden,
            "HIDDEN_PAD": next_power_of_2(hidden),
        },
        options={"num_warps": max(1, min(16, next_power_of_2(hidden) // 512))},
    )


def head_norm_launch(out: Tensor, x: Tensor, weight: Tensor, eps: float) -> Launch:
    """Prepare the launch.  Heads of ``x`` lie D apart inside a row; ``out`` is contiguous."""
    tokens, heads, head_dim = x.shape
    return Launch(
        kernel=head_norm_kernel,
        grid=(tokens, heads),
        arguments={
            "out_ptr": out,
            "x_ptr": x,
            "weight_ptr": weight,
            "x_stride": x.stride(0),
            "eps": eps,
            "HEADS": heads,
            "HEAD_DIM": head_dim,
            "HEAD_DIM_PAD": next_power_of_2(head_dim),
        },
        options={"num_warps": 1},
    )
