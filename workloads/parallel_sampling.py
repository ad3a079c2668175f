"""``parallel-sampling``: several answers to one prompt.  An engine that shares pays for the prompt's KV only once."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from workloads.chat import check_endpoint
from workloads.lengths import LengthLaw
from workloads.prompts import PromptMaker
from workloads.request import Load, RequestSpec, WorkloadError
from workloads.tokens import TokenCounter
from workloads.workload import Endpoint


@dataclass(frozen=True, slots=True)
class ParallelSampling:
    """Parameters of ``parallel-sampling``.  Lengths in tokens."""

    name: ClassVar[str] = "parallel-sampling"

    n: int = 4  # answers to each prompt
    input_mean: float = 512.0
    input_cv: float = 0.3
    output: int = 64  # of each answer
    concurrency: int = 4  # prompts in flight
    temperature: float = 0.8
    endpoint: Endpoint = "completions"

    def __post_init__(self) -> None:
        if self.n < 1 or self.output < 1:
            raise WorkloadError("workload parallel-sampling: n and output must be at least 1")
        check_endpoint(self.name, self.endpoint)
        LengthLaw(self.input_mean, self.input_cv)

    def loads(self) -> tuple[Load, ...]:
        return (Load("closed", concurrency=self.concurrency),)

    def requests(
        self, count: int, seed: int, counter: TokenCounter, max_model_len: int | None = None
    ) -> tuple[RequestSpec, ...]:
        random = Random(f"{self.name}/{seed}")
        maker = PromptMaker(self.name, self.endpoint, counter, random, max_model_len, self.temperature)
        law = LengthLaw(self.input_mean, self.input_cv)
        return tuple(maker.make(index, law.draw(random), self.output, n=self.n) for index in range(count))
