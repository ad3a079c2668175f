"""The one interface of all attention backends, and the words they share.

::

    one sequence          |<------------ seq_len ------------>|
    positions             0 ....... context_len ....... seq_len
                          | already in cache |  query_len new |

    flat batch of T rows  [ seq 0 rows | seq 1 rows | ... ]   query_start_loc = exclusive prefix sum of query_len, B+1 entries

    KV cache, per layer   key_cache, value_cache: [num_blocks, block_size, Hkv, D]
    slot of position p    block_table[p // block_size] * block_size + p % block_size     (the only source of a slot)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reference_engine.attention.kv_format import store_rows
from reference_engine.huge_pages import prefer_huge_pages


@dataclass(frozen=True, slots=True)
class KVCacheLayer:
    """K and V of one layer, each ``[num_blocks, block_size, Hkv, D]``.

    Scales are fp32 on the cache's device: None, ``[Hkv]``, or ``[num_blocks, block_size, Hkv]`` (see ``kv_format``).
    """

    key: Tensor
    value: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything whose first dimension is the block: what moves when a block is copied or swapped."""
        own = [scale for scale in (self.key_scale, self.value_scale) if scale is not None and scale.dim() == 3]
        return self.key, self.value, *own

    def fill(self, value: float, blocks: Tensor | None = None) -> None:
        """Overwrite all blocks, or those of the int64 ids ``blocks``, with ``value``, as poison.

        A type that cannot hold it takes what it can: int8 its largest number, with the value in the scales.
        """
        for pool in self.tensors():
            if pool.dtype.is_floating_point:
                one = torch.tensor(value).to(pool.dtype)
            else:
                one = torch.tensor(torch.iinfo(pool.dtype).max, dtype=pool.dtype)
            # torch has no index_fill_ for fp8.
            stored, one = (pool.view(torch.uint8), one.view(torch.uint8)) if pool.dtype.itemsize == 1 else (pool, one)
            if blocks is None:
                stored.fill_(one.item())
            else:
                stored.index_fill_(0, blocks, one.item())


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the rows of a flat batch live.  All tensors are on the model's device.

    query_start_loc  int32 [B + 1]    first flat row of each sequence; [-1] = T
    seq_lens         int32 [B]        context_len + query_len of each sequence
    block_tables     int32 [B, W]     physical block ids; entries past a sequence's blocks are -1 and never read
    slot_mapping     int64 [T]        slot that row t's new K/V goes to; < 0 = do not store (padding)
    block_size       slots in a block
    max_query_len, max_seq_len, query_lens, seq_lens_list: host copies, so that no backend must sync to read them
    """

    query_start_loc: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    slot_mapping: Tensor
    block_size: int
    max_query_len: int
    max_seq_len: int
    query_lens: tuple[int, ...]
    seq_lens_list: tuple[int, ...]

    @property
    def num_seqs(self) -> int:
        return len(self.query_lens)


class AttentionBackend(Protocol):
    """Causal attention of new rows over a paged cache.

    ``forward`` first stores the rows' K/V at ``meta.slot_mapping``, then row t of sequence b at position p attends positions
    ``max(0, p - window + 1) .. p`` of the same sequence, read through its block table alone.  Query head h reads K/V head
    ``h // (Hq // Hkv)``.  Slots that no table position covers may hold anything, NaN included, and never reach the result.
    """

    name: str

    def forward(
        self,
        query: Tensor,  # [T, Hq, D], RoPE applied
        key: Tensor,  # [T, Hkv, D], RoPE applied
        value: Tensor,  # [T, Hkv, D]
        cache: KVCacheLayer,
        meta: AttentionMetadata,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:  # [T, Hq, D], query's dtype
        ...


def store_kv(key: Tensor, value: Tensor, cache: KVCacheLayer, slot_mapping: Tensor) -> None:
    """Write rows ``key, value [T, Hkv, D]`` to their slots with torch indexing; rows whose slot is < 0 are skipped."""
    flat_key = cache.key.view(-1, *cache.key.shape[2:])
    flat_value = cache.value.view(-1, *cache.value.shape[2:])
    if bool((slot_mapping < 0).any()):
        keep = slot_mapping >= 0
        key, value, slot_mapping = key[keep], value[keep], slot_mapping[keep]
    store_rows(key, flat_key, flat_scale(cache.key_scale), slot_mapping)
    store_rows(value, flat_value, flat_scale(cache.value_scale), slot_mapping)


def flat_scale(scale: Tensor | None) -> Tensor | None:
    """Scales of slots as ``[num_slots, Hkv]``; others as they are."""
    return scale.flatten(0, 1) if scale is not None and scale.dim() == 3 else scale


def empty_cache_layer(
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    slot_scales: bool = False,
) -> KVCacheLayer:
    """Zeroed K/V storage of one layer, with room for a scale of every slot and head if asked for."""
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    key, value = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
    for pool in (key, value):
        if device.type == "cpu":
            prefer_huge_pages(pool.data_ptr(), pool.nbytes)  # before the first touch
        pool.zero_()
    if not slot_scales:
        return KVCacheLayer(key=key, value=value)
    scales = [torch.zeros(shape[:3], dtype=torch.float32, device=device) for _ in range(2)]
    return KVCacheLayer(key, value, *scales)
