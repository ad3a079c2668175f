"""The oracle itself, against dense attention computed without any paging."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from reference_engine.attention.base import KVCacheLayer
from reference_engine.attention.naive import NaiveAttention


def dense(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None, cap: float | None) -> Any:
    """fp64, whole matrices, K/V heads repeated; ``query`` is the end of the sequence whose ``keys`` are given."""
    length, new = keys.shape[0], query.shape[0]
    repeat = query.shape[1] // keys.shape[1]
    keys, values = (t.double().repeat_interleave(repeat, dim=1).transpose(0, 1) for t in (keys, values))
    scores = query.double().transpose(0, 1) @ keys.transpose(1, 2) / math.sqrt(query.shape[2])
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    rows, columns = torch.arange(length - new, length)[:, None], torch.arange(length)[None]
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    return (scores.masked_fill(hidden, -math.inf).softmax(-1) @ values).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_equals_dense_attention(window: int | None, cap: float | None, make_case: Any) -> None:
    lengths = [(0, 6), (9, 1), (5, 3), (0, 1)]
    case = make_case(lengths)
    out = NaiveAttention(torch.float64).forward(
        case.query, case.key, case.value, case.cache, case.meta, scale=0.25, window=window, soft_cap=cap
    )
    first = 0
    for index, (context, new) in enumerate(lengths):
        table = case.meta.block_tables[index].tolist()
        keys = torch.stack([case.cache.key[table[p // 4], p % 4] for p in range(context + new)])
        values = torch.stack([case.cache.value[table[p // 4], p % 4] for p in range(context + new)])
        expected = dense(case.query[first : first + new], keys, values, window, cap)
        torch.testing.assert_close(out[first : first + new].double(), expected, rtol=1e-6, atol=1e-6)
        first += new


def test_fp8_scales_are_applied(make_case: Any) -> None:
    case = make_case([(6, 1)])
    expected = NaiveAttention().forward(case.query, case.key, case.value, case.fresh_cache(), case.meta, scale=0.25)
    scale = torch.tensor([2.0, 4.0])
    scaled = KVCacheLayer(
        case.cache.key / scale[:, None], case.cache.value / scale[:, None], key_scale=scale, value_scale=scale
    )
    out = NaiveAttention().forward(case.query, case.key, case.value, scaled, case.meta, scale=0.25)
    torch.testing.assert_close(out, expected)
