"""Drawn attention cases, and one way to run and judge a case."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference_engine.attention.triton_paged import INTERPRETER, TritonPagedAttention
from reference_engine.kernels.cases import Case, Problem, build_problem, exact_attention
from reference_engine.kernels.launch_plan import LaunchPlan, choose_launch

# Largest allowed |row - exact row| / |exact row| over all rows.  Rounding alone gives about a third of these.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Draw:
    """A case and how it is cut up."""

    case: Case
    tile: int
    num_splits: int  # 0: as choose_launch says
    split_size: int  # > 0: deterministic mode with runs of this many positions
    block_m: int
    poison: float
    prefetch: bool = True

    def plan(self) -> LaunchPlan:
        case = self.case
        plan = choose_launch(
            num_seqs=len(case.query_lens),
            max_query_len=max(case.query_lens),
            max_seq_len=max(case.seq_lens),
            num_heads=case.num_heads,
            num_kv_heads=case.num_kv_heads,
            head_dim=case.head_dim,
            device=INTERPRETER,
            query_bytes=case.dtype.itemsize,
            cache_bytes=case.dtype.itemsize,
            deterministic=self.split_size > 0,
        )
        block_m = max(self.block_m, plan.block_m if case.num_heads // case.num_kv_heads > self.block_m else 0)
        group = case.num_heads // case.num_kv_heads
        plan = replace(plan, tile=self.tile, block_m=block_m, block_q=block_m // group, prefetch=self.prefetch)
        if self.split_size:
            runs = -(-max(case.seq_lens) // self.split_size)
            splits = runs > 1 and self.num_splits > 1
            plan = replace(plan, split_size=self.split_size, num_splits=runs if splits else 1, splits=splits)
        elif self.num_splits:
            plan = replace(plan, num_splits=self.num_splits, splits=self.num_splits > 1)
        return plan


def draw(index: int) -> Draw:
    """The ``index``-th case: shapes from a fixed sequence, so that names are stable; lengths sit on and around
    edges.
    """
    rng = random.Random(7919 * index + 13)
    head_dim = rng.choice((64, 64, 80, 96, 128, 256))
    kv_heads = rng.choice((1, 1, 2, 3))
    group = rng.choice((1, 2, 3, 4, 5, 7, 8, 16))
    if kv_heads * group > 16:
        kv_heads = 1
    page = rng.choice((1, 8, 16, 32, 64, 256))
    tile = rng.choice((16, 32, 64, 64))
    window = rng.choice((None, None, None, 1, 5, tile - 1, tile, tile + 1, 40))
    split_size = rng.choice((0, 0, 0, 64))
    edges = [1, 2, tile, 2 * tile, page, 2 * page, 64, 128, *((window, 2 * window) if window else ())]
    kind = rng.choice(("decode", "decode", "prefill", "chunk", "mixed"))
    count = rng.choice((1, 2, 3))
    query_lens, seq_lens = [], []
    for _ in range(count):
        seq_len = min(140, max(1, rng.choice(edges) + rng.choice((-1, 0, 1))))
        chunk = rng.randint(1, min(seq_len, 40))
        query_len = {"decode": 1, "prefill": min(seq_len, 40), "chunk": chunk, "mixed": rng.choice((1, chunk))}[kind]
        query_lens.append(query_len)
        seq_lens.append(query_len if kind == "prefill" else seq_len)
    case = Case(
        name=f"{index}-{kind}",
        query_lens=tuple(query_lens),
        seq_lens=tuple(seq_lens),
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        page=page,
        dtype=rng.choice((torch.float32, torch.float16, torch.bfloat16)),
        window=window,
        soft_cap=rng.choice((None, None, 3.0)),
    )
    return Draw(
        case=case,
        tile=tile,
        num_splits=rng.choice((0, 1, 2, 3, 9 if kind == "decode" else 2)),
        split_size=split_size,
        block_m=rng.choice((16, 32) if kind == "decode" else (64, 128) if group > 3 else (32, 64)),
        poison=rng.choice((float("nan"), 1e30 if case.dtype == torch.float32 else float("inf"))),
        prefetch=rng.choice((True, False)),
    )


def attend(problem: Problem, plan: LaunchPlan) -> Tensor:
    """Run one case; output and scratch start as NaN, so that nothing unwritten can pass."""
    case = problem.case
    backend = TritonPagedAttention(problem.query.device)
    backend._scratch = torch.full((200_000,), float("nan"))
    return backend.attend(
        problem.query,
        problem.cache,
        problem.meta,
        scale=case.scale,
        window=case.window,
        soft_cap=case.soft_cap,
        plan=plan,
    )


def row_error(result: Tensor, exact: Tensor) -> float:
    """Largest relative error of any row; NaN if anything is not finite."""
    wrong = (result.double() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(1e-30)
    return float(wrong.max()) if bool(wrong.isfinite().all()) else float("nan")


def assert_exact(drawn: Draw, seed: int) -> None:
    """The kernel against float64 on fresh random data."""
    problem = build_problem(drawn.case, torch.device("cpu"), seed=seed, poison=drawn.poison)
    error = row_error(attend(problem, drawn.plan()), exact_attention(problem))
    assert error <= TOLERANCE[drawn.case.dtype], f"row error {error} in {drawn}"
