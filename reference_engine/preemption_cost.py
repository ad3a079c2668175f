"""Measures what ``--preemption auto`` weighs: computing a token again against copying a block to the host or back."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from reference_engine.config import PreemptionCost
from reference_engine.plan import BlockCopy, ScheduledSeq, StepPlan
from reference_engine.runner import ModelRunner

MOST_TOKENS = 256  # of the prefill that is timed
REPEATS = 3


def measure_preemption_cost(runner: ModelRunner, max_chunk: int, max_model_len: int) -> PreemptionCost:
    """Seconds per token and per block, the fastest of a few trials.  Overwrites K/V: for a runner that serves nobody yet.

    Recomputation is timed as one prefill chunk over an empty context, so it leaves out what attention over a long
    context adds.
    """
    assert runner.host is not None
    size = runner.cache.block_size
    tokens = min(MOST_TOKENS, max_chunk, max_model_len, runner.cache.num_slots)
    blocks = -(-tokens // size)
    part = ScheduledSeq(0, 0, (0,) * tokens, tuple(range(blocks)), num_samples=1)
    prefill = _fastest(runner, lambda: runner.execute(StepPlan(0, (part,))))
    count = min(blocks, runner.host.num_blocks)
    pairs = tuple(BlockCopy(block, block) for block in range(count))
    swap = _fastest(runner, lambda: runner.execute(StepPlan(0, (), swap_out=pairs, swap_in=pairs)))
    return PreemptionCost(recompute_token=prefill / tokens, swap_block=swap / (2 * count))


def _fastest(runner: ModelRunner, action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        action()
        if runner.device.type == "cuda":
            torch.cuda.synchronize(runner.device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])
