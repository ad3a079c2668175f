"""``shared-prefix``: groups of requests that begin alike, with a hit rate of the prefix cache as the target.

::

    group g (popularity 1 / g ** zipf):   [ prefix g: the same tokens ][ own words of the request ]
    the first request of a group cannot hit; each later one can find its prefix

    hit rate = (tokens of prefixes seen before) / (all prompt tokens)

With ``hit_rate`` the prefix is made as long as that target needs; without it ``prefix_tokens`` says how long.  The rate
that the schedule allows is recorded (``shared_tokens_share``) and held against the measured one.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from workloads.chat import check_endpoint
from workloads.prompts import PromptMaker
from workloads.request import Load, RequestSpec, WorkloadError
from workloads.tokens import TokenCounter
from workloads.workload import Endpoint


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Parameters of ``shared-prefix``.  Lengths in tokens."""

    name: ClassVar[str] = "shared-prefix"

    groups: int = 8  # different prefixes
    zipf: float = 1.0  # popularity of group g is proportional to 1 / g ** zipf
    prefix_tokens: int = 512
    hit_rate: float = 0.0  # wanted share of prompt tokens found in the cache; above 0 it sets prefix_tokens
    input: int = 64  # tokens of a request's own
    output: int = 64
    concurrency: int = 8
    temperature: float = 0.0
    endpoint: Endpoint = "completions"

    def __post_init__(self) -> None:
        if min(self.groups, self.prefix_tokens, self.input, self.output) < 1:
            raise WorkloadError("workload shared-prefix: groups, prefix_tokens, input and output must be at least 1")
        if not 0 <= self.hit_rate < 1:
            raise WorkloadError(f"workload shared-prefix: hit_rate must be 0 or more and below 1, not {self.hit_rate}")
        check_endpoint(self.name, self.endpoint)

    def loads(self) -> tuple[Load, ...]:
        return (Load("closed", concurrency=self.concurrency),)

    def requests(
        self, count: int, seed: int, counter: TokenCounter, max_model_len: int | None = None
    ) -> tuple[RequestSpec, ...]:
        random = Random(f"{self.name}/{seed}")
        maker = PromptMaker(self.name, self.endpoint, counter, random, max_model_len, self.temperature)
        weights = [1 / (g + 1) ** self.zipf for g in range(self.groups)]
        # One of each group first: what can be found later is then there early.
        order = [*range(self.groups), *random.choices(range(self.groups), weights, k=max(0, count - self.groups))]
        length = self.prefix_for(order[:count])
        prefixes = [maker.words(length) for _ in range(self.groups)]
        seen: set[int] = set()
        requests = []
        for index, group in enumerate(order[:count]):
            shared = length if group in seen else 0
            seen.add(group)
            requests.append(maker.make(index, length + self.input, self.output, prefix=prefixes[group], shared=shared))
        return tuple(requests)

    def prefix_for(self, order: list[int]) -> int:
        """Tokens of the prefix: share of repeats x prefix / (prefix + own) = hit_rate, solved for the prefix."""
        if self.hit_rate == 0 or not order:
            return self.prefix_tokens
        repeats = 1 - len(set(order)) / len(order)
        if self.hit_rate >= repeats:
            raise WorkloadError(
                f"workload shared-prefix: {len(order)} requests in {len(set(order))} groups cannot hit more than "
                f"{repeats:.0%}; ask for a lower hit_rate, fewer groups or more requests"
            )
        share = self.hit_rate / repeats
        return max(1, round(self.input * share / (1 - share)))
