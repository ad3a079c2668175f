"""Drawing from the few most likely tokens of a row, wherever the filters leave no others.

Filters (``filters``) nearly always cut a row down to a few dozen tokens.  Then neither the whole vocabulary nor a sort
of it is needed: the largest ``HEAD`` logits are found in two levels, the cut is placed among them, and the draw is made
from them in the order of their ids, which gives the token that the same uniform number picks from the whole row.

A row is *settled* if its cut lies above the last of its head; a tie that might go on beyond the head does not settle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference_engine.request import SamplingParams

HEAD = 128  # tokens looked at; one more tells whether the cut fell among them
_LANE = 64


@dataclass(frozen=True, slots=True)
class HeadDraw:
    """``tokens [R]`` (int64) are valid where ``settled [R]``."""

    tokens: Tensor
    settled: Tensor


def can_settle(params: SamplingParams) -> bool:
    """Whether a row is worth trying: some filter is on, and top-k (if it is) keeps no more than a head."""
    if params.top_k:
        return params.top_k <= HEAD
    return params.top_p < 1.0 or params.min_p > 0.0


def draw_from_head(logits: Tensor, params: list[SamplingParams], temperature: Tensor, unit: Tensor) -> HeadDraw:
    """Filter and draw from ``logits [R, V]`` (not changed); ``temperature [R, 1]``, ``unit [R]`` uniform in [0, 1)."""
    _rows, vocab = logits.shape
    size = min(max(p.top_k or HEAD for p in params) + 1, vocab)
    values, ids = _largest(logits, size)
    top = values[:, :1]
    weights = ((values - top) / temperature).exp_()
    cut = _min_p_and_top_k(weights, params)
    beyond = torch.zeros_like(cut) if size == vocab else weights[:, -1]
    settled = beyond < cut
    kept = weights.masked_fill(weights < cut[:, None], 0.0)
    if any(p.top_p < 1.0 for p in params):
        mass = kept.cumsum(-1, dtype=torch.float64)
        total = torch.where(settled, mass[:, -1], _whole_mass(logits, params, top, temperature))
        share = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=logits.device)
        needed = share * total
        last = torch.searchsorted(mass, needed[:, None]).clamp_(max=size - 1)
        nucleus = kept.gather(1, last).squeeze(1)
        # Where min-p or top-k cut outside the head, what top-p refers to is unknown: left to the whole row.
        settled = (settled | ((cut == 0) & (mass[:, -1] >= needed))) & (beyond < torch.maximum(cut, nucleus))
        kept.masked_fill_((kept < nucleus[:, None]) & (share < 1.0)[:, None], 0.0)
    ids, order = ids.sort(-1)
    mass = kept.gather(1, order).cumsum(-1, dtype=torch.float64)
    picked = torch.searchsorted(mass, unit[:, None] * mass[:, -1:], right=True).clamp_(max=size - 1)
    return HeadDraw(ids.gather(1, picked).squeeze(1), settled)


def _largest(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Values, largest first, and ids of the ``size`` largest logits of each row.

    A lane that holds one of the ``size`` largest has itself one of the ``size`` largest maxima: no other is searched.
    """
    rows, vocab = logits.shape
    lanes = vocab // _LANE
    if logits.device.type != "cpu" or vocab % _LANE or lanes <= 2 * size:
        found = logits.topk(size, dim=-1)
        return found.values, found.indices
    split = logits.view(rows * lanes, _LANE)
    chosen = split.amax(-1).view(rows, lanes).topk(size, dim=-1, sorted=False).indices
    flat = (chosen + torch.arange(rows)[:, None] * lanes).view(-1)
    best = split.index_select(0, flat).view(rows, size * _LANE).topk(size, dim=-1)
    return best.values, chosen.gather(1, best.indices // _LANE) * _LANE + best.indices % _LANE


def _min_p_and_top_k(weights: Tensor, params: list[SamplingParams]) -> Tensor:
    """The smallest weight that both keep, [R]; 0 where neither is on."""
    device = weights.device
    cut = torch.tensor([p.min_p for p in params], dtype=weights.dtype, device=device)
    if any(p.top_k for p in params):
        last = torch.tensor([min(p.top_k or 1, weights.shape[1]) - 1 for p in params], device=device)
        on = torch.tensor([p.top_k > 0 for p in params], device=device)
        cut = torch.maximum(cut, torch.where(on, weights.gather(1, last[:, None]).squeeze(1), 0.0))
    return cut


def _whole_mass(logits: Tensor, params: list[SamplingParams], top: Tensor, temperature: Tensor) -> Tensor:
    """Sum of the weights of all tokens, float64 [R]; 0 for rows in which nothing but top-k or min-p needs it."""
    total = torch.zeros(logits.shape[0], dtype=torch.float64, device=logits.device)
    rows = [row for row, p in enumerate(params) if p.top_p < 1.0 and not p.top_k and not p.min_p]
    if rows:
        chosen = torch.tensor(rows, device=logits.device)
        weights = logits.index_select(0, chosen).sub_(top[chosen]).div_(temperature[chosen]).exp_()
        total[chosen] = weights.sum(-1, dtype=torch.float64)
    return total
