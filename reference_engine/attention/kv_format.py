"""How K and V are stored: as they are, or with fewer bits and a scale.

=========  =========================  ===================================================================
format     stored                     scale, fp32
=========  =========================  ===================================================================
fp32 ...   x, rounded to the type     none
fp8_e4m3   x / scale, at most 448     one a layer and K/V head, measured once before serving (``kv_calibration``)
int8       round(x / scale)           one a slot and K/V head: largest magnitude of the head's vector / 127
=========  =========================  ===================================================================

A scale of its own for every vector makes int8 independent of calibration, at 4 bytes for ``head_dim`` elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reference_engine.config import ModelConfig

FP8_MAX = 448.0
INT8_MAX = 127.0
SMALLEST_SCALE = 1e-12

Scales = Literal["none", "head", "slot"]


@dataclass(frozen=True, slots=True)
class KVFormat:
    """One row of the table above."""

    name: str
    dtype: torch.dtype
    scales: Scales = "none"

    def bytes_per_token(self, model: ModelConfig) -> int:
        """Of K and V over all layers, scales of slots included."""
        per_slot_scales = 4 if self.scales == "slot" else 0
        return 2 * model.num_layers * model.num_kv_heads * (model.head_dim * self.dtype.itemsize + per_slot_scales)


FORMATS: dict[str, KVFormat] = {
    "float32": KVFormat("float32", torch.float32),
    "bfloat16": KVFormat("bfloat16", torch.bfloat16),
    "float16": KVFormat("float16", torch.float16),
    "fp8_e4m3": KVFormat("fp8_e4m3", torch.float8_e4m3fn, "head"),
    "int8": KVFormat("int8", torch.int8, "slot"),
}


def plain_format(dtype: torch.dtype) -> KVFormat:
    """K/V stored in the model's own type."""
    return FORMATS.get(str(dtype).removeprefix("torch."), KVFormat(str(dtype), dtype))


def store_rows(rows: Tensor, pool: Tensor, scale: Tensor | None, slots: Tensor) -> None:
    """Write ``rows [T, Hkv, D]`` to ``slots`` int64 ``[T]`` of ``pool [num_slots, Hkv, D]``.

    ``scale``: None, ``[Hkv]``, or ``[num_slots, Hkv]``, which is written along.
    """
    if scale is None:
        pool.index_copy_(0, slots, rows.to(pool.dtype))
    elif scale.dim() == 1:
        scaled = (rows.float() / scale[:, None]).clamp_(-FP8_MAX, FP8_MAX).to(pool.dtype)
        if pool.dtype.itemsize == 1:  # torch has no index_copy_ for fp8
            pool, scaled = pool.view(torch.uint8), scaled.view(torch.uint8)
        pool.index_copy_(0, slots, scaled)
    else:
        largest = rows.float().abs().amax(-1)
        own = (largest / INT8_MAX).clamp_(min=SMALLEST_SCALE)
        pool.index_copy_(0, slots, (rows.float() / own[..., None]).round_().to(pool.dtype))
        scale.index_copy_(0, slots, own)


def read_rows(stored: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Values of ``stored [N, Hkv, D]`` in ``dtype``; ``scale``: None, ``[Hkv]``, or ``[N, Hkv]`` of the same rows."""
    if scale is None:
        return stored.to(dtype)
    return (stored.float() * scale[..., None]).to(dtype)
