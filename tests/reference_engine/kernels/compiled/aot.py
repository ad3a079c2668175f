"""Compile production launches for any target on a machine without a GPU, and read what the compiler made of them.

A fake driver names the target; ``kernel.warmup`` then specialises exactly as a launch on that device would.  Method
and traps: Triton's own ahead-of-time path (``ASTSource`` / ``GPUTarget``), read back with the ``cuobjdump`` of its
wheel.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from reference_engine.kernels.launcher import Launch

# Shared memory one block may ask for, bytes (CUDA programming guide, table of compute capabilities; 64 KB of LDS on
# CDNA3).
SHARED_LIMIT = {"sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}

PTX_KINDS = {
    "mma": r"\bmma\.sync",
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "ldmatrix": r"\bldmatrix",
    "cp.async.16": r"cp\.async\.c[ag]\.shared\.global[^;]*(?:0x10|, 16)",
    "ld.global.16": r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v8\.b16|ld\.global\S*\.v2\.b64",
    "st.global.16": r"st\.global\S*\.v4\.b32|st\.global\S*\.v2\.b64",
}
AMD_KINDS = {
    "mfma": r"\bv_mfma",
    "load.16": r"(?:global|buffer)_load_dwordx4",
    "store.16": r"(?:global|buffer)_store_dwordx4",
}


class FakeDriver(DriverBase):  # type: ignore[misc]
    """Stands for one device; compiling works, launching does not."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> Any:
        return self.target.arch

    def get_current_stream(self, device: Any) -> int:
        return 0

    def set_current_device(self, device: Any) -> None:
        pass

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("no GPU here")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses.  ``spill``: bytes a thread keeps on the stack; ``kinds``: instruction kinds
    present.
    """

    registers: int
    spill: int
    shared: int
    kinds: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "kinds": list(self.kinds)}


def target_of(arch: str) -> GPUTarget:
    """``sm_90`` or ``gfx942`` as Triton's target."""
    return (
        GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    )


def compile_for(launch: Launch, arch: str) -> Resources:
    """Compile ``launch`` for ``arch`` and read its resources."""
    triton.runtime.driver.set_active(FakeDriver(target_of(arch)))
    compiled = launch.warmup()
    shared = int(compiled.metadata.shared)
    if arch.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        number = lambda name: int((re.search(rf"\.{name}:\s*(\d+)", text) or ["", "0"])[1])  # noqa: E731
        kinds = tuple(kind for kind, pattern in AMD_KINDS.items() if re.search(pattern, text))
        return Resources(number("vgpr_count"), 4 * number("vgpr_spill_count"), shared, kinds)
    text = compiled.asm["ptx"]
    kinds = tuple(kind for kind, pattern in PTX_KINDS.items() if re.search(pattern, text))
    registers, stack = cubin_usage(compiled.asm["cubin"], int(arch.removeprefix("sm_")))
    return Resources(registers, stack, shared, kinds)


def cubin_usage(cubin: bytes, arch: int) -> tuple[int, int]:
    """(registers, bytes of stack) of a thread, as ``cuobjdump -res-usage`` reports them."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = Path(get_ptxas(arch).path).with_name("cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", report)
    if usage is None:
        raise ValueError(f"cuobjdump reports no usage: {report!r}")
    return int(usage[1]), int(usage[2])
