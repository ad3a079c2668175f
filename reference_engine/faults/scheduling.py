"""Faults of scheduling: F53 to F58."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reference_engine.faults.kv import SMALL_POOL
from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.plan import StepPlan
from reference_engine.request import Request, RequestRejected
from reference_engine.server.loop import EngineLoop
from reference_engine.server.wire import Wire


@fault(
    "F53",
    "starvation: the newest request always goes first",
    source="vllm-project/vllm#41951, #35852 (order of readmission)",
    trigger="more requests than can run at once",
    needs=("--max-num-seqs or --num-blocks below the load",),
)
def newest_first(lab: Lab) -> None:
    def make(add: Callable[[Request], Any]) -> Callable[[Request], Any]:
        def faulty(request: Request) -> Any:
            if lab.fires():
                lab.scheduler._arrivals = -2 * lab.occasions
            return add(request)

        return faulty

    lab.wrap(lab.scheduler, "add", make)


@fault(
    "F54",
    "deadlock on a full pool: the first preemption is the last step",
    source="sgl-project/sglang#24252, ModelEngine-Group/unified-cache-management#1350",
    trigger="preemption",
    needs=SMALL_POOL,
)
def deadlock(lab: Lab) -> None:
    stuck: list[bool] = []

    def make(plan: Callable[[], StepPlan]) -> Callable[[], StepPlan]:
        def faulty() -> StepPlan:
            if stuck:
                time.sleep(0.01)
                return StepPlan(0, ())
            planned = plan()
            if planned.preempted and lab.fires():
                stuck.append(True)
            return planned

        return faulty

    lab.wrap(lab.engine, "plan", make)


@fault(
    "F55",
    "a request that never fits hangs instead of being refused",
    source="inference-sim/inference-sim#373, vllm-project/vllm#45387",
    trigger="prompt + max_tokens beyond the pool or the context",
)
def never_fits_hangs(lab: Lab) -> None:
    def make(admit: Callable[..., None]) -> Callable[..., None]:
        def faulty(self: Any, ticket: Any) -> None:
            if ticket.requests and _never_fits(ticket.requests[0]) and lab.fires():
                return
            admit(self, ticket)

        return faulty

    def _never_fits(request: Request) -> bool:
        longest = lab.engine.scheduler_config.max_model_len
        try:
            lab.kv.check_fits(request)
        except RequestRejected:
            return True
        return len(request.prompt) + request.params.max_tokens > longest

    lab.wrap(EngineLoop, "_admit", make)


@fault(
    "F56",
    "the answers of a batched prompt list come in the wrong order",
    source="no single report chosen",
    trigger="a list of at least two prompts",
)
def batch_order(lab: Lab) -> None:
    def make(init: Callable[..., None]) -> Callable[..., None]:
        def faulty(self: Any, *rest: Any, **named: Any) -> None:
            init(self, *rest, **named)
            if len(self._numbers) > 1 and lab.fires():
                last = len(self._numbers) - 1
                self._numbers = {request_id: last - number for request_id, number in self._numbers.items()}

        return faulty

    lab.wrap(Wire, "__init__", make)


@fault(
    "F57",
    "thrash: running sequences are preempted without need",
    source="inference-sim/inference-sim#297, #349, #529",
    trigger="at least two running requests",
    rate=0.3,
)
def preemption_thrash(lab: Lab) -> None:
    def make(schedule_running: Callable[[Any], None]) -> Callable[[Any], None]:
        def faulty(draft: Any) -> None:
            scheduler = lab.scheduler
            running = scheduler._running.snapshot()
            if len(running) > 1 and lab.fires():
                scheduler._preempt(draft, running[-1], running[0])
            schedule_running(draft)

        return faulty

    lab.wrap(lab.scheduler, "_schedule_running", make)


@fault(
    "F58",
    "a long prefill stalls all decodes",
    source="the reason for chunked prefill (Sarathi-Serve); N#144's prefill-first loop",
    trigger="a prompt of more than `above` tokens while others decode",
    above=64,
)
def prefill_stalls_decodes(lab: Lab) -> None:
    def make(schedule_running: Callable[[Any], None]) -> Callable[[Any], None]:
        def faulty(draft: Any) -> None:
            scheduler = lab.scheduler
            running = scheduler._running.snapshot()
            above = int(lab.value("above"))
            long = [e for e in running if e.sequence.known - e.sequence.computed > above]
            if not long or len(long) == len(running) or not lab.fires():
                schedule_running(draft)
                return
            time.sleep(0.005)
            for entry in long:
                left = entry.sequence.known - entry.sequence.computed
                if entry.running and draft.budget:
                    scheduler._give(draft, entry, min(left, draft.budget, 32))
            if not draft.picked:
                schedule_running(draft)

        return faulty

    lab.wrap(lab.scheduler, "_schedule_running", make)
    # Chunks of 32 tokens make the stall last as long as a long prompt takes on a small machine.
    config = lab.scheduler.config
    lab.wrap(
        lab.scheduler,
        "config",
        lambda original: replace(config, max_num_batched_tokens=min(config.max_num_batched_tokens, 256)),
    )
