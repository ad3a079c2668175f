"""Answers held to a grammar: what each sequence may say next, and the edit of the logits that holds it to that.

::

    Constraint (compiled once a call)  --start-->  Guide (one a sequence)
                                                     follow: the sequence's own new tokens
                                                     allowed: bool [V] for the next one

A guide belongs to its sequence and catches up with the sequence's tokens before each draw.  So what the scheduler does to
the sequence (preempt, swap, recompute) cannot falsify it.  No torch is needed to hold one, only to apply it.

JSON lets a number go on for ever, and small models do.  So a number of ``LONGEST_NUMBER`` characters ends there, unless
the grammar wants more of it.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from collections.abc import Set
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from torch import Tensor

    from reference_engine.request import Sequence


LONGEST_NUMBER = 20  # characters: any 64-bit integer, more digits than a 64-bit float holds
_NUMBER = b"0123456789.eE+-"
_AFTER_NUMBER = b",}]"


class Vocabulary:
    """What guides know of the tokens."""

    def __init__(self, token_bytes: SequenceOf[bytes], eos_token_ids: Set[int]) -> None:
        """``token_bytes``: of every token of the model's vocabulary, by id."""
        self.size = len(token_bytes)
        self.token_bytes = token_bytes
        self.goes_on = np.array([data[:1] != b"" and data[:1] in _NUMBER for data in token_bytes])
        self.ends = np.array(
            [
                i in eos_token_ids or (data[:1] != b"" and data[:1] in _AFTER_NUMBER)
                for i, data in enumerate(token_bytes)
            ]
        )


class Guide:
    """Where one sequence stands in its grammar.  ``error``: why it can no longer be followed, else None."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        """``matcher`` is this guide's alone."""
        self.error: str | None = None
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._followed = 0  # generated tokens that the matcher has seen
        self._run = 0  # bytes at the end of the text that a number could consist of

    def follow(self, sequence: Sequence) -> None:
        """Take what ``sequence`` has generated since the last call."""
        new = sequence.tokens[sequence.prompt_len + self._followed :]
        self._followed += len(new)
        if new and not self._matcher.consume_tokens(new):
            self.error = self._matcher.get_error()
        for token in new:
            data = self._vocabulary.token_bytes[token]
            rest = len(data.rstrip(_NUMBER))
            self._run = len(data) - rest + (0 if rest else self._run)

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, bool [V]; none if the grammar can no longer be followed.

        The end-of-sequence token is among them where the document may end, and alone where it must.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            self.error = self._matcher.get_error()
            return np.zeros(self._vocabulary.size, dtype=bool)
        allowed = np.unpackbits(bits, count=self._vocabulary.size, bitorder="little").view(bool)
        return self._without_digits(allowed) if self._run >= LONGEST_NUMBER else allowed

    def _without_digits(self, allowed: np.ndarray) -> np.ndarray:
        """``allowed`` without what would prolong a number.  Where anything else may come, the digits are a string's."""
        ends, goes_on = self._vocabulary.ends, self._vocabulary.goes_on
        is_number = not (allowed & ~(ends | goes_on)).any()
        return allowed & ends if is_number and (allowed & ends).any() else allowed


class Constraint:
    """A compiled grammar, shared by the sequences of a request."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        """``matcher`` stands at the grammar's beginning and stays there."""
        self._matcher = matcher
        self._vocabulary = vocabulary

    def start(self) -> Guide:
        """A guide at the beginning of the grammar."""
        return Guide(self._matcher.deep_copy(), self._vocabulary)


def mask_logits(logits: Tensor, rows: list[tuple[int, Sequence]]) -> None:
    """Set to -inf in ``logits [R, V]`` (float32, in place) what the constraints of ``rows`` forbid.

    NaN and +inf stay visible (as NaN): a broken row must not pass for a sound one because it is constrained.
    """
    chosen: list[int] = []
    masks: list[np.ndarray] = []
    for row, sequence in rows:
        constraint = sequence.request.constraint
        if constraint is None:
            continue
        if sequence.guide is None:
            sequence.guide = constraint.start()
        sequence.guide.follow(sequence)
        chosen.append(row)
        masks.append(sequence.guide.allowed())
    if not chosen:
        return
    import torch

    bias = torch.from_numpy(np.where(np.stack(masks), np.float32(0.0), np.float32("-inf")))
    logits.index_add_(0, torch.tensor(chosen, device=logits.device), bias.to(logits.device))
