"""What a schedule is made of: requests, the load that releases them, and the digest that names the whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, TypedDict


class WorkloadError(ValueError):
    """A workload that cannot be built as asked.  The message, shown as it is, names the parameter and what to do."""


class Message(TypedDict):
    """One chat message, as the OpenAI API spells it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of a request.  Greedy by default: two engines can then be asked for the same text."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One planned request.  Exactly one of ``messages`` (chat) and ``prompt`` (completions) is set.

    ``prompt_tokens`` is what the server should count for the whole prompt, chat template included; ``exact`` says
    whether a tokenizer confirmed it.  ``shared_tokens`` of them also start another request's prompt on purpose (system
    prompt, earlier turns).  ``after`` is the index of the request whose end releases this one (an earlier turn),
    ``think_s`` the pause in between, in seconds.  ``answers`` are pairs (position in ``messages``, index of an earlier
    request): that message is sent with the real answer of that request instead of the planned words, when it has one.
    ``at_ns`` is the offset from the start at which a workload that brings its own arrival times wants it sent.  ``n``
    answers are asked for (``output_tokens`` each).  ``cancel_after_s`` seconds after it was released the client hangs
    up.
    """

    index: int
    messages: tuple[Message, ...] | None
    prompt: str | None
    prompt_tokens: int
    output_tokens: int
    sampling: Sampling = Sampling()
    conversation: int | None = None
    turn: int | None = None
    after: int | None = None
    think_s: float = 0.0
    shared_tokens: int = 0
    exact: bool = True
    answers: tuple[tuple[int, int], ...] = ()
    at_ns: int | None = None
    n: int = 1
    cancel_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """How requests are released: ``closed`` keeps ``concurrency`` in flight, ``trace`` sends each request at its own
    ``at_ns``; the others plan ``rate`` arrivals/s: ``poisson``, ``constant`` (equal gaps), ``gamma`` (``burstiness`` is
    the shape: below 1 in bursts, above 1 smoother), ``ramp`` (Poisson, up or down to ``ramp_to``, in ``ramp_steps``
    equal stretches or, with 0, in a straight line)."""

    mode: Literal["closed", "poisson", "trace", "constant", "gamma", "ramp"]
    concurrency: int | None = None
    rate: float | None = None
    burstiness: float | None = None
    ramp_to: float | None = None
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        if self.mode == "closed" and (self.concurrency is None or self.concurrency < 1):
            raise WorkloadError(f"a closed loop needs a concurrency of at least 1, not {self.concurrency}")
        if self.mode not in ("closed", "trace") and (self.rate is None or not 0 < self.rate < float("inf")):
            raise WorkloadError(f"{self.mode} arrivals need a rate above 0 requests/s, not {self.rate}")
        if self.mode == "gamma" and (self.burstiness is None or not 0 < self.burstiness < float("inf")):
            raise WorkloadError(f"gamma arrivals need a burstiness above 0, not {self.burstiness}")
        if self.mode == "ramp" and (self.ramp_to is None or not 0 < self.ramp_to < float("inf")):
            raise WorkloadError(f"a ramp needs a rate above 0 requests/s to go to, not {self.ramp_to}")

    @property
    def label(self) -> str:
        """Short name for tables and cell ids: ``c8``, ``r2.5``, ``r2.5-constant``, ``r2.5-b0.5``, ``r1-to-9``, ``trace``."""
        match self.mode:
            case "trace":
                return "trace"
            case "closed":
                return f"c{self.concurrency}"
            case "constant":
                return f"r{self.rate:g}-constant"
            case "gamma":
                return f"r{self.rate:g}-b{self.burstiness:g}"
            case "ramp":
                return f"r{self.rate:g}-to-{self.ramp_to:g}" + (f"-s{self.ramp_steps}" if self.ramp_steps else "")
        return f"r{self.rate:g}"


def digest(requests: Iterable[RequestSpec], arrivals_ns: Iterable[int] | None = None) -> str:
    """SHA-256 (hex) over every request in order and the planned arrival times (ns from the start), if there are any.

    Two runs with equal digests asked the same things at the same times.
    """
    sha = hashlib.sha256()
    for request in requests:
        sha.update(json.dumps(asdict(request), sort_keys=True, separators=(",", ":")).encode())
        sha.update(b"\n")
    for arrival in arrivals_ns or ():
        sha.update(b"%d\n" % arrival)
    return sha.hexdigest()
