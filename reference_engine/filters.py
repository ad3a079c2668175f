"""Which tokens may be drawn: min-p, top-k and top-p as one cut-off weight per row.

A filter does not renumber the vocabulary; it finds the smallest weight that survives, and zeroes everything below:

    weight(t)   proportional to exp(logit(t) / temperature)
    min-p       weight >= min_p * largest weight
    top-k       weight >= k-th largest weight
    top-p       weight >= the last one of the fewest largest weights that hold ``top_p`` of what min-p and top-k left

So tokens that tie at the cut are all kept, and the order in which a sort leaves equal values does not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_engine.request import SamplingParams

# Sizes of the sorted head that top-p looks at before it sorts everything.  Sorting 49,152 weights costs 30 times what
# taking the largest 128 costs, and those nearly always hold top_p of the mass.
_TOP_P_HEADS = (128, 2048)


def filter_weights(weights: Tensor, params: list[SamplingParams]) -> None:
    """Zero, in place, the entries of ``weights [R, V]`` that row r's ``params[r]`` exclude."""
    _apply_min_p(weights, [(row, p.min_p) for row, p in enumerate(params) if p.min_p > 0.0])
    _apply_top_k(weights, [(row, p.top_k) for row, p in enumerate(params) if 0 < p.top_k < weights.shape[1]])
    _apply_top_p(weights, [(row, p.top_p) for row, p in enumerate(params) if p.top_p < 1.0])


def _zero_below(weights: Tensor, rows: Tensor, cut: Tensor) -> None:
    """Zero entries below ``cut [len(rows)]`` in the given rows."""
    if len(rows) == weights.shape[0]:
        weights.masked_fill_(weights < cut[:, None], 0.0)
    else:
        chosen = weights[rows]
        weights[rows] = chosen.masked_fill_(chosen < cut[:, None], 0.0)


def _row_tensor(entries: list[tuple[int, float]], device: torch.device) -> Tensor:
    return torch.tensor([row for row, _ in entries], device=device)


def _apply_min_p(weights: Tensor, entries: list[tuple[int, float]]) -> None:
    if entries:
        rows = _row_tensor(entries, weights.device)
        share = torch.tensor([value for _, value in entries], dtype=weights.dtype, device=weights.device)
        _zero_below(weights, rows, share * weights.amax(-1)[rows])


def _apply_top_k(weights: Tensor, entries: list[tuple[int, int]]) -> None:
    if not entries:
        return
    rows = torch.tensor([row for row, _ in entries], device=weights.device)
    ks = torch.tensor([k for _, k in entries], device=weights.device)
    chosen = weights if len(entries) == weights.shape[0] else weights[rows]
    head = chosen.topk(max(k for _, k in entries), dim=-1).values
    _zero_below(weights, rows, head.gather(1, (ks - 1)[:, None]).squeeze(1))


def _apply_top_p(weights: Tensor, entries: list[tuple[int, float]]) -> None:
    if not entries:
        return
    vocab = weights.shape[1]
    rows = _row_tensor(entries, weights.device)
    share = torch.tensor([value for _, value in entries], dtype=torch.float64, device=weights.device)
    sizes = [size for size in _TOP_P_HEADS if size < vocab] if weights.device.type == "cpu" else []
    for size in [*sizes, vocab]:
        chosen = weights[rows]
        needed = share * chosen.sum(-1, dtype=torch.float64)
        head = chosen.topk(size, dim=-1).values if size < vocab else chosen.sort(-1, descending=True).values
        mass = head.cumsum(-1, dtype=torch.float64)
        found = torch.ones_like(rows, dtype=torch.bool) if size == vocab else mass[:, -1] >= needed
        # The first position whose mass reaches the share; rounding can leave it one past the end, where all are kept.
        last = torch.searchsorted(mass, needed[:, None]).clamp_(max=size - 1)
        cut = head.gather(1, last).squeeze(1)
        if bool(found.all()):
            _zero_below(weights, rows, cut)
            return
        _zero_below(weights, rows[found], cut[found])
        rows, share = rows[~found], share[~found]
