"""Edits of the logits that depend on a sequence's own history: penalties, logit bias, min_tokens, constraints.

Definitions (as vLLM and the OpenAI API): with c(t) the number of times token t was *generated*,

    repetition   t in prompt or output:  logit(t) / r  if logit(t) > 0 else  logit(t) * r
    frequency    logit(t) - f * c(t)
    presence     logit(t) - p * [c(t) > 0]

applied in the order: min_tokens mask, bias, repetition, frequency, presence, and last the mask of a constraint
(``constraint``), which nothing may soften.  The history is read from the sequence's tokens at every step; no counts are
kept between steps, so neither preemption nor a changed batch can falsify them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reference_engine.constraint import mask_logits
from reference_engine.request import SamplingParams, Sequence


def needs_edit(sequence: Sequence) -> bool:
    """Whether any edit of this module applies to the next token of ``sequence``."""
    params = sequence.request.params
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or bool(params.logit_bias)
        or sequence.num_generated < params.min_tokens
        or sequence.request.constraint is not None
    )


def ending_ids(params: SamplingParams, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Token ids that end a continuation under ``params``."""
    return params.stop_token_ids if params.ignore_eos else params.stop_token_ids + eos_token_ids


def edit_logits(logits: Tensor, rows: list[tuple[int, Sequence]], eos_token_ids: tuple[int, ...]) -> None:
    """Edit ``logits [R, V]`` (contiguous, float32) in place; ``rows`` pairs row numbers with their sequences."""
    _mask_endings(logits, rows, eos_token_ids)
    _add_bias(logits, rows)
    _penalise_repetition(logits, rows)
    _penalise_counts(logits, rows)
    mask_logits(logits, rows)


def _mask_endings(logits: Tensor, rows: list[tuple[int, Sequence]], eos_token_ids: tuple[int, ...]) -> None:
    vocab = logits.shape[1]
    cells = [
        row * vocab + token
        for row, sequence in rows
        if sequence.num_generated < sequence.request.params.min_tokens
        for token in ending_ids(sequence.request.params, eos_token_ids)
    ]
    if cells:
        logits.view(-1).index_fill_(0, torch.tensor(cells, device=logits.device), float("-inf"))


def _add_bias(logits: Tensor, rows: list[tuple[int, Sequence]]) -> None:
    vocab = logits.shape[1]
    entries = [(row * vocab + token, bias) for row, seq in rows for token, bias in seq.request.params.logit_bias]
    if entries:
        cells = torch.tensor([cell for cell, _ in entries], device=logits.device)
        values = torch.tensor([bias for _, bias in entries], dtype=logits.dtype, device=logits.device)
        logits.view(-1).index_add_(0, cells, values)


def _cells(rows: list[tuple[int, Sequence]], vocab: int, *, with_prompt: bool) -> np.ndarray:
    """Flat positions in ``[R, V]`` of every token of the rows' histories, duplicates included; int64."""
    parts = []
    for row, sequence in rows:
        history = sequence.tokens if with_prompt else sequence.tokens[sequence.prompt_len :]
        parts.append(np.array(history, dtype=np.int64) + row * vocab)
    return np.concatenate(parts)


def _penalise_repetition(logits: Tensor, rows: list[tuple[int, Sequence]]) -> None:
    vocab = logits.shape[1]
    chosen = [(row, seq) for row, seq in rows if seq.request.params.repetition_penalty != 1.0]
    if not chosen:
        return
    cells = np.unique(_cells(chosen, vocab, with_prompt=True))
    by_row = np.ones(logits.shape[0], dtype=np.float32)
    for row, sequence in chosen:
        by_row[row] = sequence.request.params.repetition_penalty
    factor = torch.from_numpy(by_row[cells // vocab]).to(logits.device)
    where = torch.from_numpy(cells).to(logits.device)
    flat = logits.view(-1)
    seen = flat[where]
    flat[where] = torch.where(seen > 0, seen / factor, seen * factor)


def _penalise_counts(logits: Tensor, rows: list[tuple[int, Sequence]]) -> None:
    vocab = logits.shape[1]
    chosen = []
    frequency = np.zeros(logits.shape[0], dtype=np.float32)
    presence = np.zeros(logits.shape[0], dtype=np.float32)
    for row, sequence in rows:
        params = sequence.request.params
        if (params.frequency_penalty or params.presence_penalty) and sequence.num_generated:
            chosen.append((row, sequence))
            frequency[row], presence[row] = params.frequency_penalty, params.presence_penalty
    if not chosen:
        return
    cells, counts = np.unique(_cells(chosen, vocab, with_prompt=False), return_counts=True)
    owner = cells // vocab
    penalty = frequency[owner] * counts.astype(np.float32) + presence[owner]
    logits.view(-1).index_add_(
        0, torch.from_numpy(cells).to(logits.device), torch.from_numpy(-penalty).to(logits.device)
    )
