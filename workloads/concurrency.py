"""``concurrency``: requests of one size at rising numbers in flight, to find where an engine stops gaining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workloads.chat import check_endpoint
from workloads.lengths import LengthLaw
from workloads.lone import lone_requests
from workloads.request import Load, RequestSpec, WorkloadError
from workloads.tokens import TokenCounter
from workloads.workload import Endpoint


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Parameters of ``concurrency``.  Every prompt has ``input`` tokens and every answer ``output``."""

    name: ClassVar[str] = "concurrency"

    input: int = 128
    output: int = 128
    levels: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  # requests in flight; each level is a cell of its own
    temperature: float = 0.0
    endpoint: Endpoint = "completions"

    def __post_init__(self) -> None:
        if self.input < 1 or self.output < 1:
            raise WorkloadError("workload concurrency: input and output must be at least 1 token")
        if not self.levels or min(self.levels) < 1:
            raise WorkloadError("workload concurrency: levels must be numbers of 1 or more, such as levels=1+8+32")
        check_endpoint(self.name, self.endpoint)

    def loads(self) -> tuple[Load, ...]:
        return tuple(Load("closed", concurrency=level) for level in self.levels)

    def requests(
        self, count: int, seed: int, counter: TokenCounter, max_model_len: int | None = None
    ) -> tuple[RequestSpec, ...]:
        return lone_requests(
            self.name,
            count,
            seed,
            counter,
            max_model_len,
            inputs=LengthLaw(self.input, shape="fixed"),
            outputs=LengthLaw(self.output, shape="fixed"),
            endpoint=self.endpoint,
            temperature=self.temperature,
        )
