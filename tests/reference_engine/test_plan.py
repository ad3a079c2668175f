"""A step plan is immutable and survives its own log line."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.plan import BlockCopy, ScheduledSeq, StepPlan
from reference_engine.request import Request, SamplingParams
from reference_engine.scheduler import Scheduler

PLAN = StepPlan(
    step=7,
    seqs=(
        ScheduledSeq(seq_id=3, start=5, tokens=(11,), block_table=(4, 0), num_samples=1),
        ScheduledSeq(seq_id=9, start=0, tokens=(1, 2, 3), block_table=(8,), num_samples=0, prompt_logprobs=True),
    ),
    copies=(BlockCopy(source=2, target=4),),
    preempted=(6,),
)


def test_lengths() -> None:
    assert PLAN.num_tokens == 4
    assert not PLAN.is_empty
    assert [s.query_len for s in PLAN.seqs] == [1, 3]
    assert [s.seq_len for s in PLAN.seqs] == [6, 3]
    assert StepPlan(step=0, seqs=()).is_empty
    assert StepPlan(step=0, seqs=()).num_tokens == 0


def test_a_plan_equals_what_is_read_back_from_its_log_line() -> None:
    line = PLAN.to_json()
    assert "\n" not in line
    assert json.loads(line)["copies"] == [{"source": 2, "target": 4}]
    assert StepPlan.from_json(line) == PLAN


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.step = 8  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        PLAN.seqs[0].start = 0  # type: ignore[misc]


def test_a_plan_keeps_its_tables_when_the_scheduler_goes_on() -> None:
    scheduler = Scheduler(SchedulerConfig(max_model_len=64), CacheConfig(num_blocks=16, block_size=4))
    scheduler.add(Request("a", tuple(range(6)), SamplingParams(max_tokens=20, n=2)))
    plans, lines = [], []
    while len(plans) < 12:
        plans.append(scheduler.schedule())
        lines.append(plans[-1].to_json())
        scheduler.commit(plans[-1], {p.seq_id: [5] * p.num_samples for p in plans[-1].seqs})
    assert [plan.to_json() for plan in plans] == lines
    assert [plan.step for plan in plans] == list(range(12))
