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
    """Parameters of ``concurrency``.  Every prompt has ``input`` tokens and every answer ``output``.

    Without ``levels`` it is a staircase: 1, 2, 4 ... ``max_level`` in flight, left two levels after the last one that
    brought 5 % more output tokens/s.  Levels that are named are all run.
    """

    name: ClassVar[str] = "concurrency"

    input: int = 128
    output: int = 128
    levels: tuple[int, ...] = ()  # requests in flight; each level is a cell of its own
    max_level: int = 256  # where the staircase ends at the latest
    temperature: float = 0.0
    endpoint: Endpoint = "completions"

    def __post_init__(self) -> None:
        if self.input < 1 or self.output < 1:
            raise WorkloadError("workload concurrency: input and output must be at least 1 token")
        if self.levels and min(self.levels) < 1:
            raise WorkloadError("workload concurrency: levels must be numbers of 1 or more, such as levels=1+8+32")
        if self.max_level < 1:
            raise WorkloadError(f"workload concurrency: max_level must be at least 1, not {self.max_level}")
        check_endpoint(self.name, self.endpoint)

    def loads(self) -> tuple[Load, ...]:
        levels = self.levels or tuple(2**step for step in range(self.max_level.bit_length()))
        return tuple(Load("closed", concurrency=level) for level in levels)

    @property
    def is_staircase(self) -> bool:
        return not self.levels

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
