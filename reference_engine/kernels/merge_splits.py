"""Join the partial results that the splits of one row left (Flash-Decoding's second pass).

::

    acc  fp32 [T * Hq * splits, D]   not divided by sum
    max  fp32 [T * Hq * splits]      -inf: the split was empty and its acc was never written
    sum  fp32 [T * Hq * splits]
    out  [T, Hq, D]

    grid (T, Hq), one row a program

Splits by count are joined CHUNK at a time around the maximum of them all, every load of a chunk in flight at once.
Splits by size (deterministic mode) are joined one after another from the first, with the arithmetic that
paged_attention.py uses when one program does all runs, so that both give the same bits.

A row whose splits are all empty (graph padding: a sequence of length 0) gets zeros; rows past the last sequence too.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from reference_engine.kernels.launcher import Launch, next_power_of_2
from reference_engine.kernels.paged_attention import join_softmax

if TYPE_CHECKING:
    from torch import Tensor

    from reference_engine.kernels.launch_plan import LaunchPlan


@triton.jit(do_not_specialize=["num_seqs", "num_splits"])
def merge_splits_kernel(
    out_ptr,
    part_acc_ptr,
    part_max_ptr,
    part_sum_ptr,
    value_scale_ptr,
    seq_lens_ptr,
    query_start_loc_ptr,
    num_seqs,
    num_splits,
    out_stride,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PAD: tl.constexpr,
    SPLIT_SIZE: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    CHUNK: tl.constexpr,
    DECODE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    offs_d = tl.arange(0, HEAD_DIM_PAD)
    dim_live = offs_d < HEAD_DIM
    used = num_splits
    if row >= tl.load(query_start_loc_ptr + num_seqs):
        used = 0
    elif SPLIT_SIZE > 0:
        # The longest sequence sets the number of splits; a row need not look at those past its own end.
        if DECODE:  # noqa: SIM108 - a constexpr branch: only one side is compiled
            seq = tl.program_id(0)
        else:
            seq = find_sequence_of_row(query_start_loc_ptr, num_seqs, tl.program_id(0))
        used = tl.minimum(num_splits, tl.cdiv(tl.load(seq_lens_ptr + seq), SPLIT_SIZE))

    first = (row * NUM_HEADS + head) * num_splits
    part_max_ptr += first
    part_sum_ptr += first
    part_acc_ptr += first * HEAD_DIM
    row_sum = tl.zeros([1], tl.float32)
    acc = tl.zeros([1, HEAD_DIM_PAD], tl.float32)
    if SPLIT_SIZE > 0:
        row_max = tl.full([1], float("-inf"), tl.float32)
        for index in range(used):
            split = index + tl.arange(0, 1)
            split_max = tl.load(part_max_ptr + split)
            split_sum = tl.load(part_sum_ptr + split)
            written = (split_max > float("-inf"))[:, None] & dim_live[None, :]
            split_acc = tl.load(part_acc_ptr + split[:, None] * HEAD_DIM + offs_d[None, :], mask=written, other=0.0)
            row_max, row_sum, acc = join_softmax(row_max, row_sum, acc, split_max, split_sum, split_acc)
    else:
        every = tl.arange(0, SPLITS_PAD)
        top = tl.max(tl.load(part_max_ptr + every, mask=every < used, other=float("-inf")), 0)
        for start in tl.static_range(0, SPLITS_PAD, CHUNK):
            split = start + tl.arange(0, CHUNK)
            split_max = tl.load(part_max_ptr + split, mask=split < used, other=float("-inf"))
            written = split_max > float("-inf")
            split_sum = tl.load(part_sum_ptr + split, mask=written, other=0.0)
            weight = tl.where(written, tl.exp2(split_max - top), 0.0)
            pointers = part_acc_ptr + split[:, None] * HEAD_DIM + offs_d[None, :]
            split_acc = tl.load(pointers, mask=written[:, None] & dim_live[None, :], other=0.0)
            row_sum += tl.sum(split_sum * weight, 0)
            acc += tl.sum(split_acc * weight[:, None], 0)[None, :]

    out = acc / tl.where(row_sum > 0.0, row_sum, 1.0)[:, None]
    if value_scale_ptr is not None:
        out = out * tl.load(value_scale_ptr + head // GROUP)
    out_ptrs = out_ptr + row * out_stride + head * HEAD_DIM + offs_d[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=dim_live[None, :])


@triton.jit
def find_sequence_of_row(query_start_loc_ptr, num_seqs, row):
    """Sequence that flat row ``row`` belongs to: the last i with ``query_start_loc[i] <= row``."""
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start_loc_ptr + middle) <= row:
            low = middle + 1
        else:
            high = middle
    return low - 1


def merge_splits_launch(
    out: Tensor,
    partials: tuple[Tensor, Tensor, Tensor],
    seq_lens: Tensor,
    query_start_loc: Tensor,
    num_kv_heads: int,
    plan: LaunchPlan,
    *,
    value_scale: Tensor | None = None,
) -> Launch:
    """Prepare the launch that turns ``partials`` into ``out [T, Hq, D]``; see the module's docstring for the shapes."""
    num_tokens, num_heads, head_dim = out.shape
    part_acc, part_max, part_sum = partials
    splits_pad = 1 if plan.split_size else next_power_of_2(plan.num_splits)
    return Launch(
        kernel=merge_splits_kernel,
        grid=(num_tokens, num_heads),
        arguments={
            "out_ptr": out,
            "part_acc_ptr": part_acc,
            "part_max_ptr": part_max,
            "part_sum_ptr": part_sum,
            "value_scale_ptr": value_scale,
            "seq_lens_ptr": seq_lens,
            "query_start_loc_ptr": query_start_loc,
            "num_seqs": seq_lens.shape[0],
            "num_splits": plan.num_splits,
            "out_stride": out.stride(0),
            "NUM_HEADS": num_heads,
            "GROUP": num_heads // num_kv_heads,
            "HEAD_DIM": head_dim,
            "HEAD_DIM_PAD": plan.head_dim_pad,
            "SPLIT_SIZE": plan.split_size,
            "SPLITS_PAD": splits_pad,
            "CHUNK": min(splits_pad, 32),
            "DECODE": plan.decode,
        },
        options={"num_warps": max(1, min(4, splits_pad // 8)), "num_stages": 3},
    )
