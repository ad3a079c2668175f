"""The CPU backend: K/V are read through slot indices that are made once a step and serve every layer.

Two shapes of work, both without repeating K/V heads: the ``Hq / Hkv`` query heads that share a K/V head are a
dimension of their own.

::

    decodes (query_len 1)   all together            fp32: no copy of K/V at all, see sparse_decode.py
                                                    else: gathered, padded to the longest, [B, Hkv, group, D] x [B,
                                                    Hkv, L, D] prefill chunks          one sequence at a time  [Hkv,
                                                    group, q, D] x [Hkv, 1, L, D] (broadcast over the group)

A slot index is only ever made from a position inside the sequence.  Padding points at the sequence's first attended
slot, which holds finite data, and is masked; so garbage in slots that no position covers cannot reach a result.  A
chunk whose slots are one ascending run is read in place, as a view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reference_engine.attention.base import AttentionMetadata, KVCacheLayer, flat_scale
from reference_engine.attention.kv_format import read_rows, store_rows
from reference_engine.attention.sparse_decode import SparseDecode


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A prefill chunk: its flat rows, where its ``length`` attended slots lie, the additive mask ``[q, length]``."""

    first_row: int
    query_len: int
    length: int
    run_start: int | None  # the slots are run_start .. run_start + length - 1
    slots: Tensor | None  # or these, int64 [length]
    mask: Tensor | None
    is_causal: bool


@dataclass(frozen=True, slots=True)
class _PaddedDecodes:
    """Decodes that are gathered: slots int64 ``[B * L]``, additive mask ``[B, 1, 1, L]`` (None: lengths are equal)."""

    count: int
    slots: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class _Pool:
    """K or V of all slots, ``[num_slots, Hkv, D]``, and their scales: None, ``[Hkv]`` or ``[num_slots, Hkv]``."""

    rows: Tensor
    scale: Tensor | None


@dataclass(frozen=True, slots=True)
class _Index:
    """Everything about a step that all layers with the same window share."""

    decode_rows: Tensor | None  # flat rows of the decodes; None = the first num_decodes rows
    num_decodes: int
    decodes: SparseDecode | _PaddedDecodes | None
    chunks: tuple[_Chunk, ...]


class GatherAttention:
    """Holds the current step's indices and two scratch buffers, so one instance serves one runner."""

    name = "gather"

    def __init__(self) -> None:
        self._meta: AttentionMetadata | None = None
        self._indices: dict[int | None, _Index] = {}
        self._stored_rows: Tensor | None = None
        self._stored_slots = torch.empty(0, dtype=torch.int64)
        self._scratch: dict[str, Tensor] = {}

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
        keys = _Pool(cache.key.flatten(0, 1), flat_scale(cache.key_scale))
        values = _Pool(cache.value.flatten(0, 1), flat_scale(cache.value_scale))
        self._store(key, value, keys, values)
        index = self._indices.get(window)
        if index is None:
            index = self._indices[window] = _index_step(meta, window, query, keys.rows)
        if index.decodes is not None and not index.chunks:
            return self._decode(query, index, keys, values, scale, soft_cap)
        result = torch.empty_like(query)
        for chunk in index.chunks:
            rows = slice(chunk.first_row, chunk.first_row + chunk.query_len)
            result[rows] = self._attend_chunk(query[rows], chunk, keys, values, scale, soft_cap)
        if index.decode_rows is not None:
            rows_of = query.index_select(0, index.decode_rows)
            attended = self._decode(rows_of, index, keys, values, scale, soft_cap)
            result.index_copy_(0, index.decode_rows, attended)
        elif index.decodes is not None:
            first = query[: index.num_decodes]
            result[: index.num_decodes] = self._decode(first, index, keys, values, scale, soft_cap)
        return result

    def _begin_step(self, meta: AttentionMetadata) -> None:
        self._meta = meta
        self._indices = {}
        keep = meta.slot_mapping >= 0
        has_padding = not bool(keep.all())
        self._stored_rows = keep.nonzero().squeeze(1) if has_padding else None
        self._stored_slots = meta.slot_mapping[keep] if has_padding else meta.slot_mapping

    def _store(self, key: Tensor, value: Tensor, keys: _Pool, values: _Pool) -> None:
        if self._stored_rows is not None:
            key, value = key.index_select(0, self._stored_rows), value.index_select(0, self._stored_rows)
        store_rows(key, keys.rows, keys.scale, self._stored_slots)
        store_rows(value, values.rows, values.scale, self._stored_slots)

    def _read(self, name: str, pool: _Pool, slots: Tensor, dtype: torch.dtype) -> Tensor:
        """Values at ``slots`` ``[N, Hkv, D]``, without their scales: in ``dtype``, or as stored where there are none."""
        rows = self._gathered(name, pool.rows, slots)
        if pool.scale is None:
            return rows
        return read_rows(rows, pool.scale if pool.scale.dim() == 1 else pool.scale.index_select(0, slots), dtype)

    def _gathered(self, name: str, flat: Tensor, slots: Tensor) -> Tensor:
        """Rows of ``flat`` at ``slots``, in a buffer that is kept: fresh pages cost more than the copy."""
        buffer = self._scratch.get(name)
        if (
            buffer is None
            or buffer.shape[0] < slots.numel()
            or buffer.shape[1:] != flat.shape[1:]
            or buffer.dtype != flat.dtype
        ):
            buffer = self._scratch[name] = flat.new_empty((slots.numel() * 5 // 4 + 1, *flat.shape[1:]))
        return torch.index_select(flat, 0, slots, out=buffer[: slots.numel()])

    def _decode(
        self, query: Tensor, index: _Index, key_pool: _Pool, value_pool: _Pool, scale: float, soft_cap: float | None
    ) -> Tensor:
        """``query [B, Hq, D]``, one row a sequence -> ``[B, Hq, D]``."""
        if isinstance(index.decodes, SparseDecode):
            return index.decodes.attend(query, key_pool.rows, value_pool.rows, scale, soft_cap)
        assert index.decodes is not None
        padded, (kv_heads, dim) = index.decodes, key_pool.rows.shape[1:]
        shape = (padded.count, -1, kv_heads, dim)
        keys = self._read("key", key_pool, padded.slots, query.dtype).view(shape).transpose(1, 2)
        values = self._read("value", value_pool, padded.slots, query.dtype).view(shape).transpose(1, 2)
        grouped = query.reshape(padded.count, kv_heads, -1, dim)
        return _attend(grouped, keys, values, padded.mask, False, scale, soft_cap).reshape(query.shape)

    def _attend_chunk(
        self, query: Tensor, chunk: _Chunk, key_pool: _Pool, value_pool: _Pool, scale: float, soft_cap: float | None
    ) -> Tensor:
        """``query [q, Hq, D]`` -> ``[q, Hq, D]``."""
        kv_heads, dim = key_pool.rows.shape[1:]
        if chunk.slots is None:
            assert chunk.run_start is not None
            run = slice(chunk.run_start, chunk.run_start + chunk.length)
            keys, values = (_run_of(pool, run, query.dtype) for pool in (key_pool, value_pool))
        else:
            keys = self._read("key", key_pool, chunk.slots, query.dtype)
            values = self._read("value", value_pool, chunk.slots, query.dtype)
        group = query.shape[1] // kv_heads
        grouped = query.unflatten(1, (kv_heads, group)).permute(1, 2, 0, 3)
        shape = (kv_heads, group, chunk.length, dim)
        keys, values = (t.transpose(0, 1)[:, None].expand(shape) for t in (keys, values))
        attended = _attend(grouped, keys, values, chunk.mask, chunk.is_causal, scale, soft_cap)
        return attended.permute(2, 0, 1, 3).reshape(query.shape)


def _run_of(pool: _Pool, run: slice, dtype: torch.dtype) -> Tensor:
    """A run of slots, as ``GatherAttention._read`` gives them; a view where there are no scales."""
    if pool.scale is None:
        return pool.rows[run]
    return read_rows(pool.rows[run], pool.scale if pool.scale.dim() == 1 else pool.scale[run], dtype)


def _index_step(meta: AttentionMetadata, window: int | None, query: Tensor, flat_key: Tensor) -> _Index:
    tables = meta.block_tables.numpy()
    query_lens = np.asarray(meta.query_lens, dtype=np.int64)
    seq_lens = np.asarray(meta.seq_lens_list, dtype=np.int64)
    first_rows = np.cumsum(query_lens) - query_lens
    chunks = tuple(
        _index_chunk(meta, tables[i], int(query_lens[i]), int(seq_lens[i]), int(first_rows[i]), window)
        for i in np.flatnonzero(query_lens > 1)
    )
    decoding = np.flatnonzero(query_lens == 1)
    count = len(decoding)
    if count == 0:
        return _Index(None, 0, None, chunks)
    highs = seq_lens[decoding]
    lows = np.zeros_like(highs) if window is None else np.maximum(0, highs - window)
    decodes: SparseDecode | _PaddedDecodes
    if query.dtype == flat_key.dtype == torch.float32:
        heads, kv_heads, num_slots = query.shape[1], flat_key.shape[1], flat_key.shape[0]
        decodes = SparseDecode(tables[decoding], lows, highs, meta.block_size, heads, kv_heads, num_slots)
    else:
        decodes = _pad_decodes(tables[decoding], lows, highs, meta.block_size)
    are_first = bool((first_rows[decoding] == np.arange(count)).all())
    return _Index(None if are_first else torch.from_numpy(first_rows[decoding]), count, decodes, chunks)


def _pad_decodes(tables: np.ndarray, lows: np.ndarray, highs: np.ndarray, block_size: int) -> _PaddedDecodes:
    spans = highs - lows
    offsets = np.arange(int(spans.max()))[None, :]
    is_inside = offsets < spans[:, None]
    slots = slots_of(tables, lows[:, None] + np.where(is_inside, offsets, 0), block_size)
    return _PaddedDecodes(len(spans), torch.from_numpy(slots.reshape(-1)), _additive(is_inside[:, None, None, :]))


def _index_chunk(
    meta: AttentionMetadata, table: np.ndarray, query_len: int, seq_len: int, first_row: int, window: int | None
) -> _Chunk:
    context = seq_len - query_len
    low = 0 if window is None else max(0, context - window + 1)
    slots = slots_of(table[None, :], np.arange(low, seq_len)[None, :], meta.block_size)[0]
    is_run = bool((np.diff(slots) == 1).all())
    is_causal = context == 0 and (window is None or seq_len <= window)
    mask = None
    if not is_causal:
        rows, columns = np.arange(context, seq_len)[:, None], np.arange(low, seq_len)[None, :]
        is_allowed = columns <= rows
        if window is not None:
            is_allowed &= columns > rows - window
        mask = _additive(is_allowed)
    return _Chunk(
        first_row=first_row,
        query_len=query_len,
        length=seq_len - low,
        run_start=int(slots[0]) if is_run else None,
        slots=None if is_run else torch.from_numpy(slots),
        mask=mask,
        is_causal=is_causal,
    )


def slots_of(tables: np.ndarray, positions: np.ndarray, block_size: int) -> np.ndarray:
    """Slots int64 of ``positions [B, L]`` through ``tables [B, W]``: position is the only source of a slot."""
    blocks = np.take_along_axis(tables, positions // block_size, axis=1).astype(np.int64)
    return np.asarray(blocks * block_size + positions % block_size)


def _additive(is_allowed: np.ndarray) -> Tensor | None:
    """0 where allowed, -inf elsewhere; None when everything is."""
    if is_allowed.all():
        return None
    return torch.from_numpy(np.where(is_allowed, np.float32(0), np.float32("-inf")))


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
        return scaled_dot_product_attention(query, keys, values, attn_mask=typed, is_causal=is_causal, scale=scale)
    scores = torch.matmul(query.to(torch.float32), keys.to(torch.float32).transpose(-1, -2)).mul_(scale)
    scores = torch.tanh(scores.div_(soft_cap)).mul_(soft_cap)
    if is_causal:
        length = scores.shape[-1]
        mask = torch.full((length, length), float("-inf")).triu_(1)
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1), values.to(torch.float32)).to(query.dtype)
