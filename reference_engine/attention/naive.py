"""The oracle: attention as one would write it on a blackboard, in fp32, one sequence and one query head at a time.

Nothing here is clever, so that it can be believed.  K and V of a sequence are rebuilt contiguously by walking its
positions through the block table, and every query row gets a plain softmax over the positions that it may attend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_engine.attention.base import AttentionMetadata, KVCacheLayer, store_kv


class NaiveAttention:
    """``dtype`` is the precision of the arithmetic (fp32; tests of fp32 backends may ask for fp64)."""

    name = "naive"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: KVCacheLayer,
        meta: AttentionMetadata,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        """See ``AttentionBackend``."""
        store_kv(key, value, cache, meta.slot_mapping)
        heads, kv_heads = query.shape[1], cache.key.shape[2]
        result = torch.empty_like(query)
        first = 0
        for index, (query_len, seq_len) in enumerate(zip(meta.query_lens, meta.seq_lens_list, strict=True)):
            first_needed = 0 if window is None else max(0, seq_len - query_len - window + 1)
            keys, values = self._contiguous(cache, meta.block_tables[index], first_needed, seq_len, meta.block_size)
            for row in range(query_len):
                position = seq_len - query_len + row
                low = (0 if window is None else max(0, position - window + 1)) - first_needed
                high = position + 1 - first_needed
                for head in range(heads):
                    kv_head = head // (heads // kv_heads)
                    scores = keys[low:high, kv_head] @ query[first + row, head].to(self.dtype) * scale
                    if soft_cap is not None:
                        scores = soft_cap * torch.tanh(scores / soft_cap)
                    weights = torch.softmax(scores, dim=0)
                    result[first + row, head] = (weights @ values[low:high, kv_head]).to(query.dtype)
            first += query_len
        return result

    def _contiguous(
        self, cache: KVCacheLayer, table: Tensor, first: int, seq_len: int, block_size: int
    ) -> tuple[Tensor, Tensor]:
        """K and V of positions first .. seq_len - 1, each ``[seq_len - first, Hkv, D]``."""
        blocks = table.tolist()
        slots = [(blocks[position // block_size], position % block_size) for position in range(first, seq_len)]
        keys = torch.stack([cache.key[block, offset] for block, offset in slots]).to(self.dtype)
        values = torch.stack([cache.value[block, offset] for block, offset in slots]).to(self.dtype)
        return self._scaled(keys, cache.key_scale, slots), self._scaled(values, cache.value_scale, slots)

    def _scaled(self, rows: Tensor, scale: Tensor | None, slots: list[tuple[int, int]]) -> Tensor:
        if scale is None:
            return rows
        if scale.dim() == 1:
            return rows * scale.to(self.dtype)[None, :, None]
        own = torch.stack([scale[block, offset] for block, offset in slots])
        return rows * own.to(self.dtype)[:, :, None]
