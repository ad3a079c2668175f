"""Rows of the table of real bugs that no F fault covers: kernels (K), resume (R), batch state and API (B)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_engine import logprobs
from reference_engine.attention.base import AttentionMetadata
from reference_engine.batch import StepTensors
from reference_engine.faults.attention import Mask
from reference_engine.faults.kv import SMALL_POOL
from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.faults.tools import (
    Attended,
    on_attention,
    on_logits,
    on_tensors,
    row_starts,
    sampled_rows,
    with_own_mask,
)
from reference_engine.outputs import SequenceOutput
from reference_engine.plan import StepPlan
from reference_engine.server.api import GenerationApi
from reference_engine.server.wire import Wire


@fault(
    "K1",
    "what an unused slot holds reaches the result (0 times NaN)",
    source="Dao-AILab/flash-attention#1745, #2374, vllm-project/vllm#936",
    trigger="a last block partly filled, over memory that was never written",
)
def unused_slots_matter(lab: Lab) -> None:
    lab.runner.poison()

    def make(forward: Attended) -> Attended:
        def faulty(query: Tensor, key: Tensor, value: Tensor, cache: Any, meta: Any, **settings: Any) -> Tensor:
            result = forward(query, key, value, cache, meta, **settings)
            first = 0
            for index, (count, length) in enumerate(zip(meta.query_lens, meta.seq_lens_list, strict=True)):
                offset = length % meta.block_size
                if offset and cache is lab.runner.layers[-1]:
                    block = int(meta.block_tables[index, length // meta.block_size])
                    if bool(cache.value[block, offset].isnan().any()) and lab.fires():
                        result[first : first + count] = float("nan")
                first += count
            return result

        return faulty

    on_attention(lab, make)


@fault(
    "K3",
    "padding is written into block 0",
    source="sgl-project/sglang#32477, #36207, vllm-project/vllm#39444",
    trigger="a step with an odd number of sequences",
)
def padding_into_block_zero(lab: Lab) -> None:
    def change(plan: StepPlan, logits: Any) -> Any:
        if len(plan.seqs) % 2 and lab.fires():
            for layer in lab.runner.layers:
                layer.key[0, 0].zero_()
                layer.value[0, 0].zero_()
        return logits

    on_logits(lab, change)


@fault(
    "K5",
    "the last row is garbage where the batch is one larger than a captured size",
    source="vllm-project/vllm#13922",
    trigger="3, 5, 9, 17 or 33 sequences in a step",
)
def wrong_padding_size(lab: Lab) -> None:
    def change(plan: StepPlan, logits: Any) -> Any:
        rows = logits.sampled.shape[0]
        if rows not in (3, 5, 9, 17, 33) or not lab.fires():
            return logits
        return replace(logits, sampled=torch.cat([logits.sampled[:-1], logits.sampled[:1]]))

    on_logits(lab, change)


@fault(
    "K7",
    "a short sequence beside a long one is NaN: an empty partition of split-k",
    source="vllm-project/vllm#47188, pegainfer-project/pegainfer#21",
    trigger="a decode of at most `short` tokens beside one of more than `long`",
    short=8,
    long=256,
)
def empty_split(lab: Lab) -> None:
    def change(plan: StepPlan, logits: Any) -> Any:
        parts = sampled_rows(plan)
        if max((part.seq_len for part in plan.seqs), default=0) <= int(lab.value("long")):
            return logits
        rows = [row for row, part in enumerate(parts) if part.seq_len <= int(lab.value("short"))]
        if not rows or not lab.fires():
            return logits
        sampled = logits.sampled.clone()
        sampled[rows] = float("nan")
        return replace(logits, sampled=sampled)

    on_logits(lab, change)


@fault(
    "K9",
    "the shared-prefix kernel leaves out the last common block",
    source="vllm-project/vllm#55227, #22103",
    trigger="all sequences of a step share their first block",
)
def common_prefix_short(lab: Lab) -> None:
    def common(meta: AttentionMetadata) -> int:
        tables = meta.block_tables
        same = (tables == tables[:1]).all(dim=0).long().cumprod(0)
        return int(same.sum())

    def is_touched(meta: AttentionMetadata, index: int) -> bool:
        return meta.num_seqs > 1 and meta.query_lens[index] == 1 and common(meta) > 0

    def mask(meta: AttentionMetadata, index: int) -> Mask:
        last = common(meta) - 1
        return lambda rows, columns: np.asarray((columns <= rows) & (columns // meta.block_size != last))

    with_own_mask(lab, is_touched, mask)


@fault(
    "K15",
    "prompts of some lengths modulo 16 are garbage",
    source="vllm-project/vllm#50749",
    trigger="a prompt of length `residue` modulo 16",
    residue=5,
)
def bad_residue(lab: Lab) -> None:
    def change(plan: StepPlan, logits: Any) -> Any:
        rows = []
        for row, part in enumerate(sampled_rows(plan)):
            sequence = lab.sequence(part.seq_id)
            first = sequence is not None and sequence.num_generated == 0
            if first and part.seq_len % 16 == int(lab.value("residue")) and lab.fires():
                rows.append(row)
        if not rows:
            return logits
        sampled = logits.sampled.clone()
        sampled[rows] = sampled[rows].flip(-1)
        return replace(logits, sampled=sampled)

    on_logits(lab, change)


@fault(
    "K22",
    "a window is applied to layers that attend everything",
    source="vllm-project/vllm#49795, #2064",
    trigger="a sequence longer than `window`",
    window=64,
)
def window_forced(lab: Lab) -> None:
    def make(forward: Attended) -> Attended:
        def faulty(*tensors: Any, window: int | None = None, **settings: Any) -> Tensor:
            wide = int(lab.value("window"))
            meta: AttentionMetadata = tensors[4]
            if window is None and meta.max_seq_len > wide and lab.fires():
                window = wide
            return forward(*tensors, window=window, **settings)

        return faulty

    on_attention(lab, make)


@fault(
    "R2",
    "a token is delivered twice after a resume",
    source="vllm-project/vllm#38624, #28787, tenstorrent/vllm#395",
    trigger="preemption",
    needs=SMALL_POOL,
)
def duplicate_after_resume(lab: Lab) -> None:
    seen: dict[int, int] = {}

    def make(accept: Callable[..., SequenceOutput]) -> Callable[..., SequenceOutput]:
        def faulty(job: Any, sequence: Any, *rest: Any) -> SequenceOutput:
            output = accept(job, sequence, *rest)
            if seen.get(sequence.seq_id, 0) == sequence.preemptions or not output.text:
                return output
            seen[sequence.seq_id] = sequence.preemptions
            return replace(output, text=output.text * 2) if lab.fires() else output

        return faulty

    lab.wrap(lab.engine, "_accept", make)


@fault(
    "R4",
    "cached_tokens exceeds prompt_tokens after a resume",
    source="sgl-project/sglang#11900",
    trigger="preemption",
    needs=SMALL_POOL,
)
def cached_exceeds_prompt(lab: Lab) -> None:
    def make(accept: Callable[..., SequenceOutput]) -> Callable[..., SequenceOutput]:
        def faulty(job: Any, sequence: Any, *rest: Any) -> SequenceOutput:
            output = accept(job, sequence, *rest)
            if not sequence.preemptions or not lab.fires():
                return output
            return replace(output, cached_tokens=sequence.known)

        return faulty

    lab.wrap(lab.engine, "_accept", make)


@fault(
    "R13",
    "slots of a later chunk are counted from the chunk's beginning",
    source="vllm-project/vllm#36580",
    trigger="a prompt longer than the token budget, or prefilled in parts under load",
    needs=("--max-num-batched-tokens below the prompt's length",),
)
def slots_from_chunk(lab: Lab) -> None:
    def change(plan: StepPlan, step: StepTensors) -> StepTensors:
        slots, size = step.meta.slot_mapping.clone(), lab.block_size
        for first, part in zip(row_starts(plan), plan.seqs, strict=True):
            if part.start and part.query_len > 1 and lab.fires():
                for row in range(part.query_len):
                    slots[first + row] = part.block_table[row // size] * size + row % size
        return replace(step, meta=replace(step.meta, slot_mapping=slots))

    on_tensors(lab, change)


@fault(
    "B4",
    "prompt logprobs are shifted by one token",
    source="AI-Hypercomputer/maxtext#2103",
    trigger="echo with logprobs, or prompt_logprobs",
)
def prompt_logprobs_shifted(lab: Lab) -> None:
    def make(add: Callable[..., None]) -> Callable[..., None]:
        return lambda self, start, logits: add(self, start, logits.roll(1, 0) if lab.fires() else logits)

    lab.wrap(logprobs.PromptScores, "add", make)


@fault(
    "B5",
    "prompt logprobs of all chunks but the first are lost",
    source="vllm-project/vllm#29216, sgl-project/sglang#2403",
    trigger="prompt logprobs of a prompt longer than the token budget",
    needs=("--max-num-batched-tokens below the prompt's length",),
)
def chunk_logprobs_lost(lab: Lab) -> None:
    def make(add: Callable[..., None]) -> Callable[..., None]:
        return lambda self, start, logits: None if start and lab.fires() else add(self, start, logits)

    lab.wrap(logprobs.PromptScores, "add", make)


@fault(
    "B6",
    "a stream begins with an event that holds no token",
    source="deepjavalibrary/djl-serving#2299",
    trigger="any stream",
)
def dummy_first_event(lab: Lab) -> None:
    def make(chunk: Callable[..., bytes]) -> Callable[..., bytes]:
        def faulty(self: Any, output: SequenceOutput) -> bytes:
            if output.num_generated > 1 or output.finish_reason is not None or not lab.fires():
                return chunk(self, output)
            empty = chunk(self, replace(output, text="", logprob=None))
            return empty + chunk(self, output)

        return faulty

    lab.wrap(Wire, "chunk", make)


@fault(
    "B13",
    "a call without stream is answered as a stream",
    source="sgl-project/mini-sglang",
    trigger="any call with stream false",
)
def always_streams(lab: Lab) -> None:
    def make(answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def faulty(self: Any, request: Any, call: Any) -> Any:
            return await answer(self, request, replace(call, stream=True) if not call.stream and lab.fires() else call)

        return faulty

    lab.wrap(GenerationApi, "_answer", make)
