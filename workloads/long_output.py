"""``long-output``: short prompts, long answers.  The KV of a request grows far beyond its prompt while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workloads.chat import check_endpoint
from workloads.lengths import LengthLaw, Shape
from workloads.lone import lone_requests
from workloads.request import Load, RequestSpec
from workloads.tokens import TokenCounter
from workloads.workload import Endpoint


@dataclass(frozen=True, slots=True)
class LongOutput:
    """Parameters of ``long-output``.  Lengths in tokens."""

    name: ClassVar[str] = "long-output"

    input_mean: float = 64.0
    input_cv: float = 0.5
    output_mean: float = 1024.0
    output_cv: float = 0.5
    shape: Shape = "gamma"
    concurrency: int = 8
    temperature: float = 0.0
    endpoint: Endpoint = "completions"

    def __post_init__(self) -> None:
        check_endpoint(self.name, self.endpoint)
        self._laws()

    def _laws(self) -> tuple[LengthLaw, LengthLaw]:
        return (
            LengthLaw(self.input_mean, self.input_cv, self.shape),
            LengthLaw(self.output_mean, self.output_cv, self.shape),
        )

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
