"""Offline tuner: time many tilings of the attention kernel on this device and keep the best of each kind.

Compiles run in worker processes (Triton's disk cache hands the binaries over), so that the device waits for none of
them. The table belongs in ``reference_engine/kernels/tuned/<device>.json``, where ``choose_launch`` finds it.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton

from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.kernels.cases import Case, Problem, build_problem, decode_case
from reference_engine.kernels.launch_plan import Device, LaunchPlan, Tiling, choose_launch, tiling_key
from reference_engine.kernels.measure import run_ours
from reference_engine.kernels.paged_attention import paged_attention_launch
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


def run_once(case: Case, deterministic: bool) -> str | None:
    """Worker: compile what a case needs by running it; the error if it has one."""
    device = torch.device("cuda")
    try:
        run_ours(build_problem(case, device, seed=0), TritonPagedAttention(device, deterministic=deterministic))
        torch.cuda.synchronize()
    except Exception as error:
        return f"{case.name}: {type(error).__name__}: {str(error)[:200]}"
    return None


def warm(cases: Iterable[Case], modes: Sequence[bool] = (False, True)) -> list[str]:
    """Compile the kernels of all cases in parallel; what went wrong."""
    with ProcessPoolExecutor(8, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(run_once, case, mode) for case in cases for mode in modes]
        return [error for job in as_completed(jobs) if (error := job.result())]


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
            row["spills"] = spills(backend, problem, plan)
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


def spills(backend: TritonPagedAttention, problem: Problem, plan: LaunchPlan) -> int:
    """Registers that the attention kernel of ``plan`` keeps in memory."""
    case, meta = problem.case, problem.meta
    compiled = paged_attention_launch(
        torch.empty_like(problem.query),
        backend._partials(problem.query, plan) if plan.splits else None,
        problem.query,
        problem.cache.key,
        problem.cache.value,
        meta.block_tables,
        meta.seq_lens,
        meta.query_start_loc,
        plan,
        scale=case.scale,
    ).warmup()
    compiled._init_handles()
    return int(compiled.n_spills)


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
    """The grid that is worth trying for decode: 16 rows through mma, few warps, several programs a multiprocessor."""
    return [
        Tiling(16, tile, warps, stages, 2, prefetch)
        for tile, warps in ((16, 1), (16, 2), (32, 1), (32, 2), (32, 4), (64, 2), (64, 4), (128, 8))
        for stages in (2, 3, 4)
        for prefetch in (True, False)
    ]


def prefill_tilings() -> list[Tiling]:
    """The grid that is worth trying for prefill; 128 registers a thread let two programs of 8 warps share a multiprocessor."""
    return [
        Tiling(block_m, tile, warps, stages, 2, prefetch, cap)
        for block_m, warps, cap in ((64, 4, 0), (64, 4, 160), (128, 4, 0), (128, 8, 0), (128, 8, 128))
        for tile in (32, 64)
        for stages in (2, 3, 4)
        for prefetch in (True, False)
    ]


def deterministic_tilings() -> list[Tiling]:
    """64 rows for prefill and decode alike: one order of sums needs one instruction shape."""
    return [
        Tiling(64, tile, warps, stages, 2, prefetch, cap)
        for tile in (32, 64)
        for warps, cap in ((4, 0), (8, 0), (8, 128))
        for stages in (2, 3)
        for prefetch in (True, False)
    ]


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def tune(device: torch.device, out: Path) -> dict[str, Any]:
    """Time every tiling on its kind's cases; the best by geometric mean of times relative to each case's fastest.

    Writes ``out/tuned.json`` in the form of the tables in the tree, and ``out/trials.json`` with every time.
    """
    tilings: dict[str, Tiling] = {}
    trials: dict[str, Any] = {}
    kinds = [
        (kind, dim, make(), shapes(dim))
        for dim in (128, 64)
        for kind, make, shapes in (
            ("decode", decode_tilings, decode_shapes),
            ("prefill", prefill_tilings, prefill_shapes),
            ("deterministic", deterministic_tilings, lambda dim: decode_shapes(dim)[:1] + prefill_shapes(dim)[:1]),
        )
        if not (kind == "deterministic" and dim == 64)
    ]
    failures = precompile(
        [
            (case, [Trial(tiling) for tiling in grid], kind == "deterministic")
            for kind, _, grid, cases in kinds
            for case in cases
        ]
    )
    for kind, dim, grid, cases in kinds:
        relative: dict[Tiling, list[float]] = {}
        for case in cases:
            rows = time_trials(case, [Trial(tiling) for tiling in grid], deterministic=kind == "deterministic")
            trials[f"{kind} d{dim}: {case.name}"] = rows
            timed = [row for row in rows if "us" in row and not row["spills"]]
            for row in timed:
                tiling = Tiling(**{name: row[name] for name in Tiling.__dataclass_fields__})
                relative.setdefault(tiling, []).append(row["us"] / timed[0]["us"])
        whole = {tiling: geometric_mean(found) for tiling, found in relative.items() if len(found) == len(cases)}
        tilings[tiling_key(kind, dim, 2, 2)] = min(whole, key=lambda tiling: whole[tiling])
    table = {
        "device": torch.cuda.get_device_name(device),
        "triton": triton.__version__,
        "tilings": {key: asdict(tiling) for key, tiling in tilings.items()},
    }
    (out / "tuned.json").write_text(json.dumps(table, indent=1))
    (out / "trials.json").write_text(json.dumps(trials, indent=0))
    return {**table, "failures": failures[:10], "num_failures": len(failures)}


def decode_shapes(dim: int) -> list[Case]:
    return [
        decode_case(f"{batch} x {length}", batch, length, head_dim=dim)
        for batch, length in ((64, 2048), (32, 2048), (1, 32768), (8, 2048))
    ]


def prefill_shapes(dim: int) -> list[Case]:
    return [
        Case("4 x 2048", (2048,) * 4, (2048,) * 4, head_dim=dim),
        Case("2 x 512 at 4096", (512,) * 2, (4096,) * 2, head_dim=dim),
    ]
