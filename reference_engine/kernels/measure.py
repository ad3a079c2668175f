"""Correctness, then time, of paged attention and its peers on this device: what ``pagedbench kernels`` prints.

A row is correct or has no time.  Bytes are the fewest the call can move (K and V once, queries in, results out); the
share of the copy bandwidth that this very device reached is the number to read, the share of a datasheet is not
computed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.kernels.cases import Case, Problem, build_problem, decode_case, exact_attention, relative_error
from reference_engine.kernels.peers import UNPAGED, peers
from reference_engine.kernels.timing import copy_bandwidth, matmul_rate, time_calls

SCHEMA_VERSION = 1
# Largest allowed |out - exact| / |exact| over a whole result (float64 reference); 16-bit types round their operands.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
L2_BYTES = 50 << 20


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this device reaches: bytes/s of a copy (read + written), bf16 FLOP/s of a large product."""

    copy: float
    matmul: float

    def as_json(self) -> dict[str, float]:
        return {"copy_bytes_per_s": self.copy, "bf16_matmul_flop_per_s": self.matmul}


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure both on ``device``."""
    return Ceilings(copy_bandwidth(device), matmul_rate(device))


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Device, driver and versions, so that a number can be placed."""
    import triton

    found: dict[str, Any] = {
        "device": "cpu",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
            "driver": _driver_version(),
        }
    return found


def _driver_version() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except Exception:
        return None
    return version if isinstance(version, str) else version.decode()


def default_grid(*, quick: bool = False) -> list[Case]:
    """Decode and prefill over batch, length, heads, head size, page and type.  ``quick``: the two headline shapes."""
    headline = [decode_case("decode 64 x 2048", 64, 2048), Case("prefill 4 x 2048", (2048,) * 4, (2048,) * 4)]
    if quick:
        return headline
    grid = [
        headline[0],
        decode_case("decode 32 x 2048", 32, 2048),
        decode_case("decode 256 x 1024", 256, 1024),
        decode_case("decode 8 x 8192", 8, 8192),
        decode_case("decode 1 x 32768", 1, 32768),
        decode_case("decode 64 x 2048, page 1", 64, 2048, page=1),
        decode_case("decode 64 x 2048, page 256", 64, 2048, page=256),
        decode_case("decode 64 x 2048, d 64", 64, 2048, head_dim=64),
        decode_case("decode 64 x 2048, 32/32 heads", 64, 2048, num_kv_heads=32),
        decode_case("decode 64 x 2048, 64/8 heads", 64, 2048, num_heads=64),
        decode_case("decode 64 x 2048, fp16", 64, 2048, dtype=torch.float16),
        Case("decode ragged 64", (1,) * 64, tuple(64 + 62 * i for i in range(64))),
        headline[1],
        Case("prefill 1 x 8192", (8192,), (8192,)),
        Case("prefill 4 x 2048, d 64", (2048,) * 4, (2048,) * 4, head_dim=64),
        Case("chunk 2 x 512 at 8192", (512,) * 2, (8192,) * 2),
        Case("mixed 2 x 512 + 62 decodes", (512, 512, *((1,) * 62)), (512, 512, *((2048,) * 62))),
    ]
    return grid


def tiny_grid() -> list[Case]:
    """Shapes that the interpreter can run: the same code, no numbers of interest."""
    return [
        decode_case("decode 2 x 40", 2, 40, num_heads=4, num_kv_heads=2, head_dim=64, dtype=torch.float32),
        Case("prefill 1 x 24", (24,), (24,), num_heads=4, num_kv_heads=2, head_dim=64, dtype=torch.float32),
        Case("mixed", (1, 9), (33, 20), num_heads=4, num_kv_heads=2, head_dim=64, dtype=torch.float32),
    ]


def check_grid() -> list[Case]:
    """Cases whose answer is compared with float64 naive attention."""
    ragged = Case("ragged mixed", (1, 40, 200, 1, 7), (500, 40, 333, 64, 1031))
    decode = Case("ragged decode", (1,) * 5, (1, 17, 333, 2048, 4096))
    return [
        replace(case, name=f"{case.name}{suffix}", **changes)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for base in (decode, ragged)
        for case in (replace(base, dtype=dtype, name=f"{base.name} {str(dtype).removeprefix('torch.')}"),)
        for suffix, changes in (
            ("", {}),
            (", window 100", {"window": 100}),
            (", soft cap 8", {"soft_cap": 8.0}),
            (", d 64, page 1", {"head_dim": 64, "page": 1}),
            (", d 80, 9/3 heads", {"head_dim": 80, "num_heads": 9, "num_kv_heads": 3}),
            (", d 256, page 256, 8/1 heads", {"head_dim": 256, "page": 256, "num_heads": 8, "num_kv_heads": 1}),
        )
    ]


def run_ours(problem: Problem, backend: TritonPagedAttention) -> Tensor:
    """Our kernels on one problem."""
    case = problem.case
    return backend.attend(
        problem.query, problem.cache, problem.meta, scale=case.scale, window=case.window, soft_cap=case.soft_cap
    )


def check(cases: Iterable[Case], device: torch.device, *, seed: int) -> Iterator[dict[str, Any]]:
    """One row a case and mode: the error against float64 and whether it is within tolerance."""
    for number, case in enumerate(cases):
        problem = build_problem(case, device, seed=seed + number)
        exact = exact_attention(problem)
        for deterministic in (False, True):
            result = run_ours(problem, TritonPagedAttention(device, deterministic=deterministic))
            error = relative_error(result, exact)
            yield {
                "case": case.name,
                "deterministic": deterministic,
                "error": error,
                "tolerance": TOLERANCE[case.dtype],
                "passed": error <= TOLERANCE[case.dtype],
            }


def rotation(case: Case, device: torch.device, *, seed: int, l2_bytes: int = L2_BYTES) -> list[Problem]:
    """Enough copies of a case on different data that none finds its K/V in the cache."""
    copies = 1 if device.type != "cuda" else max(1, min(16, -(-3 * l2_bytes // max(1, case.kv_bytes))))
    return [build_problem(case, device, seed=seed + i) for i in range(copies)]


def time_case(
    case: Case,
    device: torch.device,
    ceilings: Ceilings | None,
    *,
    seed: int,
    with_peers: bool = True,
    modes: Sequence[bool] = (False,),
) -> list[dict[str, Any]]:
    """Rows of our kernels (once a mode in ``modes``: deterministic or not) and of every peer, on one case."""
    problems = rotation(case, device, seed=seed)
    exact = exact_attention(problems[0])
    rows = []
    for deterministic in modes:
        backend = TritonPagedAttention(device, deterministic=deterministic)
        calls = [_bind(run_ours, problem, backend) for problem in problems]
        name = "triton, deterministic" if deterministic else "triton"
        rows.append(_row(case, name, calls, exact, ceilings))
    if with_peers:
        made: dict[str, list[Any]] = {}
        for problem in problems:
            for name, call in peers(problem):
                made.setdefault(name, []).append(call)
        for name, found in made.items():
            reason = next((call for call in found if isinstance(call, str)), None)
            if reason is None:
                rows.append(_row(case, name, found, exact, ceilings))
            else:
                rows.append({"case": case.name, "kernel": name, "skipped": reason})
    return rows


def _bind(function: Callable[..., Tensor], *args: Any) -> Callable[[], Tensor]:
    return lambda: function(*args)


def _row(
    case: Case, name: str, calls: list[Callable[[], Tensor]], exact: Tensor, ceilings: Ceilings | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case.name, "kernel": name}
    try:
        error = relative_error(calls[0](), exact)
        row |= {"error": error, "passed": error <= TOLERANCE[case.dtype]}
        if not row["passed"]:
            return row
        try:
            timing = time_calls(calls)
        except RuntimeError as problem:
            row["graph_error"] = str(problem).splitlines()[0][:160]
            torch.cuda.synchronize()
            timing = time_calls(calls, graph=False)
    except RuntimeError as problem:
        return {**row, "skipped": f"cannot: {str(problem).splitlines()[0][:160]}"}
    seconds = timing.median_us * 1e-6
    row |= {
        "timing": timing.as_json(),
        "min_bytes": case.min_bytes,
        "kv_bytes": case.kv_bytes,
        "flops": case.flops,
        "bytes_per_s": case.min_bytes / seconds,
        "flop_per_s": case.flops / seconds,
    }
    if ceilings is not None:
        row["share_of_copy"] = case.min_bytes / seconds / ceilings.copy
        row["share_of_matmul"] = case.flops / seconds / ceilings.matmul
    return row


def compare_with_peers(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Ours against the best peer that starts from the paged cache: ratio a case, geometric mean, the worst.

    Above 1 ours is faster.
    """
    by_case: dict[str, dict[str, float]] = {}
    for row in rows:
        if "timing" in row:
            by_case.setdefault(row["case"], {})[row["kernel"]] = row["timing"]["median_us"]
    ratios = {}
    for case, times in by_case.items():
        rivals = {name: us for name, us in times.items() if not name.startswith("triton") and name != UNPAGED}
        if "triton" in times and rivals:
            best = min(rivals, key=lambda name: rivals[name])
            ratios[case] = {"peer": best, "ratio": rivals[best] / times["triton"]}
    if not ratios:
        return {"cells": {}, "geometric_mean": None, "worst": None}
    values = torch.tensor([cell["ratio"] for cell in ratios.values()], dtype=torch.float64)
    return {"cells": ratios, "geometric_mean": float(values.log().mean().exp()), "worst": float(values.min())}
