"""Paged-attention cases: shapes, random tensors over shuffled blocks, and the float64 answer.

One case serves the checks, the timings and the peers, so that all of them see the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference_engine.attention.base import AttentionMetadata, KVCacheLayer


@dataclass(frozen=True, slots=True)
class Case:
    """One call's shape.  ``query_lens[i]`` new tokens of a sequence that is ``seq_lens[i]`` long with them."""

    name: str
    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    page: int = 16
    dtype: torch.dtype = torch.bfloat16
    window: int | None = None
    soft_cap: float | None = None

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V that must be read once."""
        lengths = zip(self.query_lens, self.seq_lens, strict=True)
        live = sum(min(s, q + self.window - 1) if self.window else s for q, s in lengths)
        return 2 * live * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def min_bytes(self) -> int:
        """Fewest bytes the call can move: K and V read once, queries read, results written."""
        return self.kv_bytes + 2 * sum(self.query_lens) * self.num_heads * self.head_dim * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Multiply-adds of both products under the causal mask (and window), two operations each."""
        pairs = 0
        for q, s in zip(self.query_lens, self.seq_lens, strict=True):
            positions = range(s - q, s)
            pairs += sum(min(p + 1, self.window) if self.window else p + 1 for p in positions)
        return 4 * pairs * self.num_heads * self.head_dim


def decode_case(name: str, batch: int, seq_len: int, **shape: object) -> Case:
    """``batch`` sequences of ``seq_len`` tokens, one new token each."""
    return Case(name, (1,) * batch, (seq_len,) * batch, **shape)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Problem:
    """A case's tensors.  ``keys[i], values[i]`` are sequence i's contiguous rows [seq_len, Hkv, D] (the truth)."""

    case: Case
    query: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    cache: KVCacheLayer
    meta: AttentionMetadata

    def new_rows(self) -> tuple[Tensor, Tensor]:
        """K and V of this step's tokens, ``[T, Hkv, D]``."""
        lens = self.case.query_lens
        key = torch.cat([k[len(k) - n :] for k, n in zip(self.keys, lens, strict=True)])
        value = torch.cat([v[len(v) - n :] for v, n in zip(self.values, lens, strict=True)])
        return key, value


def build_problem(case: Case, device: torch.device, *, seed: int, poison: float = float("nan")) -> Problem:
    """Random K/V behind shuffled block tables.  Slots that hold no token, and spare blocks, are filled with
    ``poison``; block 0 is one of them.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    hkv, dim, page = case.num_kv_heads, case.head_dim, case.page

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(case.dtype)

    blocks = [-(-s // page) for s in case.seq_lens]
    num_blocks = sum(blocks) + 3
    # Block 0 is always a spare: it is what a masked table entry reads as.
    order = 1 + torch.randperm(num_blocks - 1, generator=generator, device=device).to(torch.int32)
    tables = torch.full((len(blocks), max(1, *blocks)), -1, dtype=torch.int32, device=device)
    key_cache = torch.full((num_blocks, page, hkv, dim), poison, dtype=case.dtype, device=device)
    value_cache = torch.full_like(key_cache, poison)
    keys, values, slots, used = [], [], [], 0
    for i, (length, count) in enumerate(zip(case.seq_lens, blocks, strict=True)):
        tables[i, :count] = order[used : used + count]
        used += count
        keys.append(draw(length, hkv, dim))
        values.append(draw(length, hkv, dim))
        position = torch.arange(length, device=device)
        slot = tables[i].long()[position // page] * page + position % page
        key_cache.view(-1, hkv, dim)[slot] = keys[-1]
        value_cache.view(-1, hkv, dim)[slot] = values[-1]
        slots.append(slot[length - case.query_lens[i] :])
    starts = torch.tensor([0, *case.query_lens]).cumsum(0).to(device=device, dtype=torch.int32)
    meta = AttentionMetadata(
        query_start_loc=starts,
        seq_lens=torch.tensor(case.seq_lens, dtype=torch.int32, device=device),
        block_tables=tables,
        slot_mapping=torch.cat(slots),
        block_size=page,
        max_query_len=max(case.query_lens),
        max_seq_len=max(case.seq_lens),
        query_lens=case.query_lens,
        seq_lens_list=case.seq_lens,
    )
    query = draw(sum(case.query_lens), case.num_heads, dim)
    return Problem(case, query, tuple(keys), tuple(values), KVCacheLayer(key_cache, value_cache), meta)


def exact_attention(problem: Problem) -> Tensor:
    """float64 naive attention over the contiguous rows, ``[T, Hq, D]``."""
    case = problem.case
    group = case.num_heads // case.num_kv_heads
    parts, start = [], 0
    for q_len, s_len, key, value in zip(case.query_lens, case.seq_lens, problem.keys, problem.values, strict=True):
        query = problem.query[start : start + q_len].double()
        start += q_len
        rows = []
        for first in range(0, q_len, 256):  # bounds the score matrix on long prefills
            chunk = query[first : first + 256].view(-1, case.num_kv_heads, group, case.head_dim)
            position = torch.arange(s_len - q_len + first, s_len - q_len + first + len(chunk), device=query.device)
            scores = torch.einsum("qhgd,khd->hgqk", chunk, key.double()) * case.scale
            if case.soft_cap is not None:
                scores = case.soft_cap * torch.tanh(scores / case.soft_cap)
            keys = torch.arange(s_len, device=query.device)
            seen = keys[None, :] <= position[:, None]
            if case.window is not None:
                seen &= keys[None, :] > position[:, None] - case.window
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            rows.append(torch.einsum("hgqk,khd->qhgd", weights, value.double()).reshape(len(chunk), -1, case.head_dim))
        parts.extend(rows)
    return torch.cat(parts)


def relative_error(result: Tensor, exact: Tensor) -> float:
    """``|result - exact| / |exact|`` over all elements; NaN anywhere gives NaN."""
    return float((result.double() - exact).norm() / exact.norm())
