"""Drawing from the few most likely tokens of a row, wherever the filters leave no others.

Filters (``filters``) nearly always cut a row down to a few dozen tokens.  Then a sort of the vocabulary is not needed:
the cut is placed among the ``HEAD`` largest, and the draw is made from them in the order of their ids, which gives the
token that the same uniform number picks from the whole row.

A row is *settled* if its cut lies above the last of its head; a tie that might go on beyond the head does not settle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference_engine.largest import largest
from reference_engine.request import SamplingParams

HEAD = 128  # tokens looked at; one more tells whether the cut fell among them


@dataclass(frozen=True, slots=True)
class HeadDraw:
    """``tokens [R]`` (int64) are valid where ``settled [R]``."""

    tokens: Tensor
    settled: Tensor


def is_top_k_in_head(params: SamplingParams) -> bool:
    """Whether the row's filters can be applied without a look at the rest of it."""
    return 0 < params.top_k <= HEAD


def draw_top_k(logits: Tensor, params: list[SamplingParams], temperature: Tensor, unit: Tensor) -> HeadDraw:
    """Draw for rows of ``is_top_k_in_head``: ``logits [R, V]``, ``temperature [R, 1]``, ``unit [R]`` in [0, 1)."""
    size = min(max(p.top_k for p in params) + 1, logits.shape[1])
    values, ids = largest(logits, size)
    weights = (values - values[:, :1]).div_(temperature).exp_()
    return _draw(weights, ids, params, unit, whole=None, reaches_end=size == logits.shape[1])


def draw_nucleus(weights: Tensor, params: list[SamplingParams], unit: Tensor) -> HeadDraw:
    """Draw for rows with top-p or min-p and no top-k, from the ``weights [R, V]`` of all tokens."""
    size = min(HEAD + 1, weights.shape[1])
    values, ids = largest(weights, size)
    whole = weights.sum(-1, dtype=torch.float64)
    return _draw(values, ids, params, unit, whole=whole, reaches_end=size == weights.shape[1])


def _draw(
    weights: Tensor, ids: Tensor, params: list[SamplingParams], unit: Tensor, *, whole: Tensor | None, reaches_end: bool
) -> HeadDraw:
    """``weights [R, H]``, largest first, of tokens ``ids``; ``whole``: the rows' sums where no top-k bounds them."""
    cut = _min_p_and_top_k(weights, params)
    beyond = torch.zeros_like(cut) if reaches_end else weights[:, -1]
    settled = beyond < cut
    kept = weights.masked_fill(weights < cut[:, None], 0.0)
    if any(p.top_p < 1.0 for p in params):
        mass = kept.cumsum(-1, dtype=torch.float64)
        total = mass[:, -1] if whole is None else torch.where(settled, mass[:, -1], whole)
        share = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=weights.device)
        needed = share * total
        last = torch.searchsorted(mass, needed[:, None]).clamp_(max=weights.shape[1] - 1)
        nucleus = kept.gather(1, last).squeeze(1).masked_fill_(share == 1.0, 0.0)
        if whole is not None:  # where min-p does not cut, top-p alone may
            settled |= (cut == 0) & (mass[:, -1] >= needed) & (beyond < nucleus)
        kept.masked_fill_(kept < nucleus[:, None], 0.0)
    ids, order = ids.sort(-1)
    mass = kept.gather(1, order).cumsum(-1, dtype=torch.float64)
    picked = torch.searchsorted(mass, unit[:, None] * mass[:, -1:], right=True).clamp_(max=weights.shape[1] - 1)
    return HeadDraw(ids.gather(1, picked).squeeze(1), settled)


def _min_p_and_top_k(weights: Tensor, params: list[SamplingParams]) -> Tensor:
    """The smallest weight that both keep, [R]; 0 where neither is on."""
    device = weights.device
    cut = torch.tensor([p.min_p for p in params], dtype=weights.dtype, device=device) * weights[:, 0]
    if any(p.top_k for p in params):
        last = torch.tensor([min(p.top_k or 1, weights.shape[1]) - 1 for p in params], device=device)
        on = torch.tensor([p.top_k > 0 for p in params], device=device)
        cut = torch.maximum(cut, torch.where(on, weights.gather(1, last[:, None]).squeeze(1), 0.0))
    return cut
