"""A log of step plans, one JSON line a step, and its replay.

A plan holds token ids, positions and blocks, so replaying a log on a fresh runner of the same model and pool rebuilds
the same K/V and the same logits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from reference_engine.config import CacheConfig
from reference_engine.plan import StepPlan
from reference_engine.scheduler import Scheduler


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
    """Appends plans to a file; a line is complete on disk before its step runs.

    Beside the plan a line may hold ``context``: what the plan alone does not tell (see ``describe_holders``).
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1)

    def write(self, plan: StepPlan, context: Mapping[str, object] | None = None) -> None:
        line = plan.to_json()
        if context:
            line = f"{line[:-1]},{json.dumps(context, separators=(',', ':'))[1:]}"
        self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()


def describe_holders(plan: StepPlan, scheduler: Scheduler, cache: CacheConfig) -> dict[str, object]:
    """Who holds what while ``plan`` runs.

    ``t_ns``      monotonic time at the start of the step [ns]
    ``owners``    seq_id -> request id, for every sequence that holds blocks
    ``held``      seq_id -> block table, for those of them that are not in the plan
    ``reserved``  seq_id -> blocks kept for it that are not in its table, under policies that reserve
    """
    planned = {part.seq_id for part in plan.seqs}
    sequences = scheduler.sequences
    holders = [seq_id for seq_id in scheduler.kv.holders if seq_id in sequences]
    reserved = {seq_id: scheduler.kv.reserved_blocks(seq_id) for seq_id in holders}
    return {
        "t_ns": time.monotonic_ns(),
        "num_blocks": cache.num_blocks,
        "block_size": cache.block_size,
        "owners": {seq_id: sequences[seq_id].request.request_id for seq_id in holders},
        "held": {seq_id: scheduler.kv.block_table(seq_id) for seq_id in holders if seq_id not in planned},
        "reserved": {seq_id: blocks for seq_id, blocks in reserved.items() if blocks},
    }


def replay(lines: Iterable[str], runner: Runner) -> Iterator[tuple[StepPlan, StepLogits]]:
    """Execute logged plans in order on a fresh ``runner``; yields each plan with its logits."""
    for line in lines:
        plan = StepPlan.from_json(line)
        yield plan, runner.execute(plan)
