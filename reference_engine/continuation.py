"""One continuation of a request: its text, and the rules that end it.

In this order, the first that applies: an end-of-sequence or stop token, a stop string, ``max_tokens``, the context
length; before ``min_tokens`` tokens only the last two.  The token that ends a continuation counts as generated; its
text is left out, as is a stop string, unless ``include_stop_str``.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from reference_engine.detokenizer import Detokenizer
from reference_engine.request import FinishReason, SamplingParams, Sequence


class Continuation:
    """Text and end of one sequence; its end sets ``reason`` and ``stop_reason`` (the stop string or stop token id)."""

    def __init__(
        self, params: SamplingParams, ends: Set[int], max_model_len: int, token_bytes: Callable[[int], bytes]
    ) -> None:
        """``ends``: token ids that end it.  ``token_bytes``: the bytes a token adds to the text."""
        self.text = Detokenizer(token_bytes, stop=params.stop, include_stop=params.include_stop_str)
        self.reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.last_ns: int | None = None  # when its last token came
        self._params = params
        self._ends = ends
        self._max_model_len = max_model_len

    def push(self, sequence: Sequence) -> None:
        """Take the last token of ``sequence``."""
        params, token, generated = self._params, sequence.tokens[-1], sequence.num_generated
        may_stop = generated >= params.min_tokens
        if may_stop and token in self._ends:
            self.reason = FinishReason.STOP
            self.stop_reason = token if token in params.stop_token_ids else None
            if params.include_stop_str:
                self.text.push(token, check_stop=False)
            self.text.finish()
            return
        found = self.text.push(token, check_stop=may_stop)
        if found is not None:
            self.reason, self.stop_reason = FinishReason.STOP, found
        elif generated >= params.max_tokens or sequence.known >= self._max_model_len:
            self.reason = FinishReason.LENGTH
            self.text.finish()
