"""The most likely next tokens of beams, from a step's logits."""

from __future__ import annotations

import torch
from torch import Tensor

from reference_engine.outputs import TokenLogprob


@torch.inference_mode()
def best_tokens(logits: Tensor, rows: list[int], counts: list[int], tops: list[int]) -> list[tuple[TokenLogprob, ...]]:
    """For each of ``rows`` of ``logits [S, V]``: its ``counts[i]`` most likely tokens, best first; () if not finite.

    Each carries the row's ``tops[i]`` best tokens as alternatives.
    """
    vocab = logits.shape[1]
    chosen = logits.index_select(0, torch.tensor(rows, device=logits.device)).float()
    scores = torch.log_softmax(chosen, dim=-1)
    values, tokens = scores.topk(min(vocab, max(*counts, *tops)), dim=-1)
    is_finite = chosen.amax(-1).isfinite().tolist()
    found: list[tuple[TokenLogprob, ...]] = []
    for finite, row_values, row_tokens, count, top in zip(
        is_finite, values.tolist(), tokens.tolist(), counts, tops, strict=True
    ):
        best = list(zip(row_tokens, row_values, strict=True))
        alternatives = tuple(best[:top])
        found.append(
            tuple(TokenLogprob(token, value, alternatives, rank) for rank, (token, value) in enumerate(best[:count], 1))
            if finite
            else ()
        )
    return found
