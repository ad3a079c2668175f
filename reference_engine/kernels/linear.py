"""``x @ weight.T + bias`` in one fixed order of summation, whatever the number of rows (deterministic mode).

::

    x [M, K]   weight [N, K]   bias [N] or none   out [M, N]
    grid (N tiles, M tiles); each program walks all of K in steps of BLOCK_K with one instruction shape

Library products choose their kernel, hence their order of summation, by M; a row's bits then depend on how many
others are in the batch.  Here the tile never changes and K is never split, so they do not.
Method: "Defeating Nondeterminism in LLM Inference" (Thinking Machines, 2025).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from reference_engine.kernels.launcher import Launch, ceil_div

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    x_stride,
    out_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first_row = tl.program_id(1) * BLOCK_M
    first_col = tl.program_id(0) * BLOCK_N
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = first_col + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    row_live = first_row + offs_m < rows
    col_live = offs_n < N
    x_ptr += first_row.to(tl.int64) * x_stride
    x_ptrs = x_ptr + (offs_m[:, None] * x_stride + offs_k[None, :])
    weight_ptrs = weight_ptr + offs_n.to(tl.int64)[:, None] * K + offs_k[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        k_live = offs_k < K - start
        x = tl.load(x_ptrs + start, mask=row_live[:, None] & k_live[None, :], other=0.0)
        weight = tl.load(weight_ptrs + start, mask=col_live[:, None] & k_live[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=col_live, other=0.0).to(tl.float32)[None, :]
    out_ptr += first_row.to(tl.int64) * out_stride
    out_ptrs = out_ptr + (offs_m[:, None] * out_stride + offs_n[None, :])
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=row_live[:, None] & col_live[None, :])


def linear_launch(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Launch:
    """Prepare the launch.  Rows of ``x`` and ``out`` are contiguous; ``weight`` is contiguous."""
    rows, inputs = x.shape
    outputs = weight.shape[0]
    wide = x.element_size() == 4
    block_m, block_n, block_k = (32, 32, 32) if wide else (64, 64, 64)
    return Launch(
        kernel=linear_kernel,
        grid=(ceil_div(outputs, block_n), ceil_div(rows, block_m)),
        arguments={
            "out_ptr": out,
            "x_ptr": x,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "rows": rows,
            "x_stride": x.stride(0),
            "out_stride": out.stride(0),
            "N": outputs,
            "K": inputs,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
            "PRECISION": "ieee",
        },
        options={"num_warps": 4, "num_stages": 2 if wide else 5},
    )
