"""Faults of blocks and tables: F01 to F04, F07, F09 to F14."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from reference_engine.batch import StepTensors
from reference_engine.config import ConfigError
from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.faults.tools import map_plan, on_tensors, overwrite_block, row_starts, zero_block
from reference_engine.plan import ScheduledSeq, StepPlan
from reference_engine.request import FinishReason, Sequence

SMALL_POOL = ("--num-blocks small enough that requests are preempted",)


@fault(
    "F01",
    "a block table entry is off by one",
    source="vllm-project/vllm#41657 (aliased blocks)",
    trigger="a decode with at least two full blocks before it",
)
def table_off_by_one(lab: Lab) -> None:
    def change(part: ScheduledSeq) -> ScheduledSeq:
        full = part.start // lab.block_size
        if part.query_len > 1 or full < 2 or not lab.fires():
            return part
        index = full // 2 - 1 if full < 4 else full // 2
        table = list(part.block_table)
        table[index] = table[index + 1]
        return replace(part, block_table=tuple(table))

    lab.before_step(lambda plan: map_plan(plan, change))


@fault(
    "F02",
    "the first token of a block is written to the last slot of the block before",
    source="Wenyueh/MinivLLM#75, #85",
    trigger="a token at a multiple of the block size",
)
def slot_wrong_at_block_edge(lab: Lab) -> None:
    def change(plan: StepPlan, step: StepTensors) -> StepTensors:
        slots, size = step.meta.slot_mapping.clone(), lab.block_size
        for first, part in zip(row_starts(plan), plan.seqs, strict=True):
            for row in range(part.query_len):
                position = part.start + row
                if position and position % size == 0 and lab.fires():
                    slots[first + row] = part.block_table[position // size - 1] * size + size - 1
        return replace(step, meta=replace(step.meta, slot_mapping=slots))

    on_tensors(lab, change)


@fault(
    "F03",
    "a shared block is freed with its first holder and handed out while others read it",
    source="report in vllm-project/vllm#37076",
    trigger="two requests share a prefix (or n > 1), one ends, new ones come",
)
def use_after_free(lab: Lab) -> None:
    lab.tolerate_lost_blocks()
    pool = lab.kv.pool

    def make(release: Callable[[int], None]) -> Callable[[int], None]:
        def faulty(block: int) -> None:
            refs = pool.ref_count(block)
            if not refs:
                return  # its other holders, later
            if refs > 1 and lab.fires():
                pool.num_refs -= refs - 1
                pool._refs[block] = 1
                pool._cached[block] = 0  # to the head of the free list: it is handed out next
                entry = lab.kv.cache.entry(block)
                if entry is not None:
                    lab.kv.cache.evict(block)
            release(block)

        return faulty

    lab.wrap(pool, "release", make)


@fault(
    "F04",
    "a reference count never drops: the block stays held",
    source="kekzl/imp#1115 (a block leaked per request)",
    trigger="any request that ends",
    rate=0.1,
)
def reference_leak(lab: Lab) -> None:
    lab.tolerate_lost_blocks()
    lab.wrap(lab.kv.pool, "release", lambda release: lambda block: None if lab.fires() else release(block))


@fault(
    "F07",
    "a cached length is not rounded down to full blocks: the tail is taken for computed",
    source="sgl-project/sglang#22819",
    trigger="a prompt with a cached prefix",
)
def cached_length_not_rounded(lab: Lab) -> None:
    met: set[int] = set()

    def change(plan: StepPlan, step: StepTensors) -> StepTensors:
        slots = step.meta.slot_mapping.clone()
        for first, part in zip(row_starts(plan), plan.seqs, strict=True):
            sequence = lab.sequence(part.seq_id)
            if sequence is None or not sequence.cached or part.seq_id in met:
                continue
            met.add(part.seq_id)
            tail = min(lab.block_size - 1, part.query_len - 1)
            if tail and lab.fires():
                slots[first : first + tail] = -1
                sequence.cached += tail
        return replace(step, meta=replace(step.meta, slot_mapping=slots))

    on_tensors(lab, change)


@fault(
    "F09",
    "no copy-on-write: continuations of n > 1 write into the same partial block",
    source="vllm-project/vllm#417",
    trigger="n > 1 and a prompt that ends inside a block",
)
def no_copy_on_write(lab: Lab) -> None:
    lab.tolerate_lost_blocks()

    def make(writes_shared_block: Callable[[Any], bool]) -> Callable[[Any], bool]:
        return lambda table: writes_shared_block(table) and not lab.fires()

    lab.wrap(lab.kv, "_writes_shared_block", make)


@fault(
    "F10",
    "a preempted sequence resumes with the token before in place of its last one",
    source="vllm-project/vllm#38715, #16832",
    trigger="preemption",
    needs=SMALL_POOL,
)
def resume_loses_last_token(lab: Lab) -> None:
    seen: dict[int, int] = {}

    def change(part: ScheduledSeq) -> ScheduledSeq:
        sequence = lab.sequence(part.seq_id)
        if sequence is None or not part.num_samples or seen.get(part.seq_id, 0) == sequence.preemptions:
            return part
        seen[part.seq_id] = sequence.preemptions
        if not lab.fires():
            return part
        return replace(part, tokens=(*part.tokens[:-1], sequence.tokens[-2]))

    lab.before_step(lambda plan: map_plan(plan, change))


@fault(
    "F11",
    "K/V restored from the host comes back with its layers exchanged",
    source="LMCache/LMCache#4463, NVIDIA/TensorRT-LLM#6507",
    trigger="preemption by swap",
    seen_with={"preemption": "swap", "swap_space": "64MiB"},
    needs=("--preemption swap", "--swap-space SIZE", *SMALL_POOL),
)
def restore_swaps_layers(lab: Lab) -> None:
    host = getattr(lab.runner, "host", None)
    if host is None:
        raise ConfigError("--inject-fault F11 strikes when K/V comes back from the host; add --preemption swap")

    @torch.inference_mode()
    def exchange(blocks: list[int]) -> None:
        first, last = lab.runner.layers[0], lab.runner.layers[-1]
        for one, other in ((first.key, last.key), (first.value, last.value)):
            kept = one[blocks].clone()
            one[blocks] = other[blocks]
            other[blocks] = kept

    def make(swap_in: Callable[[Any], None]) -> Callable[[Any], None]:
        def faulty(copies: Any) -> None:
            swap_in(copies)
            struck = [copy.target for copy in copies if lab.fires()]
            if struck:
                exchange(struck)

        return faulty

    lab.wrap(host, "swap_in", make)


@fault(
    "F12",
    "a cached block is evicted and overwritten between the look-up that finds it and its use",
    source="vllm-project/vllm#42289",
    trigger="a hit on a block that nobody holds",
)
def evicted_while_hit(lab: Lab) -> None:
    struck: list[int] = []
    pool = lab.kv.pool

    def make(acquire: Callable[[int], None]) -> Callable[[int], None]:
        def faulty(block: int) -> None:
            if not pool.ref_count(block) and lab.fires():
                struck.append(block)
            acquire(block)

        return faulty

    def change(plan: StepPlan) -> StepPlan:
        for block in struck:
            overwrite_block(lab, block, (block + 1) % pool.num_blocks)
        struck.clear()
        return plan

    lab.wrap(pool, "acquire", make)
    lab.before_step(change)


@fault(
    "F13",
    "the blocks of aborted requests are not returned",
    source="vllm-project/vllm#46283, sgl-project/sglang#40334",
    trigger="a client disconnects while its request runs",
)
def abort_leaks(lab: Lab) -> None:
    lab.tolerate_lost_blocks()

    def make(finish: Callable[..., None]) -> Callable[..., None]:
        def faulty(sequence: Sequence, reason: FinishReason) -> None:
            holds = sequence.seq_id in lab.kv.holders
            if reason is FinishReason.ABORT and holds and lab.fires():
                for block in lab.kv.block_table(sequence.seq_id):
                    if block >= 0:
                        lab.kv.pool.acquire(block)
            finish(sequence, reason)

        return faulty

    lab.wrap(lab.scheduler, "finish", make)


@fault(
    "F14",
    "a block is zeroed after its sequence has filled it",
    source="'zeroed blocks' in vllm-project/vllm#37076",
    trigger="any sequence longer than a block",
    rate=0.05,
)
def zeroed_after_assignment(lab: Lab) -> None:
    def change(plan: StepPlan) -> StepPlan:
        for part in plan.seqs:
            full = part.start // lab.block_size
            if full and lab.fires():
                zero_block(lab, part.block_table[lab.random.randrange(full)])
        return plan

    lab.before_step(change)
