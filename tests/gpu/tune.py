"""Offline tuner: time many tilings of the attention kernel on this device and keep the best of each kind.

Compiles run in worker processes (Triton's disk cache hands the binaries over), so that the device waits for none of
them. The table goes to ``reference_engine/kernels/tuned/<device>.json``, where ``choose_launch`` finds it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.kernels.cases import Case, Problem, build_problem, decode_case
from reference_engine.kernels.launch_plan import Device, LaunchPlan, Tiling, choose_launch
from reference_engine.kernels.timing import time_calls


@dataclass(frozen=True)
class Trial:
    """One tiling with ``splits`` splits (0: as choose_launch counts them)."""

    tiling: Tiling
    splits: int = 0


def plan_for(case: Case, trial: Trial, device: Device, *, deterministic: bool = False) -> LaunchPlan:
    """The plan a trial stands for."""
    plan = choose_launch(
        num_seqs=len(case.query_lens),
        max_query_len=max(case.query_lens),
        max_seq_len=max(case.seq_lens),
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_dim=case.head_dim,
        device=device,
        query_bytes=case.dtype.itemsize,
        cache_bytes=case.dtype.itemsize,
        deterministic=deterministic,
        tiling=trial.tiling,
    )
    if trial.splits:
        plan = replace(plan, num_splits=trial.splits, splits=trial.splits > 1)
    return plan


def compile_trials(case: Case, trials: Sequence[Trial], deterministic: bool) -> list[str]:
    """Worker: compile each trial by running it once on a small problem of the same specialisation."""
    device = torch.device("cuda")
    small = replace(
        case, query_lens=tuple(min(q, 3) for q in case.query_lens[:2]), seq_lens=(64, 64)[: len(case.seq_lens)]
    )
    problem = build_problem(small, device, seed=0)
    backend = TritonPagedAttention(device)
    failures = []
    for trial in trials:
        plan = plan_for(case, trial, backend.device, deterministic=deterministic)
        try:
            backend.attend(problem.query, problem.cache, problem.meta, scale=case.scale, plan=plan)
        except Exception as error:
            failures.append(f"{trial}: {type(error).__name__}: {str(error)[:200]}")
    torch.cuda.synchronize()
    return failures


def precompile(jobs: Iterable[tuple[Case, Sequence[Trial], bool]], workers: int | None = None) -> list[str]:
    """Compile all trials of all jobs in parallel."""
    workers = workers or max(1, (os.cpu_count() or 2) - 1)
    pieces: list[tuple[Case, list[Trial], bool]] = []
    for case, trials, deterministic in jobs:
        for i in range(workers):
            part = list(trials[i::workers])
            if part:
                pieces.append((case, part, deterministic))
    failures: list[str] = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(compile_trials, *piece) for piece in pieces]):
            failures.extend(done.result())
    return failures


def time_trials(
    case: Case, trials: Sequence[Trial], *, deterministic: bool = False, samples: int = 7, calls: int = 5
) -> list[dict[str, Any]]:
    """Time every trial on one shuffled problem; fastest first.  A trial that cannot run says why."""
    device = torch.device("cuda")
    problem = build_problem(case, device, seed=1)
    backend = TritonPagedAttention(device)
    reference = None
    rows = []
    for trial in trials:
        plan = plan_for(case, trial, backend.device, deterministic=deterministic)
        row: dict[str, Any] = {**asdict(trial.tiling), "num_splits": plan.num_splits}

        def call(plan: LaunchPlan = plan) -> torch.Tensor:
            return attend(backend, problem, plan)

        try:
            result = call()
            reference = result.float() if reference is None else reference
            timing = time_calls(call, samples=samples, calls=calls)
        except Exception as error:
            rows.append({**row, "error": f"{type(error).__name__}: {str(error)[:160]}"})
            continue
        row["difference"] = float((result.float() - reference).norm() / reference.norm())
        row["us"] = round(timing.median_us, 2)
        row["tb_per_s"] = round(case.min_bytes / timing.median_us * 1e-6, 4)
        row["tflops"] = round(case.flops / timing.median_us * 1e-6, 1)
        rows.append(row)
    return sorted(rows, key=lambda r: r.get("us", float("inf")))


def attend(backend: TritonPagedAttention, problem: Problem, plan: LaunchPlan) -> torch.Tensor:
    """Attention alone over a filled cache."""
    case = problem.case
    return backend.attend(
        problem.query,
        problem.cache,
        problem.meta,
        scale=case.scale,
        window=case.window,
        soft_cap=case.soft_cap,
        plan=plan,
    )


def decode_tilings() -> list[Tiling]:
    """The grid that is worth trying for decode: 16 rows through mma, 64 through wgmma."""
    found = []
    for prefetch in (True, False):
        for block_m, warps in ((16, 1), (16, 2), (16, 4), (16, 8), (64, 4)):
            for tile in (16, 32, 64, 128):
                for stages in (1, 2, 3, 4, 5) if prefetch else (3, 5):
                    shared = 2 * tile * 128 * 2 * max(1, stages - 1)
                    if tile >= 8 * warps and shared <= 200_000 and not (block_m == 64 and tile < 32):
                        found.append(Tiling(block_m, tile, warps, stages, 4, prefetch))
    return found


def prefill_tilings() -> list[Tiling]:
    """The grid that is worth trying for prefill."""
    found = []
    for block_m, warps, caps in ((64, 4, (0, 160, 128)), (128, 4, (0,)), (128, 8, (0, 128)), (256, 8, (0,))):
        for tile in (32, 64, 128):
            for stages in (1, 2, 3, 4):
                for prefetch in (True, False) if stages > 1 else (False,):
                    shared = 2 * tile * 128 * 2 * max(1, stages - 1) + block_m * 256
                    if shared <= 220_000 and block_m * tile <= 128 * 128:
                        found.extend(Tiling(block_m, tile, warps, stages, 1, prefetch, cap) for cap in caps)
    return found


def deterministic_tilings() -> list[Tiling]:
    """64 rows for prefill and decode alike: one order of sums needs one instruction shape."""
    return [
        Tiling(block_m, tile, 4, stages, 2, prefetch)
        for block_m in (16, 64)
        for tile in (32, 64)
        for stages in (2, 3)
        for prefetch in (True, False)
    ]


DECODE_64 = decode_case("decode 64 x 2048", 64, 2048)
DECODE_32 = decode_case("decode 32 x 2048", 32, 2048)
DECODE_1 = decode_case("decode 1 x 32768", 1, 32768)
PREFILL = Case("prefill 4 x 2048", (2048,) * 4, (2048,) * 4)
