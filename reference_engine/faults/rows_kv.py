"""Rows of the table of real bugs that no F fault covers: prefix cache (P), allocation (A)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reference_engine.batch import StepTensors
from reference_engine.faults.kv import SMALL_POOL
from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.faults.tools import on_tensors, row_starts
from reference_engine.plan import StepPlan
from reference_engine.request import FinishReason, Sequence


@fault(
    "P1",
    "the cache still finds a block that was reused for other content",
    source="GeeeekExplorer/nano-vllm#163, vllm-project/vllm#5364, #4761",
    trigger="a prompt is evicted by others, then asked again",
    needs=SMALL_POOL,
)
def stale_entry(lab: Lab) -> None:
    lab.tolerate_lost_blocks()
    lab.wrap(lab.kv.pool, "_on_evict", lambda on_evict: lambda block: None if lab.fires() else on_evict(block))


@fault(
    "P2",
    "hits stop after the first block",
    source="GeeeekExplorer/nano-vllm, commit 9fa256a",
    trigger="a cached prefix of two blocks or more",
)
def hits_stop(lab: Lab) -> None:
    def make(find: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def faulty(*arguments: Any) -> list[Any]:
            found = find(*arguments)
            return found[:1] if len(found) > 1 and lab.fires() else found

        return faulty

    lab.wrap(lab.kv.cache, "find", make)


@fault(
    "P6",
    "a block is visible to the cache before it is computed",
    source="vllm-project/vllm#43569, #41400, #7822",
    trigger="an abort in the middle of a prefill, then the same prompt",
)
def visible_too_early(lab: Lab) -> None:
    lab.tolerate_lost_blocks()

    def make(admit: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(draft: Any, entry: Any, prefix: Any) -> Any:
            result = admit(draft, entry, prefix)
            sequence = entry.sequence
            _, planned = draft.picked[sequence.seq_id]
            full = (sequence.known - 1) // lab.block_size * lab.block_size
            if sequence.computed + planned < full and lab.kv.can_allocate(sequence, full) and lab.fires():
                computed = sequence.computed
                lab.kv.allocate(sequence, full)
                sequence.computed = full
                lab.kv.commit(sequence)
                sequence.computed = computed
            return result

        return faulty

    lab.wrap(lab.scheduler, "_admit", make)


def _on_first_part_after_hit(lab: Lab, shift_whole_part: bool) -> None:
    met: set[int] = set()

    def change(plan: StepPlan, step: StepTensors) -> StepTensors:
        positions = step.positions.clone()
        for first, part in zip(row_starts(plan), plan.seqs, strict=True):
            sequence = lab.sequence(part.seq_id)
            if sequence is None or not sequence.cached or part.seq_id in met:
                continue
            met.add(part.seq_id)
            last = first + part.query_len
            if lab.fires():
                positions[first if shift_whole_part else last - 1 : last] += 1
        return replace(step, positions=positions)

    on_tensors(lab, change)


@fault(
    "P8",
    "a hit appends the last token once more: it is computed one position late",
    source="raullenchai/Rapid-MLX#994",
    trigger="a cached prefix",
)
def last_token_again(lab: Lab) -> None:
    _on_first_part_after_hit(lab, shift_whole_part=False)


@fault(
    "P12",
    "a duplicate block is freed while the table still points to it",
    source="sgl-project/mini-sglang#142",
    trigger="two equal prompts computed in one step",
)
def duplicate_freed(lab: Lab) -> None:
    lab.tolerate_lost_blocks()

    def make(share: Callable[[Any], None]) -> Callable[[Any], None]:
        def faulty(table: Any) -> None:
            before = list(table.blocks)
            share(table)
            if table.blocks != before and lab.fires():
                table.blocks[:] = before
                table.frozen = None

        return faulty

    def make_release(release: Callable[[int], None]) -> Callable[[int], None]:
        return lambda block: release(block) if lab.kv.pool.ref_count(block) else None

    lab.wrap(lab.kv, "_share_next_block", make)
    lab.wrap(lab.kv.pool, "release", make_release)


@fault(
    "P14",
    "what follows a cached prefix is computed one position late",
    source="tenstorrent/vllm#415, modular/modular#6681",
    trigger="a cached prefix",
)
def position_after_hit(lab: Lab) -> None:
    _on_first_part_after_hit(lab, shift_whole_part=True)


@fault(
    "P17",
    "cancelling a request on a shared prefix releases the blocks twice",
    source="report sgl-project/sglang#23392, #18694",
    trigger="a disconnect while another request holds the same prefix",
)
def released_twice(lab: Lab) -> None:
    lab.tolerate_lost_blocks()
    pool = lab.kv.pool

    def make(finish: Callable[..., None]) -> Callable[..., None]:
        def faulty(sequence: Sequence, reason: FinishReason) -> None:
            holds = sequence.seq_id in lab.kv.holders
            blocks = lab.kv.block_table(sequence.seq_id) if holds and reason is FinishReason.ABORT else ()
            finish(sequence, reason)
            for block in blocks:
                if block >= 0 and pool.ref_count(block) and lab.fires():
                    if lab.kv.cache.entry(block) is not None:
                        pool._cached[block] = 0
                        lab.kv.cache.evict(block)
                    pool.release(block)

        return faulty

    def make_release(release: Callable[[int], None]) -> Callable[[int], None]:
        return lambda block: release(block) if pool.ref_count(block) else None

    lab.wrap(lab.scheduler, "finish", make)
    lab.wrap(pool, "release", make_release)


@fault(
    "A3",
    "a free block that a hit revives stays in the free list",
    source="jjang-ai/vmlx#198",
    trigger="a hit on a block that nobody holds, then new blocks",
    needs=SMALL_POOL,
)
def revived_but_free(lab: Lab) -> None:
    lab.tolerate_lost_blocks()
    pool = lab.kv.pool

    def make(acquire: Callable[[int], None]) -> Callable[[int], None]:
        def faulty(block: int) -> None:
            if pool.ref_count(block) or not lab.fires():
                acquire(block)
                return
            # To the head of the list, so that it is the next to be handed out, and held all the same.
            acquire(block)
            pool._link_after(pool.num_blocks, block)
            pool.num_free += 1
            if pool.is_cached(block):
                lab.kv.cache.evict(block)
                pool._cached[block] = 0

        return faulty

    def make_release(release: Callable[[int], None]) -> Callable[[int], None]:
        return lambda block: release(block) if pool.ref_count(block) else None

    lab.wrap(pool, "acquire", make)
    lab.wrap(pool, "release", make_release)


@fault(
    "A6",
    "the last block of every request is leaked",
    source="kekzl/imp#1115",
    trigger="any request that ends; the pool runs dry after some hundreds",
)
def last_block_leaked(lab: Lab) -> None:
    lab.tolerate_lost_blocks()

    def make(free: Callable[[int], None]) -> Callable[[int], None]:
        def faulty(seq_id: int) -> None:
            blocks = lab.kv.block_table(seq_id) if seq_id in lab.kv.holders else ()
            if blocks and lab.fires():
                lab.kv.pool.acquire(blocks[-1])
            free(seq_id)

        return faulty

    lab.wrap(lab.kv, "free", make)


@fault(
    "A19",
    "a preempted sequence leaves its first block behind",
    source="sgl-project/sglang#22862",
    trigger="preemption",
    needs=SMALL_POOL,
)
def leak_at_preemption(lab: Lab) -> None:
    lab.tolerate_lost_blocks()

    def make(preempt: Callable[..., None]) -> Callable[..., None]:
        def faulty(draft: Any, victim: Any, beneficiary: Any) -> None:
            blocks = lab.kv.block_table(victim.sequence.seq_id)
            if blocks and blocks[0] >= 0 and lab.fires():
                lab.kv.pool.acquire(blocks[0])
            preempt(draft, victim, beneficiary)

        return faulty

    lab.wrap(lab.scheduler, "_preempt", make)


def _abort_kills(lab: Lab, is_hit: Callable[[Sequence], bool]) -> None:
    def make(abort: Callable[[str], Any]) -> Callable[[str], Any]:
        def faulty(request_id: str) -> Any:
            mine = [one for one in lab.scheduler.sequences.values() if one.request.request_id == request_id]
            if any(is_hit(one) for one in mine) and lab.fires():
                raise RuntimeError("the scheduler does not expect this request to end here")
            return abort(request_id)

        return faulty

    lab.wrap(lab.scheduler, "abort", make)


@fault(
    "A5",
    "an abort in the middle of a prefill ends the engine",
    source="sgl-project/sglang#39387",
    trigger="a disconnect between two chunks of a prompt",
    seen_with={"max_num_batched_tokens": 32},
)
def abort_in_prefill(lab: Lab) -> None:
    _abort_kills(lab, lambda sequence: 0 < sequence.computed < sequence.prompt_len)


@fault(
    "A8",
    "an abort of a waiting request ends the engine",
    source="vllm-project/vllm#18829",
    trigger="a disconnect while the request waits",
    needs=("--max-num-seqs below the load",),
)
def abort_of_waiting(lab: Lab) -> None:
    _abort_kills(lab, lambda sequence: sequence.seq_id not in lab.kv.holders)
