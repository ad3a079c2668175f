"""The attention kernel one step at a time, each step timed, for docs/kernels.md.

The first step is a kernel of its own (one query head a program, no tl.dot); all others are the production kernel with
one more of its means switched on.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from tune import attend

from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.kernels.cases import Case, Problem, build_problem, decode_case, exact_attention, relative_error
from reference_engine.kernels.launch_plan import LaunchPlan, Tiling, choose_launch
from reference_engine.kernels.timing import time_calls


@triton.jit
def one_head_decode_kernel(
    out_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    tables_ptr,
    seq_lens_ptr,
    scale,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
):
    seq = tl.program_id(0)
    head = tl.program_id(1)
    offs_d = tl.arange(0, DIM)
    offs_p = tl.arange(0, PAGE)
    row = (seq * HEADS + head) * DIM
    q = tl.load(query_ptr + row + offs_d).to(tl.float32) * scale
    seq_len = tl.load(seq_lens_ptr + seq)
    top = float("-inf")
    total = 0.0
    acc = tl.zeros([DIM], tl.float32)
    for page in range(0, tl.cdiv(seq_len, PAGE)):
        block = tl.load(tables_ptr + seq * table_stride + page).to(tl.int64)
        live = page * PAGE + offs_p < seq_len
        offs = ((block * PAGE + offs_p) * KV_HEADS + head // (HEADS // KV_HEADS))[:, None] * DIM + offs_d[None, :]
        k = tl.load(key_ptr + offs, mask=live[:, None], other=0.0).to(tl.float32)
        v = tl.load(value_ptr + offs, mask=live[:, None], other=0.0).to(tl.float32)
        scores = tl.where(live, tl.sum(k * q[None, :], 1), float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 0))
        weight = tl.exp2(scores - new_top)
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weight, 0)
        acc = acc * fade + tl.sum(weight[:, None] * v, 0)
        top = new_top
    tl.store(out_ptr + row + offs_d, (acc / total).to(out_ptr.dtype.element_ty))


def one_head_decode(problem: Problem) -> torch.Tensor:
    """Decode by the naive kernel."""
    case, meta = problem.case, problem.meta
    out = torch.empty_like(problem.query)
    one_head_decode_kernel[(len(case.seq_lens), case.num_heads)](
        out,
        problem.query,
        problem.cache.key,
        problem.cache.value,
        meta.block_tables,
        meta.seq_lens,
        case.scale * 1.4426950408889634,
        meta.block_tables.stride(0),
        HEADS=case.num_heads,
        KV_HEADS=case.num_kv_heads,
        DIM=case.head_dim,
        PAGE=case.page,
        num_warps=4,
    )
    return out


def variant(case: Case, backend: TritonPagedAttention, tiling: Tiling, **changes: Any) -> LaunchPlan:
    """The production plan of ``case`` with another tiling and some fields changed."""
    plan = choose_launch(
        num_seqs=len(case.query_lens),
        max_query_len=max(case.query_lens),
        max_seq_len=max(case.seq_lens),
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_dim=case.head_dim,
        device=backend.device,
        tiling=tiling,
    )
    return replace(plan, **changes)


def climb(device: torch.device) -> list[dict[str, Any]]:
    """One row a step."""
    backend = TritonPagedAttention(device)
    large, single = decode_case("decode 64 x 2048", 64, 2048), decode_case("decode 1 x 32768", 1, 32768)
    prompt = Case("prefill 4 x 2048", (2048,) * 4, (2048,) * 4)
    alone: dict[str, Any] = {"num_splits": 1, "splits": False}
    bound = Tiling(16, 16, 4, 1, 1, prefetch=False)
    wide = replace(bound, tile=32)
    chained = replace(wide, num_stages=3)
    ahead = replace(chained, prefetch=True)
    steps: list[tuple[Case, str, LaunchPlan | None]] = [
        (large, "one query head a program, tile = page, no tl.dot", None),
        (large, "group packed into the rows of tl.dot, tile = page", variant(large, backend, bound, **alone)),
        (large, "tile of 32, twice the page", variant(large, backend, wide, **alone)),
        (large, "3 pipeline stages, block ids loaded in the chain", variant(large, backend, chained, **alone)),
        (large, "block ids one tile ahead, in registers", variant(large, backend, ahead, **alone)),
        (single, "one query head a program, tile = page, no tl.dot", None),
        (single, "packed, pipelined, one program a K/V head", variant(single, backend, ahead, **alone)),
        (single, "split over the sequence, then merged", variant(single, backend, replace(ahead, occupancy=2))),
        (
            prompt,
            "64 rows, tile 32, every tile masked",
            variant(prompt, backend, Tiling(64, 32, 4, 3, 1), two_phase=False),
        ),
        (prompt, "mask-free loop up to the diagonal", variant(prompt, backend, Tiling(64, 32, 4, 3, 1))),
        (prompt, "128 rows, 8 warps, tile 64", variant(prompt, backend, Tiling(128, 64, 8, 2, 1, prefetch=False))),
        (
            prompt,
            "128 registers a thread: two programs a multiprocessor",
            variant(prompt, backend, Tiling(128, 64, 8, 2, 2, prefetch=False, max_registers=128)),
        ),
    ]
    rows = []
    for case, name, plan in steps:
        problem = build_problem(case, device, seed=5)

        def call(problem: Problem = problem, plan: LaunchPlan | None = plan) -> torch.Tensor:
            return one_head_decode(problem) if plan is None else attend(backend, problem, plan)

        error = relative_error(call(), exact_attention(problem))
        timing = time_calls(call, samples=20, calls=5)
        rows.append(
            {
                "case": case.name,
                "step": name,
                "error": error,
                "timing": timing.as_json(),
                "tb_per_s": case.min_bytes / timing.median_us * 1e-6,
                "tflops": case.flops / timing.median_us * 1e-6,
            }
        )
    return rows
