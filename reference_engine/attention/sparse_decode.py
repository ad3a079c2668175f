"""Decode attention that copies no K/V: each score is a dot product read where the key lies.

The pool of one layer is seen as a matrix of ``num_slots * Hkv`` rows of D numbers, K and V alike.  A query head of a
sequence attends the pool rows that its block table names.  Then

::

    scores  = sampled product   S_ij = q_i . k_j      only where query head i attends pool row j
    weights = softmax over the entries of each query head
    output  = weighted bag      o_i = sum_j w_ij v_j

Compared with gathering K and V first this reads every key and value once and writes none.  The lists of entries are made
once a step, from the block tables alone, and serve all layers.

Sequences are sorted into groups of nearly equal length; inside a group rows are padded to the longest.  A padding entry
repeats the sequence's first attended slot, which holds finite numbers, and its weight is exactly 0.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# Padding that one group may hold, in tokens: below that another softmax call costs more than the padding.
GROUP_PADDING = 64
# Scores are computed in the order of the pool when the attended slots lie within this many times their number of slots;
# beyond, walking the unattended rows costs more than the order gains.
DENSE_SPAN = 4


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences ``begin .. end - 1`` of the sorted batch, padded to ``length`` tokens each."""

    begin: int
    end: int
    length: int


def group_by_length(sorted_lengths: list[int], allowed_padding: int = GROUP_PADDING) -> list[Group]:
    """Cut ``sorted_lengths`` (descending, tokens) into groups that pad at most ``allowed_padding`` tokens each."""
    groups: list[Group] = []
    begin, padding = 0, 0
    for index, length in enumerate(sorted_lengths):
        padding += sorted_lengths[begin] - length
        if padding > allowed_padding:
            groups.append(Group(begin, index, sorted_lengths[begin]))
            begin, padding = index, 0
    groups.append(Group(begin, len(sorted_lengths), sorted_lengths[begin]))
    return groups


@dataclass(frozen=True, slots=True)
class _GroupSlots:
    """Slots int64 ``[n, length]`` that a group attends (padding: the first one again), and which entries are real."""

    slots: np.ndarray
    is_inside: np.ndarray


class _Scores(Protocol):
    """Fills ``out [entries]`` with ``scale * q . k``: for each group, each sequence, each head, each token."""

    def compute(self, rows: Tensor, keys: Tensor, scale: float, out: Tensor) -> None: ...


class _ScoresByQuery:
    """One sparse row a query head: its keys in token order.  For any table."""

    def __init__(self, columns: Tensor, starts: Tensor, num_rows: int) -> None:
        self._matrix = _pattern(starts, columns, (starts.numel() - 1, num_rows))

    def compute(self, rows: Tensor, keys: Tensor, scale: float, out: Tensor) -> None:
        torch.sparse.sampled_addmm(self._matrix, rows, keys.t(), beta=0.0, alpha=scale, out=self._matrix)
        out.copy_(self._matrix.values())


class _ScoresByKey:
    """One sparse row a pool row, in the order of the pool: each key is read once, for all query heads that attend it.

    About twice as fast as by query, more where sequences share blocks; afterwards the scores are put in query order.
    """

    def __init__(self, groups: list[_GroupSlots], low: int, span: int, heads: int, kv_heads: int) -> None:
        self._first, self._count = low * kv_heads, span * kv_heads
        shared = heads // kv_heads
        # An entry is one token of one sequence.
        slots = np.concatenate([g.slots[g.is_inside] for g in groups]) - low
        lengths = np.concatenate([g.is_inside.sum(axis=1) for g in groups])
        owner = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        sharers = np.bincount(slots, minlength=span).astype(np.int32)
        before = np.cumsum(sharers, dtype=np.int32) - sharers
        turn = _turns(slots, before) if sharers.max() > 1 else None
        # Values of a slot lie [Hkv][owner][heads that share the K/V head]: the entry's for head h are at
        # base + h % shared + step * (h // shared).
        base, step = before[slots] * np.int32(heads), sharers[slots] * np.int32(shared)
        if turn is not None:
            base += turn * np.int32(shared)
        head = np.arange(heads, dtype=np.int32)
        columns = np.empty(len(slots) * heads, dtype=np.int32)
        if turn is None:
            by_slot = np.empty_like(owner)
            by_slot[before[slots]] = owner
            np.add((by_slot * np.int32(heads))[:, None], head, out=columns.reshape(-1, heads))
        else:
            places = base[:, None] + head % shared + step[:, None] * (head // shared)
            columns[places] = (owner * np.int32(heads))[:, None] + head
        starts = np.zeros(self._count + 1, dtype=np.int32)
        np.cumsum(np.repeat(sharers * np.int32(shared), kv_heads), out=starts[1:])
        self._matrix = _pattern(
            torch.from_numpy(starts), torch.from_numpy(columns), (self._count, len(lengths) * heads)
        )
        self._places = torch.from_numpy(_in_query_order(groups, lengths, base, step, heads, shared))

    def compute(self, rows: Tensor, keys: Tensor, scale: float, out: Tensor) -> None:
        attended = keys.narrow(0, self._first, self._count)
        torch.sparse.sampled_addmm(self._matrix, attended, rows.t(), beta=0.0, alpha=scale, out=self._matrix)
        torch.index_select(self._matrix.values(), 0, self._places, out=out)


class SparseDecode:
    """The entries of one step's decodes.  fp32 only (torch has no sampled product in bf16 or fp16).

    tables: int ``[B, W]`` block tables; lows, highs: attended positions ``low .. high - 1`` of each sequence.
    """

    def __init__(
        self,
        tables: np.ndarray,
        lows: np.ndarray,
        highs: np.ndarray,
        block_size: int,
        heads: int,
        kv_heads: int,
        num_slots: int,
    ) -> None:
        lengths = highs - lows
        order = np.argsort(-lengths, kind="stable")
        is_sorted = bool((order[1:] > order[:-1]).all())
        self._order = None if is_sorted else torch.from_numpy(order)
        self._groups = group_by_length(lengths[order].tolist())
        attended = [_attended(g, order, tables, lows, lengths, block_size) for g in self._groups]
        self._masks = [_additive_mask(g.is_inside) for g in attended]

        index_type = np.int32 if num_slots * kv_heads < 2**31 else np.int64
        head_of = np.arange(heads) // (heads // kv_heads)
        columns = [(g.slots[:, None, :] * kv_heads + head_of[None, :, None]).astype(index_type) for g in attended]
        per_row = np.repeat([g.length for g in self._groups], [(g.end - g.begin) * heads for g in self._groups])
        starts = np.concatenate([[0], np.cumsum(per_row)]).astype(index_type)
        self._columns = torch.from_numpy(np.concatenate([c.reshape(-1) for c in columns]))
        self._starts = torch.from_numpy(starts)
        self._scores = torch.empty(self._columns.numel())
        self._weights = torch.empty_like(self._scores)

        low, high = min(int(g.slots.min()) for g in attended), max(int(g.slots.max()) for g in attended) + 1
        self._scorer: _Scores
        if high - low <= DENSE_SPAN * int(lengths.sum()) and self._columns.numel() < 2**31:
            self._scorer = _ScoresByKey(attended, low, high - low, heads, kv_heads)
        else:
            self._scorer = _ScoresByQuery(self._columns, self._starts, num_slots * kv_heads)

    def attend(
        self, query: Tensor, flat_key: Tensor, flat_value: Tensor, scale: float, soft_cap: float | None
    ) -> Tensor:
        """``query [B, Hq, D]``, pool ``[slots, Hkv, D]`` -> ``[B, Hq, D]``."""
        count, heads, dim = query.shape
        rows = query if self._order is None else query.index_select(0, self._order)
        keys, values = flat_key.view(-1, dim), flat_value.view(-1, dim)
        self._scorer.compute(rows.reshape(count * heads, dim), keys, scale, self._scores)
        if soft_cap is not None:
            self._scores.div_(soft_cap).tanh_().mul_(soft_cap)
        first = 0
        for group, mask in zip(self._groups, self._masks, strict=True):
            shape = (group.end - group.begin, heads, group.length)
            last = first + shape[0] * shape[1] * shape[2]
            scores = self._scores[first:last].view(shape)
            if mask is not None:
                scores.add_(mask)
            torch.softmax(scores, dim=-1, out=self._weights[first:last].view(shape))
            first = last
        summed = torch.embedding_bag(values, self._columns, self._starts, False, 0, False, self._weights, True)[0]
        result = summed.view(count, heads, dim)
        if self._order is None:
            return result
        return torch.empty_like(result).index_copy_(0, self._order, result)


def _attended(
    group: Group, order: np.ndarray, tables: np.ndarray, lows: np.ndarray, lengths: np.ndarray, block_size: int
) -> _GroupSlots:
    chosen = order[group.begin : group.end]
    offsets = np.arange(group.length)
    is_inside = offsets[None, :] < lengths[chosen, None]
    positions = lows[chosen, None] + np.where(is_inside, offsets[None, :], 0)
    blocks = np.take_along_axis(tables[chosen], positions // block_size, axis=1).astype(np.int64)
    return _GroupSlots(blocks * block_size + positions % block_size, is_inside)


def _additive_mask(is_inside: np.ndarray) -> Tensor | None:
    """``[n, 1, length]``: 0 inside, -inf in the padding; None when there is none."""
    if is_inside.all():
        return None
    return torch.from_numpy(np.where(is_inside, np.float32(0), np.float32("-inf"))[:, None, :])


def _turns(slots: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Of the entries that share a slot, which one each is: 0, 1, ..."""
    order = np.argsort(slots, kind="stable")
    turn = np.empty(len(slots), dtype=np.int32)
    turn[order] = np.arange(len(slots), dtype=np.int32) - before[slots[order]]
    return turn


def _in_query_order(
    groups: list[_GroupSlots], lengths: np.ndarray, base: np.ndarray, step: np.ndarray, heads: int, shared: int
) -> np.ndarray:
    """Where the score of each group, sequence, head, token lies (see ``base`` and ``step``); padding: the first token's."""
    head = np.arange(heads, dtype=np.int32)[None, :, None]
    firsts = np.cumsum(lengths) - lengths
    parts, sequence = [], 0
    for group in groups:
        count, length = group.slots.shape
        offsets = np.where(group.is_inside, np.arange(length)[None, :], 0)
        entries = firsts[sequence : sequence + count, None] + offsets
        places = base[entries][:, None, :] + head % shared
        places += step[entries][:, None, :] * (head // shared)
        parts.append(places.reshape(-1))
        sequence += count
    return np.concatenate(parts)


def _pattern(starts: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
    """A sparse matrix whose values are still to come.

    They start as zeros because the sampled product adds 0 times what was there, and 0 times NaN is NaN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "sparse CSR is in beta state"
        return torch.sparse_csr_tensor(starts, columns, torch.zeros(columns.numel()), size=size, check_invariants=False)
