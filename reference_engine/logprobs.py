"""Log-probabilities of the model's own distribution: log-softmax of the logits before penalties and temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from reference_engine.largest import largest
from reference_engine.outputs import PromptLogprobs, TokenLogprob


@torch.inference_mode()
def token_logprobs(logits: Tensor, tokens: list[int], counts: list[int], *, ranks: bool = False) -> list[TokenLogprob]:
    """Per row r of ``logits [R, V]``: logprobs of ``tokens[r]`` and of the ``counts[r]`` most likely tokens."""
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
    values, ids = largest(logits.contiguous(), widest)
    best_values: list[list[float]] = (values - total).tolist()
    best_ids: list[list[int]] = ids.tolist()
    return [
        TokenLogprob(token, value, tuple(zip(best_ids[i][:count], best_values[i][:count], strict=True)), rank[i])
        for i, (token, value, count) in enumerate(zip(tokens, own, counts, strict=True))
    ]


class PromptScores:
    """Log-probabilities of one request's prompt, filled in as its chunks are computed."""

    def __init__(self, prompt: tuple[int, ...], count: int) -> None:
        self._prompt = prompt
        self._count = count
        self._found: list[TokenLogprob | None] = [None] * len(prompt)

    def add(self, start: int, logits: Tensor) -> None:
        """``logits [q, V]`` of positions ``start .. start + q - 1``; each row scores the token after it."""
        targets = self._prompt[start + 1 : start + 1 + logits.shape[0]]
        if targets:
            scored = token_logprobs(logits[: len(targets)], list(targets), [self._count] * len(targets), ranks=True)
            self._found[start + 1 : start + 1 + len(targets)] = scored

    def take(self) -> PromptLogprobs | None:
        """All of them, the first being None; or None if a position was never computed."""
        return None if None in self._found[1:] else tuple(self._found)
