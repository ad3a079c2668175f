"""Random paged batches with everything around them poisoned."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from reference_engine.attention.base import AttentionMetadata, KVCacheLayer
from reference_engine.batch import build
from reference_engine.plan import ScheduledSeq, StepPlan


@dataclass(frozen=True, slots=True)
class PagedCase:
    """One attention call: new rows, a pool that is NaN wherever no context token lies, and the metadata."""

    query: Tensor
    key: Tensor
    value: Tensor
    cache: KVCacheLayer
    meta: AttentionMetadata

    def fresh_cache(self) -> KVCacheLayer:
        return KVCacheLayer(self.cache.key.clone(), self.cache.value.clone())


MakeCase = Callable[..., PagedCase]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_case() -> MakeCase:
    """``make_case(lengths, heads, kv_heads, dim, block_size)``; lengths = (context_len, query_len) of each sequence."""

    def make(
        lengths: list[tuple[int, int]],
        heads: int = 4,
        kv_heads: int = 2,
        dim: int = 16,
        block_size: int = 4,
        dtype: torch.dtype = torch.float32,
        in_order: bool = False,
        spare_blocks: int = 3,
        shared_blocks: int = 0,
    ) -> PagedCase:
        """``shared_blocks``: so many leading blocks that every sequence has in common (contexts must cover them)."""
        needed = [-(-(context + new) // block_size) for context, new in lengths]
        num_blocks = sum(needed) + spare_blocks
        ids = list(range(num_blocks)) if in_order else random.sample(range(num_blocks), num_blocks)
        tables = [tuple(ids.pop(0) for _ in range(count)) for count in needed]
        tables = [tables[0][:shared_blocks] + table[shared_blocks:] for table in tables]
        shape = (num_blocks, block_size, kv_heads, dim)
        cache = KVCacheLayer(torch.full(shape, float("nan"), dtype=dtype), torch.full(shape, float("nan"), dtype=dtype))
        for (context, _), table in zip(lengths, tables, strict=True):
            for position in range(context):
                block, offset = table[position // block_size], position % block_size
                cache.key[block, offset] = torch.randn(kv_heads, dim)
                cache.value[block, offset] = torch.randn(kv_heads, dim)
        seqs = tuple(
            ScheduledSeq(i, context, (0,) * new, table, 1)
            for i, ((context, new), table) in enumerate(zip(lengths, tables, strict=True))
        )
        meta = build(StepPlan(0, seqs), block_size, torch.device("cpu")).meta
        rows = sum(new for _, new in lengths)
        query, key, value = (torch.randn(rows, h, dim).to(dtype) for h in (heads, kv_heads, kv_heads))
        return PagedCase(query, key, value, cache, meta)

    return make
