"""Paged attention: one varlen kernel for prefill, chunked prefill, decode and mixed batches.

::

    cache       key, value: [num_blocks, page, Hkv, D]; position p of a sequence lives in block table[p // page], slot
                p % page
    Q block     BLOCK_Q tokens x (Hq / Hkv) heads of one K/V head, packed as the BLOCK_M rows of tl.dot
                row m -> token m // GROUP, query head kv_head * GROUP + m % GROUP
    K/V tile    TILE positions, whatever the page size: a vector of block ids is loaded, then TILE rows are gathered
    split       a run of tiles of one sequence; each split leaves (acc, max, sum), merge_splits.py joins them

    grid        (Hkv, Q blocks, splits)   kv heads fastest: programs that run together read neighbouring bytes
    Q blocks    decode (one query a sequence): one a sequence
                else: T // BLOCK_Q + B, an upper bound known without a sync; surplus programs return at once

    Two ways to split    by count: the sequence's tiles in ``num_splits`` equal runs (the fewest idle processors)
                         by size:  runs of SPLIT_SIZE positions at absolute boundaries, so that the order of every sum
                                   depends
                                   on the row's own sequence alone (deterministic mode).  With one program for all of a
                                   sequence (prefill) the same runs are joined inside the kernel by the same arithmetic.

Numbers: scores and softmax in fp32, online, in base 2; the products are tl.dot on the cache's dtype with fp32
accumulation (an fp8 cache is widened to the query's dtype first).  K/V rows outside the split or the sequence are
never loaded, so a NaN in an unused slot cannot enter.

Method: PagedAttention (Kwon et al., SOSP 2023), FlashAttention-2 (Dao, 2023), Flash-Decoding, "The Anatomy of a
Triton Attention Kernel" (arXiv 2511.11581) for Q blocks that pack the group and the search for the sequence.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from reference_engine.kernels.launcher import Launch

if TYPE_CHECKING:
    from torch import Tensor

    from reference_engine.kernels.launch_plan import LaunchPlan

LOG2_E = 1.4426950408889634


@triton.jit
def find_sequence(query_start_loc_ptr, num_seqs, index, BLOCK_Q: tl.constexpr):
    """Sequence that Q block ``index`` belongs to: the last i with ``query_start_loc[i] // BLOCK_Q + i <= index``."""
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        first = tl.load(query_start_loc_ptr + middle) // BLOCK_Q + middle
        if first <= index:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def join_softmax(max_a, sum_a, acc_a, max_b, sum_b, acc_b):
    """Softmax state of two runs of positions together.  Explicit fma: the same bits wherever it is compiled in."""
    top = tl.maximum(max_a, max_b)
    safe = tl.where(top == float("-inf"), 0.0, top)
    scale_a = tl.exp2(max_a - safe)
    scale_b = tl.exp2(max_b - safe)
    total = tl.fma(sum_a, scale_a, sum_b * scale_b)
    acc = tl.fma(acc_a, scale_a[:, None] + tl.zeros_like(acc_a), acc_b * scale_b[:, None])
    return top, total, acc


@triton.jit
def load_block_ids(table_ptr, tile, kv_end, MASKED: tl.constexpr, TILE: tl.constexpr, PAGE: tl.constexpr):
    """Physical blocks of the ``TILE`` positions of ``tile``; 0 past ``kv_end``, whose table entries are never read."""
    pos = tile * TILE + tl.arange(0, TILE)
    if MASKED:
        return tl.load(table_ptr + pos // PAGE, mask=pos < kv_end, other=0)
    return tl.load(table_ptr + pos // PAGE)


@triton.jit
def _attend_tile(
    tile,
    block_ids,
    row_max,
    row_sum,
    acc,
    q,
    key_ptr,
    value_ptr,
    query_pos,
    kv_end,
    qk_scale,
    soft_cap,
    MASKED: tl.constexpr,
    TILE: tl.constexpr,
    PAGE: tl.constexpr,
    SLOT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PAD: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold positions ``tile * TILE .. + TILE`` into the softmax state of all rows."""
    offs_d = tl.arange(0, HEAD_DIM_PAD)
    pos = tile * TILE + tl.arange(0, TILE)
    # Slot numbers fit 32 bits, element offsets need not: a widening multiply, shared by K and V.
    offsets = (block_ids * PAGE + pos % PAGE).to(tl.int64) * SLOT
    offsets = offsets[:, None] + offs_d[None, :]
    key_ptrs = key_ptr + offsets
    value_ptrs = value_ptr + offsets
    if MASKED:
        live = (pos < kv_end)[:, None]
        if WINDOW > 0:  # a block behind the window is -1 in the table: it may be somebody else's by now
            live = live & (block_ids >= 0)[:, None]
        if HEAD_DIM != HEAD_DIM_PAD:
            live = live & (offs_d < HEAD_DIM)[None, :]
        k = tl.load(key_ptrs, mask=live, other=0.0)
        v = tl.load(value_ptrs, mask=live, other=0.0)
    elif HEAD_DIM != HEAD_DIM_PAD:
        k = tl.load(key_ptrs, mask=(offs_d < HEAD_DIM)[None, :], other=0.0)
        v = tl.load(value_ptrs, mask=(offs_d < HEAD_DIM)[None, :], other=0.0)
    else:
        k = tl.load(key_ptrs)
        v = tl.load(value_ptrs)

    scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION)
    if SOFT_CAP:
        # cap * tanh(x / cap), with tanh(y) = 1 - 2 / (exp(2 y) + 1): qk_scale is scale * 2 * log2(e) / cap here.
        scores = 1.0 - 2.0 / (tl.exp2(scores * qk_scale) + 1.0)
        to_base_2 = soft_cap
    else:
        to_base_2 = qk_scale
    if MASKED:
        seen = pos[None, :] <= query_pos[:, None]
        if WINDOW > 0:
            seen = seen & (pos[None, :] > query_pos[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))

    # The maximum is scaled by row, so that scaling and subtracting are one fma an element.
    top = tl.maximum(row_max, tl.max(scores, 1) * to_base_2)
    base = top
    if MASKED:
        # A row that has seen nothing yet keeps max -inf; subtracting 0 instead keeps exp2 away from inf - inf.
        base = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp2(scores * to_base_2 - base[:, None])
    fade = tl.exp2(row_max - base)
    row_sum = row_sum * fade + tl.sum(weight, 1)
    acc = acc * fade[:, None]
    acc = tl.dot(weight.to(q.dtype), v.to(q.dtype), acc, input_precision=PRECISION)
    return top, row_sum, acc


@triton.jit(do_not_specialize=["num_seqs", "num_splits", "table_stride"])
def paged_attention_kernel(
    out_ptr,
    part_acc_ptr,
    part_max_ptr,
    part_sum_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    key_scale_ptr,
    value_scale_ptr,
    block_tables_ptr,
    seq_lens_ptr,
    query_start_loc_ptr,
    num_seqs,
    num_splits,
    qk_scale,
    soft_cap,
    out_stride,
    query_stride,
    table_stride,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    SLOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT_SIZE: tl.constexpr,
    STORE_PARTIAL: tl.constexpr,
    DECODE: tl.constexpr,
    TWO_PHASE: tl.constexpr,
    PREFETCH: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    kv_head = tl.program_id(0)
    split = tl.program_id(2)
    if DECODE:
        seq = tl.program_id(1)
        first_token = 0
        query_start = tl.load(query_start_loc_ptr + seq)
    else:
        # Last Q blocks first: under a causal mask they have the most keys, and long programs should start early.
        q_block = tl.num_programs(1) - 1 - tl.program_id(1)
        seq = find_sequence(query_start_loc_ptr, num_seqs, q_block, BLOCK_Q)
        query_start = tl.load(query_start_loc_ptr + seq)
        first_token = (q_block - (query_start // BLOCK_Q + seq)) * BLOCK_Q
    query_len = tl.load(query_start_loc_ptr + seq + 1) - query_start
    if first_token >= query_len:
        return
    seq_len = tl.load(seq_lens_ptr + seq)
    context_len = seq_len - query_len

    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, HEAD_DIM_PAD)
    token = first_token + offs_m // GROUP
    row_live = (offs_m < BLOCK_Q * GROUP) & (token < query_len)
    query_pos = context_len + token
    # 64-bit offsets to the Q block's first row and head; 32 bits do inside the block.
    first_row = (query_start + first_token).to(tl.int64)
    first_head = kv_head * GROUP

    # Positions that any row of this Q block attends: [window_start, kv_stop).
    last_token = tl.minimum(first_token + BLOCK_Q, query_len) - 1
    kv_stop = tl.minimum(context_len + last_token + 1, seq_len)
    window_start = 0
    if WINDOW > 0:
        window_start = tl.maximum(context_len + first_token - WINDOW + 1, 0)
    first_tile = window_start // TILE
    end_tile = tl.cdiv(kv_stop, TILE)
    if SPLIT_SIZE > 0:
        first_run = first_tile * TILE // SPLIT_SIZE
        end_run = tl.cdiv(kv_stop, SPLIT_SIZE)
        if STORE_PARTIAL:
            first_run = tl.maximum(first_run, split)
            end_run = tl.minimum(end_run, split + 1)
            end_tile = tl.minimum(end_tile, (split + 1) * (SPLIT_SIZE // TILE))
            first_tile = tl.maximum(first_tile, split * (SPLIT_SIZE // TILE))
    elif STORE_PARTIAL:
        tiles_per_split = tl.cdiv(tl.maximum(end_tile - first_tile, 0), num_splits)
        first_tile = first_tile + split * tiles_per_split
        end_tile = tl.minimum(end_tile, first_tile + tiles_per_split)

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    if STORE_PARTIAL:
        first_part = (first_row * NUM_HEADS + first_head) * num_splits + split
        part_max_ptr += first_part
        part_sum_ptr += first_part
        part_acc_ptr += first_part * HEAD_DIM
        part = (offs_m // GROUP * NUM_HEADS + offs_m % GROUP) * num_splits
        if first_tile >= end_tile:
            # An empty split says so, in the two numbers that the merge reads first; it leaves no acc.
            tl.store(part_max_ptr + part, row_max, mask=row_live)
            tl.store(part_sum_ptr + part, row_sum, mask=row_live)
            return

    dim_live = row_live[:, None]
    if HEAD_DIM != HEAD_DIM_PAD:
        dim_live = dim_live & (offs_d < HEAD_DIM)[None, :]
    query_ptr += first_row * query_stride + first_head * HEAD_DIM
    query_offsets = offs_m // GROUP * query_stride + offs_m % GROUP * HEAD_DIM
    q = tl.load(query_ptr + (query_offsets[:, None] + offs_d[None, :]), mask=dim_live, other=0.0)
    if key_scale_ptr is not None:
        qk_scale = qk_scale * tl.load(key_scale_ptr + kv_head)
    key_ptr += kv_head * HEAD_DIM
    value_ptr += kv_head * HEAD_DIM
    table_ptr = block_tables_ptr + seq.to(tl.int64) * table_stride
    acc = tl.zeros([BLOCK_M, HEAD_DIM_PAD], tl.float32)

    if SPLIT_SIZE > 0:
        for run in range(first_run, end_run):
            run_first = tl.maximum(first_tile, run * (SPLIT_SIZE // TILE))
            run_end = tl.minimum(end_tile, (run + 1) * (SPLIT_SIZE // TILE))
            run_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
            run_sum = tl.zeros([BLOCK_M], tl.float32)
            run_acc = tl.zeros([BLOCK_M, HEAD_DIM_PAD], tl.float32)
            blocks = load_block_ids(table_ptr, run_first, kv_stop, True, TILE, PAGE)
            for tile in range(run_first, run_end):
                if PREFETCH:
                    following = load_block_ids(table_ptr, tile + 1, kv_stop, True, TILE, PAGE)
                else:
                    blocks = load_block_ids(table_ptr, tile, kv_stop, True, TILE, PAGE)
                run_max, run_sum, run_acc = _attend_tile(
                    tile, blocks, run_max, run_sum, run_acc, q, key_ptr, value_ptr,
                    query_pos, kv_stop, qk_scale, soft_cap,
                    True, TILE, PAGE, SLOT, HEAD_DIM, HEAD_DIM_PAD, WINDOW, SOFT_CAP, PRECISION,
                )  # fmt: skip
                if PREFETCH:
                    blocks = following
            row_max, row_sum, acc = join_softmax(row_max, row_sum, acc, run_max, run_sum, run_acc)
    else:
        masked_from = first_tile
        if TWO_PHASE:
            # Tiles that every row sees whole need no mask: all positions up to the first row's own.
            masked_from = tl.minimum((context_len + first_token + 1) // TILE, end_tile)
            masked_from = tl.maximum(masked_from, first_tile)
            blocks = load_block_ids(table_ptr, first_tile, kv_stop, True, TILE, PAGE)
            for tile in range(first_tile, masked_from):
                if PREFETCH:
                    following = load_block_ids(table_ptr, tile + 1, kv_stop, True, TILE, PAGE)
                else:
                    blocks = load_block_ids(table_ptr, tile, kv_stop, False, TILE, PAGE)
                row_max, row_sum, acc = _attend_tile(
                    tile, blocks, row_max, row_sum, acc, q, key_ptr, value_ptr,
                    query_pos, kv_stop, qk_scale, soft_cap,
                    False, TILE, PAGE, SLOT, HEAD_DIM, HEAD_DIM_PAD, WINDOW, SOFT_CAP, PRECISION,
                )  # fmt: skip
                if PREFETCH:
                    blocks = following
        blocks = load_block_ids(table_ptr, masked_from, kv_stop, True, TILE, PAGE)
        for tile in range(masked_from, end_tile):
            if PREFETCH:
                following = load_block_ids(table_ptr, tile + 1, kv_stop, True, TILE, PAGE)
            else:
                blocks = load_block_ids(table_ptr, tile, kv_stop, True, TILE, PAGE)
            row_max, row_sum, acc = _attend_tile(
                tile, blocks, row_max, row_sum, acc, q, key_ptr, value_ptr,
                query_pos, kv_stop, qk_scale, soft_cap,
                True, TILE, PAGE, SLOT, HEAD_DIM, HEAD_DIM_PAD, WINDOW, SOFT_CAP, PRECISION,
            )  # fmt: skip
            if PREFETCH:
                blocks = following

    # Read again rather than kept: what the epilogue needs of the rows would hold registers all through the loops.
    offs_m += tl.load(query_start_loc_ptr + seq) - query_start
    row_live = (offs_m < BLOCK_Q * GROUP) & (first_token + offs_m // GROUP < query_len)
    dim_live = row_live[:, None]
    if HEAD_DIM != HEAD_DIM_PAD:
        dim_live = dim_live & (offs_d < HEAD_DIM)[None, :]
    if STORE_PARTIAL:
        part = (offs_m // GROUP * NUM_HEADS + offs_m % GROUP) * num_splits
        tl.store(part_max_ptr + part, row_max, mask=row_live)
        tl.store(part_sum_ptr + part, row_sum, mask=row_live)
        tl.store(part_acc_ptr + (part[:, None] * HEAD_DIM + offs_d[None, :]), acc, mask=dim_live)
    else:
        # A row of a sequence without keys (graph padding) has sum 0 and gets zeros, not 0 / 0.
        out = acc / tl.where(row_sum > 0.0, row_sum, 1.0)[:, None]
        if value_scale_ptr is not None:
            out = out * tl.load(value_scale_ptr + kv_head)
        out_ptr += first_row * out_stride + first_head * HEAD_DIM
        out_offsets = offs_m // GROUP * out_stride + offs_m % GROUP * HEAD_DIM
        tl.store(out_ptr + (out_offsets[:, None] + offs_d[None, :]), out.to(out_ptr.dtype.element_ty), mask=dim_live)


def paged_attention_launch(
    out: Tensor,
    partials: tuple[Tensor, Tensor, Tensor] | None,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    plan: LaunchPlan,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Launch:
    """Prepare the launch.

    out, query     [T, Hq, D], last dimension contiguous, heads D apart
    key_cache      [num_blocks, page, Hkv, D], contiguous; value_cache likewise
    block_tables   int32 [B, W]; seq_lens int32 [B]; query_start_loc int32 [B + 1]
    partials       (acc fp32 [T * Hq * splits, D], max fp32 [T * Hq * splits], sum likewise) when ``plan.splits``
    key_scale      fp32 [Hkv]: what one unit of an fp8 cache stands for; value_scale likewise
    """
    num_tokens, num_heads, head_dim = query.shape
    page, num_kv_heads = key_cache.shape[1], key_cache.shape[2]
    num_seqs = seq_lens.shape[0]
    q_blocks = num_seqs if plan.decode else num_tokens // plan.block_q + num_seqs
    qk_scale, cap = scale * LOG2_E, 0.0
    if soft_cap is not None:
        qk_scale, cap = 2.0 * scale * LOG2_E / soft_cap, soft_cap * LOG2_E
    part_acc, part_max, part_sum = partials if partials is not None else (None, None, None)
    return Launch(
        kernel=paged_attention_kernel,
        grid=(num_kv_heads, q_blocks, plan.num_splits),
        arguments={
            "out_ptr": out,
            "part_acc_ptr": part_acc,
            "part_max_ptr": part_max,
            "part_sum_ptr": part_sum,
            "query_ptr": query,
            "key_ptr": key_cache,
            "value_ptr": value_cache,
            "key_scale_ptr": key_scale,
            "value_scale_ptr": value_scale,
            "block_tables_ptr": block_tables,
            "seq_lens_ptr": seq_lens,
            "query_start_loc_ptr": query_start_loc,
            "num_seqs": num_seqs,
            "num_splits": plan.num_splits,
            "qk_scale": qk_scale,
            "soft_cap": cap,
            "out_stride": out.stride(0),
            "query_stride": query.stride(0),
            "table_stride": block_tables.stride(0),
            "NUM_HEADS": num_heads,
            "GROUP": num_heads // num_kv_heads,
            "HEAD_DIM": head_dim,
            "HEAD_DIM_PAD": plan.head_dim_pad,
            "PAGE": page,
            "SLOT": num_kv_heads * head_dim,
            "BLOCK_M": plan.block_m,
            "BLOCK_Q": plan.block_q,
            "TILE": plan.tile,
            "SPLIT_SIZE": plan.split_size,
            "STORE_PARTIAL": plan.splits,
            "DECODE": plan.decode,
            "TWO_PHASE": plan.two_phase and window is None,
            "PREFETCH": plan.prefetch,
            "WINDOW": window or 0,
            "SOFT_CAP": soft_cap is not None,
            "PRECISION": plan.precision,
        },
        options={
            "num_warps": plan.num_warps,
            "num_stages": plan.num_stages,
            # The masked loop alone (window) needs a few registers more than the cap leaves.
            **({"maxnreg": plan.max_registers} if plan.max_registers and window is None else {}),
        },
    )
