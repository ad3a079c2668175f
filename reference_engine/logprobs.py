"""Log-probabilities of the model's own distribution: log-softmax of the logits before penalties and temperature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token, its log-probability (natural log), and the most likely tokens of its position, best first.

    ``rank`` is 1 for the most likely token; None where it was not asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


def token_logprobs(logits: Tensor, tokens: list[int], counts: list[int], *, ranks: bool = False) -> list[TokenLogprob]:
    """Per row r of ``logits [R, V]``: the log-probability of ``tokens[r]`` and of its ``counts[r]`` best tokens."""
    logits = logits.float()
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    total = logits.logsumexp(-1, keepdim=True)
    picked = logits.gather(1, chosen)
    own: list[float] = (picked - total).squeeze(1).tolist()
    rank: list[int | None] = [None] * len(tokens)
    if ranks:
        rank = ((logits > picked).sum(-1) + 1).tolist()
    widest = min(max(counts), logits.shape[1])
    if widest == 0:
        return [TokenLogprob(token, value, (), r) for token, value, r in zip(tokens, own, rank, strict=True)]
    best = logits.topk(widest, dim=-1)
    best_values: list[list[float]] = (best.values - total).tolist()
    best_ids: list[list[int]] = best.indices.tolist()
    return [
        TokenLogprob(token, value, tuple(zip(best_ids[i][:count], best_values[i][:count], strict=True)), rank[i])
        for i, (token, value, count) in enumerate(zip(tokens, own, counts, strict=True))
    ]
