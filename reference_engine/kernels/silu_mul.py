"""The gated activation ``silu(gate) * up``.

::

    gate_up [T, 2 * I]: gate then up     out [T, I]     grid (T, chunks of I); fp32 inside
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from reference_engine.kernels.launcher import Launch, ceil_div

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1024


@triton.jit
def silu_mul_kernel(out_ptr, gate_up_ptr, INTERMEDIATE: tl.constexpr, CHUNK_SIZE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * CHUNK_SIZE + tl.arange(0, CHUNK_SIZE)
    live = offs < INTERMEDIATE
    gate_up_ptr += token * 2 * INTERMEDIATE
    gate = tl.load(gate_up_ptr + offs, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + INTERMEDIATE + offs, mask=live, other=0.0).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + token * INTERMEDIATE + offs, gated.to(out_ptr.dtype.element_ty), mask=live)


def silu_mul_launch(out: Tensor, gate_up: Tensor) -> Launch:
    """Prepare the launch; both contiguous."""
    tokens, intermediate = out.shape
    return Launch(
        kernel=silu_mul_kernel,
        grid=(tokens, ceil_div(intermediate, CHUNK)),
        arguments={"out_ptr": out, "gate_up_ptr": gate_up, "INTERMEDIATE": intermediate, "CHUNK_SIZE": CHUNK},
        options={"num_warps": 4},
    )
