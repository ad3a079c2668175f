"""The results of ``pagedbench kernels`` and ``tests/gpu/bench_all.py`` as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def summarize(results: Mapping[str, Any]) -> str:
    """One block of text for a terminal; what was not measured is said with its reason."""
    parts = [_environment(results)]
    for stage in ("ceilings", "check", "bits", "tune", "attention", "staircase", "steps", "profile", "serving"):
        if f"{stage}_error" in results:
            parts.append(f"{stage} FAILED: {results[f'{stage}_error']}")
        elif isinstance(results.get(stage), str):
            parts.append(f"{stage}: {results[stage]}")
    if isinstance(results.get("ceilings"), Mapping):
        ceilings = results["ceilings"]
        parts.append(
            f"this device: copy {ceilings['copy_bytes_per_s'] / 1e12:.3f} TB/s (read + written),"
            f" bf16 product {ceilings['bf16_matmul_flop_per_s'] / 1e12:.0f} TFLOP/s"
        )
    if isinstance(results.get("check"), list):
        rows = results["check"]
        worst = max(rows, key=lambda row: row["error"] / row["tolerance"])
        parts.append(
            f"correct: {sum(row['passed'] for row in rows)} of {len(rows)} against float64; nearest to its tolerance:"
            f" {worst['case']}, {worst['error']:.1e} of {worst['tolerance']:.0e}"
        )
    if isinstance(results.get("bits"), Mapping):
        parts.append(f"deterministic mode: {results['bits']}")
    if isinstance(results.get("attention"), Mapping):
        parts.append(attention_table(results["attention"]["rows"]))
        parts.append(_against_peers(results["attention"]["against_peers"]))
    if isinstance(results.get("staircase"), list):
        parts.extend(
            f"{row['case']:20} {row['step']:56} {row['timing']['median_us']:9.1f} us"
            f" {row['tb_per_s']:6.3f} TB/s {row['tflops']:6.1f} TFLOP/s"
            for row in results["staircase"]
        )
    if isinstance(results.get("steps"), list):
        parts.append(_steps_table(results["steps"]))
    if isinstance(results.get("profile"), list):
        parts.extend(_profile(step) for step in results["profile"])
    if isinstance(results.get("serving"), Mapping):
        parts.append(_serving(results["serving"]))
    return "\n\n".join(parts)


def _environment(results: Mapping[str, Any]) -> str:
    found = results["environment"]
    kept = ("device", "driver", "cuda", "torch", "triton", "python")
    return ", ".join(f"{key} {found[key]}" for key in kept if found.get(key)) + f", {results['date']}"


def attention_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Time, bytes and rates of each kernel on each case."""
    lines = [f"{'case':32} {'kernel':28} {'us (p10-p90)':>24} {'TB/s':>6} {'of copy':>8} {'TFLOP/s':>8} {'of peak':>8}"]
    last = ""
    for row in rows:
        name = "" if row["case"] == last else row["case"]
        last = row["case"]
        if "timing" not in row:
            reason = row.get("skipped") or f"WRONG: error {row['error']:.1e}"
            lines.append(f"{name:32} {row['kernel']:28} {reason}")
            continue
        timing = row["timing"]
        spread = f"{timing['median_us']:.1f} ({timing['p10_us']:.1f}-{timing['p90_us']:.1f})"
        copy = f"{row['share_of_copy']:8.1%}" if "share_of_copy" in row else f"{'-':>8}"
        peak = f"{row['share_of_matmul']:8.1%}" if "share_of_matmul" in row else f"{'-':>8}"
        lines.append(
            f"{name:32} {row['kernel']:28} {spread:>24} {row['bytes_per_s'] / 1e12:6.3f} {copy}"
            f" {row['flop_per_s'] / 1e12:8.1f} {peak}"
        )
    return "\n".join(lines)


def _against_peers(found: Mapping[str, Any]) -> str:
    if found["geometric_mean"] is None:
        return "against peers: none ran"
    slowest = min(found["cells"], key=lambda case: found["cells"][case]["ratio"])
    return (
        f"against the best peer that starts from the paged cache: geometric mean {found['geometric_mean']:.2f}x over"
        f" {len(found['cells'])} cases, worst {found['worst']:.2f}x ({slowest}, {found['cells'][slowest]['peer']})"
    )


def _steps_table(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [
        f"{'decode step':18} {'graphs':>6} {'deterministic':>13} {'wall ms':>8} {'device ms':>9} {'floor ms':>8}"
        f" {'x floor':>8} {'x all weights + KV':>19}"
    ]
    for row in rows:
        floor = f"{'-':>8} {'-':>8} {'-':>19}"
        if "floor_ms" in row:
            floor = f"{row['floor_ms']:8.2f} {row['over_floor']:8.3f} {row['over_weights_and_kv']:19.3f}"
        lines.append(
            f"{row['batch']:5} x {row['seq_len']:<10} {row['graphs']!s:>6} {row['deterministic']!s:>13}"
            f" {row['wall_ms']:8.2f} {row['device_ms']:9.2f} {floor}"
        )
    return "\n".join(lines)


def _profile(step: Mapping[str, Any]) -> str:
    lines = [f"one decode step, {step['batch']} x {step['seq_len']}: {step['busy_us']:.0f} us of kernels"]
    lines.extend(
        f"  {row['us']:9.1f} us {row['launches']:6.0f} x  {row['kernel'][:90]}" for row in step["kernels"][:14]
    )
    return "\n".join(lines)


def _serving(found: Mapping[str, Any]) -> str:
    lines = [
        f"{row['engine']}: {row['tokens_per_s']:.0f} output tokens/s ({row['tokens']} in {row['seconds']:.1f} s)"
        for row in found["rows"]
    ]
    if "ratio" in found:
        lines.append(f"ratio {found['ratio']:.2f}x; first tokens equal: {found['first_tokens_equal']}")
    return "\n".join(lines)
