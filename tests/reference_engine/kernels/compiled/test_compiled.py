"""Every production configuration compiles for every claimed part, within its limits, with the instructions it had."""

from __future__ import annotations

import json

import pytest
import torch
import triton
from aot import SHARED_LIMIT, Resources, compile_for
from configurations import CONFIGURATIONS, PARTS, supported
from make_table import TABLE

from reference_engine.kernels.store_kv import store_kv_launch

RECORDED = json.loads(TABLE.read_text())
SAME_COMPILER = RECORDED["triton"] == triton.__version__


def describe(resources: dict[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in resources.items())


def faults(name: str, now: Resources, recorded: dict[str, object], limit: int) -> list[str]:
    """What is wrong with a compiled kernel, in words."""
    found = []
    if now.spill and not name.endswith("fp32"):
        found.append(f"spills {now.spill} bytes")
    if now.shared > limit:
        found.append(f"needs {now.shared} bytes of shared memory, the part has {limit}")
    lost = set(recorded["kinds"]) - set(now.kinds)  # type: ignore[call-overload]
    if lost:
        found.append(f"lost {', '.join(sorted(lost))}")
    registers = int(recorded["registers"])  # type: ignore[call-overload]
    if SAME_COMPILER and now.registers > 1.1 * registers + 8:
        found.append(f"uses {now.registers} registers, the table says {registers}")
    return found


@pytest.mark.parametrize("arch", PARTS)
def test_production_configurations(arch: str) -> None:
    report = []
    for name in supported(arch):
        now = compile_for(CONFIGURATIONS[name](PARTS[arch]), arch)
        recorded = RECORDED["parts"][arch][name]
        wrong = faults(name, now, recorded, SHARED_LIMIT[arch])
        if wrong:
            rows = f"    table {describe(recorded)}\n    now   {describe(now.as_json())}"
            report.append(f"{arch} {name}: {'; '.join(wrong)}\n{rows}")
    assert not report, "\n" + "\n".join(report)


def test_table_covers_exactly_what_is_compiled() -> None:
    assert {arch: set(rows) for arch, rows in RECORDED["parts"].items()} == {
        arch: set(supported(arch)) for arch in PARTS
    }


def test_a_spill_an_overflow_and_a_lost_instruction_are_faults() -> None:
    """The judge itself can say no."""
    good = {"registers": 100, "spill": 0, "shared": 1000, "kinds": ["mma", "cp.async.16"]}
    assert faults("decode", Resources(100, 0, 1000, ("mma", "cp.async.16")), good, 2000) == []
    assert faults("decode", Resources(100, 8, 1000, ("mma", "cp.async.16")), good, 2000) == ["spills 8 bytes"]
    assert faults("decode fp32", Resources(100, 8, 1000, ("mma", "cp.async.16")), good, 2000) == []
    assert "shared memory" in faults("decode", Resources(100, 0, 3000, ("mma", "cp.async.16")), good, 2000)[0]
    assert faults("decode", Resources(100, 0, 1000, ("mma",)), good, 2000) == ["lost cp.async.16"]


def test_a_lost_alignment_is_seen() -> None:
    """K whose rows start at odd addresses cannot be read 16 bytes at a time: the compiler's output must show it."""
    pool = torch.empty(4, 16, 8, 128, dtype=torch.bfloat16)
    slots = torch.empty(4, dtype=torch.int64)
    aligned, odd = (torch.empty(4, width, dtype=torch.bfloat16)[:, :1024].view(4, 8, 128) for width in (1024, 1025))
    assert "ld.global.16" in compile_for(store_kv_launch(aligned, aligned, pool, pool, slots), "sm_90").kinds
    assert "ld.global.16" not in compile_for(store_kv_launch(odd, odd, pool, pool, slots), "sm_90").kinds
