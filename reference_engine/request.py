"""Requests and sequences.  A sequence is three counters; its phase is derived from them, never stored.

::

    positions   0 ........ computed ........ computed+scheduled ........ known
                |  K/V in the cache  | written by the step in flight | still to do |

    known     = tokens whose ids we have (prompt + generated)
    computed  = tokens whose K/V is in the cache
    scheduled = tokens that the step in flight computes
    A step samples a new token for a sequence iff computed + scheduled == known.

The words of attention metadata, defined once: ``context_len`` = tokens already in the cache before this step (computed),
``query_len`` = tokens computed by this step (scheduled), ``seq_len`` = context_len + query_len.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reference_engine.constraint import Constraint, Guide


class FinishReason(StrEnum):
    STOP = "stop"  # end-of-sequence token, stop token id or stop string
    LENGTH = "length"  # max_tokens or max_model_len reached
    ABORT = "abort"  # the client went away or asked for it


class RequestRejected(Exception):
    """The engine refuses a request at admission.  ``status`` is the HTTP status, ``param`` the offending field."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn.  ``temperature`` 0 is greedy.  ``seed`` None means one drawn by the engine per request."""

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    include_stop_str: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None  # None = off; k = the chosen token's and the top k alternatives'
    prompt_logprobs: int | None = None
    beam_width: int = 0  # > 0: beam search over so many hypotheses; the n best are returned
    length_penalty: float = 1.0  # a hypothesis scores sum of log-probabilities / length ** length_penalty
    early_stopping: bool | str = False  # True, False or "never"; see reference_engine.beam

    @property
    def num_sequences(self) -> int:
        """Sequences that run for one request at most."""
        return self.beam_width or self.n

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(slots=True)
class Request:
    """One prompt and its ``n`` continuations.  ``priority``: lower is more urgent.  ``arrival_ns``: monotonic ns.

    ``cache_salt`` separates prefix-cache domains: equal prompts under different salts share nothing.
    ``constraint`` holds every continuation to a grammar.
    """

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    arrival_ns: int = 0
    priority: int = 0
    cache_salt: str = ""
    constraint: Constraint | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """One continuation of a request.  ``tokens`` = prompt then generated ids; only ever appended to."""

    seq_id: int  # unique in the engine's lifetime
    request: Request
    index: int = 0  # 0 .. n-1 within the request
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    scheduled: int = 0
    cached: int = 0  # tokens found in the prefix cache when first admitted (reported as usage.cached_tokens)
    preemptions: int = 0
    finish_reason: FinishReason | None = None
    guide: Guide | None = None  # where it stands in the request's grammar; made at its first draw

    @property
    def known(self) -> int:
        return len(self.tokens)

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_prefilling(self) -> bool:
        """More than one token is still to be computed (a fresh prompt, or one being recomputed)."""
        return self.computed < self.known - 1
