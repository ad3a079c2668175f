"""A log of step plans, one JSON line a step, and its replay.

A plan holds token ids, positions and blocks, so replaying a log on a fresh runner of the same model and pool rebuilds
the same K/V and the same logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from reference_engine.plan import StepPlan


class StepLogits(Protocol):
    """What a runner returns for a plan.

    ``sampled``  float32 [S, V]: the last row of each scheduled sequence with ``num_samples`` > 0, in plan order
    ``prompt``   seq_id -> [query_len, V]: every row of the sequences planned with ``prompt_logprobs``
    """

    @property
    def sampled(self) -> Tensor: ...

    @property
    def prompt(self) -> Mapping[int, Tensor]: ...


class Runner(Protocol):
    """Computes a plan's K/V into the cache and returns its logits."""

    def execute(self, plan: StepPlan) -> StepLogits: ...


class PlanLog:
    """Appends plans to a file; a line is complete on disk before its step runs."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1)

    def write(self, plan: StepPlan) -> None:
        self._file.write(plan.to_json() + "\n")

    def close(self) -> None:
        self._file.close()


def replay(lines: Iterable[str], runner: Runner) -> Iterator[tuple[StepPlan, StepLogits]]:
    """Execute logged plans in order on a fresh ``runner``; yields each plan with its logits."""
    for line in lines:
        plan = StepPlan.from_json(line)
        yield plan, runner.execute(plan)
