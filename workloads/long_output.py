"""``long-output``: short prompts, long answers.  The KV of a request grows far beyond its prompt while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workloads.chat import check_endpoint
from workloads.lengths import Law, LengthLaw, LogUniform, Shape
from workloads.lone import lone_requests
from workloads.request import Load, RequestSpec, WorkloadError
from workloads.tokens import TokenCounter
from workloads.workload import Endpoint


@dataclass(frozen=True, slots=True)
class LongOutput:
    """Parameters of ``long-output``.  Lengths in tokens.

    ``output_low=256`` spreads the answers from 256 to 16384 tokens, evenly on a log scale, as far as the context goes.
    """

    name: ClassVar[str] = "long-output"

    input_mean: float = 64.0
    input_cv: float = 0.5
    output_mean: float = 1024.0
    output_cv: float = 0.5
    shape: Shape = "gamma"
    output_low: int = 0  # above 0: answers are spread log-uniformly from output_low to output_high instead
    output_high: int = 16384
    concurrency: int = 8
    temperature: float = 0.0
    endpoint: Endpoint = "completions"

    def __post_init__(self) -> None:
        check_endpoint(self.name, self.endpoint)
        if self.output_low and not 0 < self.output_low <= self.output_high:
            raise WorkloadError("workload long-output: output_low must be at least 1 and at most output_high")
        self._laws()

    def _laws(self) -> tuple[LengthLaw, Law]:
        inputs = LengthLaw(self.input_mean, self.input_cv, self.shape)
        if self.output_low:
            return inputs, LogUniform(self.output_low, self.output_high)
        return inputs, LengthLaw(self.output_mean, self.output_cv, self.shape)

    def loads(self) -> tuple[Load, ...]:
        return (Load("closed", concurrency=self.concurrency),)

    def requests(
        self, count: int, seed: int, counter: TokenCounter, max_model_len: int | None = None
    ) -> tuple[RequestSpec, ...]:
        inputs, outputs = self._laws()
        return lone_requests(
            self.name,
            count,
            seed,
            counter,
            max_model_len,
            inputs=inputs,
            outputs=outputs,
            endpoint=self.endpoint,
            temperature=self.temperature,
        )
