"""Copy whole KV blocks: copy-on-write within a pool, and packing to or from a staging buffer for swaps.

::

    source, target   [num_blocks, page, Hkv, D] each; the same tensor (copy-on-write) or two (swap staging)
    pairs            int64 [N, 2]: (source block, target block); no target block is also a source block of the same call

    grid (N, chunks of a block).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from reference_engine.kernels.launcher import Launch, ceil_div

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 4096  # elements a program copies


@triton.jit
def copy_blocks_kernel(
    source_ptr,
    target_ptr,
    pairs_ptr,
    source_stride,
    target_stride,
    BLOCK_ELEMENTS: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
):
    pair = tl.program_id(0)
    offs = tl.program_id(1) * CHUNK_SIZE + tl.arange(0, CHUNK_SIZE)
    live = offs < BLOCK_ELEMENTS
    source = tl.load(pairs_ptr + 2 * pair)
    target = tl.load(pairs_ptr + 2 * pair + 1)
    values = tl.load(source_ptr + source * source_stride + offs, mask=live)
    tl.store(target_ptr + target * target_stride + offs, values, mask=live)


def copy_blocks_launch(source: Tensor, target: Tensor, pairs: Tensor) -> Launch:
    """Prepare the launch.  Blocks are contiguous inside; ``source`` and ``target`` have one dtype and one block
    shape.
    """
    elements = source[0].numel()
    return Launch(
        kernel=copy_blocks_kernel,
        grid=(pairs.shape[0], ceil_div(elements, CHUNK)),
        arguments={
            "source_ptr": source,
            "target_ptr": target,
            "pairs_ptr": pairs,
            "source_stride": source.stride(0),
            "target_stride": target.stride(0),
            "BLOCK_ELEMENTS": elements,
            "CHUNK_SIZE": CHUNK,
        },
        options={"num_warps": 4},
    )
