"""What several faults need: plans with one sequence changed, attention with a mask of one's own, damage to blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_engine.attention.base import AttentionMetadata, KVCacheLayer
from reference_engine.attention.gather import slots_of
from reference_engine.batch import StepTensors
from reference_engine.faults.lab import Lab
from reference_engine.plan import ScheduledSeq, StepPlan


def map_plan(plan: StepPlan, change: Callable[[ScheduledSeq], ScheduledSeq]) -> StepPlan:
    return replace(plan, seqs=tuple(change(part) for part in plan.seqs))


def on_tensors(lab: Lab, change: Callable[[StepPlan, StepTensors], StepTensors]) -> None:
    """Let ``change`` edit the tensors of every step."""
    from reference_engine import runner

    lab.wrap(runner, "build", lambda build: lambda plan, *rest, **named: change(plan, build(plan, *rest, **named)))


def on_logits(lab: Lab, change: Callable[[StepPlan, Any], Any]) -> None:
    """Let ``change(plan, logits)`` edit what every step computed."""

    def make(execute: Callable[[StepPlan], Any]) -> Callable[[StepPlan], Any]:
        return lambda plan: execute(plan) if plan.is_empty else change(plan, execute(plan))

    lab.wrap(lab.runner, "execute", make)


def sampled_rows(plan: StepPlan) -> list[ScheduledSeq]:
    """The plan's parts in the order of the rows of ``StepLogits.sampled``."""
    return [part for part in plan.seqs if part.num_samples]


def row_starts(plan: StepPlan) -> list[int]:
    """First flat row of every part."""
    starts, at = [], 0
    for part in plan.seqs:
        starts.append(at)
        at += part.query_len
    return starts


@torch.inference_mode()
def zero_block(lab: Lab, block: int) -> None:
    for layer in lab.runner.layers:
        layer.key[block].zero_()
        layer.value[block].zero_()


@torch.inference_mode()
def overwrite_block(lab: Lab, block: int, source: int) -> None:
    """Let ``block`` hold what ``source`` holds."""
    for layer in lab.runner.layers:
        layer.key[block] = layer.key[source]
        layer.value[block] = layer.value[source]


def attend_sequence(
    query: Tensor,
    cache: KVCacheLayer,
    meta: AttentionMetadata,
    index: int,
    scale: float,
    is_allowed: Callable[[np.ndarray, np.ndarray], np.ndarray],
    extra_slots: tuple[int, ...] = (),
) -> Tensor:
    """Dense attention of one sequence's rows ``[q, Hq, D]`` over its stored K/V; ``is_allowed(row positions, key
    positions)`` is the mask, ``extra_slots`` are attended by every row besides."""
    length, count = meta.seq_lens_list[index], query.shape[0]
    table = meta.block_tables[index].cpu().numpy()[None, :]
    slots = slots_of(table, np.arange(length)[None, :], meta.block_size)[0]
    rows, columns = np.arange(length - count, length)[:, None], np.arange(length)[None, :]
    allowed = np.concatenate([is_allowed(rows, columns), np.ones((count, len(extra_slots)), dtype=bool)], axis=1)
    chosen = torch.from_numpy(np.concatenate([slots, np.array(extra_slots, dtype=np.int64)])).to(query.device)
    group = query.shape[1] // cache.key.shape[2]
    keys = cache.key.flatten(0, 1)[chosen].float().repeat_interleave(group, dim=1)
    values = cache.value.flatten(0, 1)[chosen].float().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * scale
    scores.masked_fill_(~torch.from_numpy(allowed).to(query.device), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(query.dtype)


Attended = Callable[..., Tensor]


def on_attention(lab: Lab, make: Callable[[Attended], Attended]) -> None:
    """Replace the backend's ``forward``."""
    lab.wrap(lab.runner.backend, "forward", make)


def with_own_mask(
    lab: Lab,
    is_touched: Callable[[AttentionMetadata, int], bool],
    is_allowed: Callable[[AttentionMetadata, int], Callable[[np.ndarray, np.ndarray], np.ndarray]],
    extra_slots: Callable[[AttentionMetadata, int], tuple[int, ...]] = lambda meta, index: (),
) -> None:
    """Attend the touched sequences with a mask of one's own; each touched one is an occasion of the fault in layer 0."""
    struck: dict[int, bool] = {}

    def make(forward: Attended) -> Attended:
        def faulty(
            query: Tensor, key: Tensor, value: Tensor, cache: KVCacheLayer, meta: AttentionMetadata, **settings: Any
        ) -> Tensor:
            result = forward(query, key, value, cache, meta, **settings)
            if cache is lab.runner.layers[0]:
                struck.clear()
                struck.update({i: lab.fires() for i in range(meta.num_seqs) if is_touched(meta, i)})
            first = 0
            for index, count in enumerate(meta.query_lens):
                if struck.get(index):
                    rows = slice(first, first + count)
                    result[rows] = attend_sequence(
                        query[rows],
                        cache,
                        meta,
                        index,
                        settings["scale"],
                        is_allowed(meta, index),
                        extra_slots(meta, index),
                    )
                first += count
            return result

        return faulty

    on_attention(lab, make)


def on_request(lab: Lab, change: Callable[[Any], None]) -> None:
    """Let ``change(request)`` edit every request before the engine takes it."""

    def make(add: Callable[..., None]) -> Callable[..., None]:
        def faulty(request: Any, **named: Any) -> None:
            change(request)
            add(request, **named)

        return faulty

    lab.wrap(lab.engine, "add", make)
