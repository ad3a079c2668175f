"""The CPU backend: gather each sequence's K/V through its block table, then one fused softmax-attention call.

Two shapes of work, both without repeating K/V heads: the ``Hq / Hkv`` query heads that share a K/V head are folded into the query
length, so that a decode is a batch of ``[group, D] x [D, seq_len]`` products.

::

    decodes (query_len 1)   together, padded to the longest    [B, Hkv, group, D]  x  [B, Hkv, L, D]
    prefill chunks          one sequence at a time             [Hkv, group, q, D]  x  [Hkv, 1, L, D] (broadcast)

What is read is decided by slot index alone and computed once a step, not once a layer.  An index past a sequence's end is never made
from the table: padding points at the sequence's first attended slot, which holds finite data, and is masked.  A sequence whose slots
are one ascending run is read in place, as a view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reference_engine.attention.base import AttentionMetadata, KVCacheLayer

MASKED = float("-inf")


@dataclass(frozen=True, slots=True)
class _Batch:
    """Decodes computed together: flat rows (None = all rows of the step), slots ``[B * L]``, additive mask ``[B, 1, 1, L]``."""

    rows: Tensor | None
    slots: Tensor
    mask: Tensor | None
    count: int


@dataclass(frozen=True, slots=True)
class _Single:
    """One sequence: its flat rows, where its K/V lie (a run start or slots), additive mask ``[q, L]`` or None, causal or not."""

    first_row: int
    query_len: int
    run_start: int | None
    slots: Tensor | None
    length: int
    mask: Tensor | None
    is_causal: bool


@dataclass(frozen=True, slots=True)
class _StepPlan:
    batches: tuple[_Batch, ...]
    singles: tuple[_Single, ...]


class GatherAttention:
    """Holds the index tensors of the current step, so one instance serves one runner."""

    name = "gather"

    def __init__(self) -> None:
        self._meta: AttentionMetadata | None = None
        self._plans: dict[int | None, _StepPlan] = {}
        self._stored_rows: Tensor | None = None
        self._stored_slots: Tensor | None = None

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
        if meta is not self._meta:
            self._begin_step(meta)
        flat_key, flat_value = cache.key.flatten(0, 1), cache.value.flatten(0, 1)
        self._store(key, value, flat_key, flat_value)
        plan = self._plans.get(window)
        if plan is None:
            plan = self._plans[window] = _plan_step(meta, window)
        if len(plan.batches) == 1 and not plan.singles and plan.batches[0].rows is None:
            return _decode_batch(query, plan.batches[0], flat_key, flat_value, scale, soft_cap)
        result = torch.empty_like(query)
        for batch in plan.batches:
            rows = query if batch.rows is None else query.index_select(0, batch.rows)
            part = _decode_batch(rows, batch, flat_key, flat_value, scale, soft_cap)
            if batch.rows is None:
                result.copy_(part)
            else:
                result.index_copy_(0, batch.rows, part)
        for single in plan.singles:
            rows = query[single.first_row : single.first_row + single.query_len]
            part = _attend_single(rows, single, flat_key, flat_value, scale, soft_cap)
            result[single.first_row : single.first_row + single.query_len] = part
        return result

    def _begin_step(self, meta: AttentionMetadata) -> None:
        self._meta = meta
        self._plans = {}
        keep = meta.slot_mapping >= 0
        has_padding = not bool(keep.all())
        self._stored_rows = keep.nonzero().squeeze(1) if has_padding else None
        self._stored_slots = meta.slot_mapping[keep] if has_padding else meta.slot_mapping

    def _store(self, key: Tensor, value: Tensor, flat_key: Tensor, flat_value: Tensor) -> None:
        assert self._stored_slots is not None
        if self._stored_rows is not None:
            key, value = key.index_select(0, self._stored_rows), value.index_select(0, self._stored_rows)
        flat_key.index_copy_(0, self._stored_slots, key.to(flat_key.dtype))
        flat_value.index_copy_(0, self._stored_slots, value.to(flat_value.dtype))


def _plan_step(meta: AttentionMetadata, window: int | None) -> _StepPlan:
    tables = meta.block_tables.numpy()
    starts = np.concatenate(([0], np.cumsum(meta.query_lens)))
    decodes = [i for i, q in enumerate(meta.query_lens) if q == 1]
    batches: list[_Batch] = []
    singles = [_plan_single(meta, tables[i], i, int(starts[i]), window) for i, q in enumerate(meta.query_lens) if q > 1]
    if len(decodes) == 1:
        singles.append(_plan_single(meta, tables[decodes[0]], decodes[0], int(starts[decodes[0]]), window))
    elif decodes:
        batches.append(_plan_batch(meta, tables, decodes, starts, window))
    return _StepPlan(tuple(batches), tuple(singles))


def _plan_batch(
    meta: AttentionMetadata, tables: np.ndarray, chosen: list[int], starts: np.ndarray, window: int | None
) -> _Batch:
    lengths = np.asarray(meta.seq_lens_list, dtype=np.int64)[chosen]
    lows = np.zeros_like(lengths) if window is None else np.maximum(0, lengths - window)
    spans = lengths - lows
    longest = int(spans.max())
    offsets = np.arange(longest)
    is_inside = offsets[None, :] < spans[:, None]
    positions = np.where(is_inside, lows[:, None] + offsets[None, :], lows[:, None])
    slots = _slots(tables[chosen], positions, meta.block_size)
    mask = None
    if not is_inside.all():
        mask = torch.from_numpy(np.where(is_inside, np.float32(0), np.float32(MASKED)))[:, None, None, :]
    rows = None if len(chosen) == meta.slot_mapping.shape[0] else torch.from_numpy(starts[chosen].astype(np.int64))
    return _Batch(rows, torch.from_numpy(slots.reshape(-1)), mask, len(chosen))


def _plan_single(meta: AttentionMetadata, table: np.ndarray, index: int, first_row: int, window: int | None) -> _Single:
    query_len, seq_len = meta.query_lens[index], meta.seq_lens_list[index]
    context = seq_len - query_len
    low = 0 if window is None else max(0, context - window + 1)
    slots = _slots(table[None, :], np.arange(low, seq_len)[None, :], meta.block_size)[0]
    is_run = bool((np.diff(slots) == 1).all())
    has_window = window is not None and seq_len - low > window
    is_causal = query_len > 1 and context == 0 and not has_window
    mask = None
    if query_len > 1 and not is_causal:
        rows, columns = np.arange(context, seq_len)[:, None], np.arange(low, seq_len)[None, :]
        allowed = columns <= rows
        if window is not None:
            allowed &= columns > rows - window
        mask = torch.from_numpy(np.where(allowed, np.float32(0), np.float32(MASKED)))
    return _Single(
        first_row=first_row,
        query_len=query_len,
        run_start=int(slots[0]) if is_run else None,
        slots=None if is_run else torch.from_numpy(slots),
        length=seq_len - low,
        mask=mask,
        is_causal=is_causal,
    )


def _slots(tables: np.ndarray, positions: np.ndarray, block_size: int) -> np.ndarray:
    """Slots of ``positions [B, L]`` through ``tables [B, W]``: position is the only source of a slot."""
    blocks = np.take_along_axis(tables, positions // block_size, axis=1).astype(np.int64)
    return np.asarray(blocks * block_size + positions % block_size)


def _decode_batch(
    query: Tensor, batch: _Batch, flat_key: Tensor, flat_value: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    """``query [B, Hq, D]`` -> ``[B, Hq, D]``."""
    count, (kv_heads, dim) = batch.count, flat_key.shape[1:]
    keys = flat_key.index_select(0, batch.slots).view(count, -1, kv_heads, dim).transpose(1, 2)
    values = flat_value.index_select(0, batch.slots).view(count, -1, kv_heads, dim).transpose(1, 2)
    grouped = query.reshape(count, kv_heads, -1, dim)
    attended = _attend(grouped, keys, values, batch.mask, False, scale, soft_cap)
    return attended.reshape(query.shape)


def _attend_single(
    query: Tensor, single: _Single, flat_key: Tensor, flat_value: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    """``query [q, Hq, D]`` -> ``[q, Hq, D]``."""
    kv_heads, dim = flat_key.shape[1:]
    if single.run_start is not None:
        keys = flat_key.narrow(0, single.run_start, single.length)
        values = flat_value.narrow(0, single.run_start, single.length)
    else:
        assert single.slots is not None
        keys, values = flat_key.index_select(0, single.slots), flat_value.index_select(0, single.slots)
    keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    if single.query_len == 1:
        attended = _attend(query.view(1, kv_heads, -1, dim), keys[None], values[None], None, False, scale, soft_cap)
        return attended.reshape(query.shape)
    group = query.shape[1] // kv_heads
    grouped = query.view(single.query_len, kv_heads, group, dim).permute(1, 2, 0, 3)
    shape = (kv_heads, group, single.length, dim)
    attended = _attend(
        grouped,
        keys[:, None].expand(shape),
        values[:, None].expand(shape),
        single.mask,
        single.is_causal,
        scale,
        soft_cap,
    )
    return attended.permute(2, 0, 1, 3).reshape(query.shape)


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    soft_cap: float | None,
) -> Tensor:
    """Softmax attention of ``query [B, H, q, D]`` over ``keys, values [B, H, L, D]``; mask is added to the scores."""
    keys, values = keys.to(query.dtype), values.to(query.dtype)
    if soft_cap is None:
        typed = None if mask is None else mask.to(query.dtype)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=typed, is_causal=is_causal, scale=scale)
    scores = torch.matmul(query.to(torch.float32), keys.to(torch.float32).transpose(-1, -2)).mul_(scale)
    scores = torch.tanh(scores.div_(soft_cap)).mul_(soft_cap)
    if is_causal:
        length = scores.shape[-1]
        mask = torch.full((length, length), MASKED).triu_(1)
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1), values.to(torch.float32)).to(query.dtype)
