"""``StepPlan`` -> tensors.  A pure function: the same plan gives the same tensors, and nothing is remembered.

::

    plan.seqs     [ a: 1 token ][ b: 3 tokens, prompt logprobs ][ c: 1 token ]
    flat rows       0             1  2  3                         4
    logit rows      0                    3 (if b samples)         4   | then 1 2 3 for b's prompt logprobs
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reference_engine.attention.base import AttentionMetadata
from reference_engine.plan import StepPlan

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class StepTensors:
    """Inputs of one forward pass over T flat rows.

    input_ids, positions   int64 [T]
    meta                   where the rows live (see ``AttentionMetadata``)
    logit_rows             int64 [R]: the last row of every sequence that samples, in plan order, then all rows of every
                           sequence that wants prompt logprobs
    num_sampled            the first so many of logit_rows are for sampling
    prompt_slices          seq_id -> (begin, end) within the R rows
    """

    input_ids: Tensor
    positions: Tensor
    meta: AttentionMetadata
    logit_rows: Tensor
    num_sampled: int
    prompt_slices: dict[int, tuple[int, int]]


def build(plan: StepPlan, block_size: int, device: torch.device) -> StepTensors:
    """Tensors of ``plan`` on ``device``.  ``plan`` must hold at least one sequence."""
    seqs = plan.seqs
    count = len(seqs)
    query_lens = [len(s.tokens) for s in seqs]
    starts = [s.start for s in seqs]
    seq_lens = [a + b for a, b in zip(starts, query_lens, strict=True)]
    total = sum(query_lens)
    width = max(len(s.block_table) for s in seqs)
    tables = np.full((count, width), -1, dtype=np.int32)
    for row, seq in enumerate(seqs):
        tables[row, : len(seq.block_table)] = seq.block_table
    first_row = np.zeros(count + 1, dtype=np.int32)
    np.cumsum(query_lens, out=first_row[1:])

    ids: np.ndarray
    if total == count:
        ids = np.fromiter((s.tokens[0] for s in seqs), dtype=np.int64, count=count)
        positions = np.array(starts, dtype=np.int64)
        owner = np.arange(count)
    else:
        ids = np.fromiter((token for s in seqs for token in s.tokens), dtype=np.int64, count=total)
        owner = np.repeat(np.arange(count), query_lens)
        positions = np.arange(total) - first_row[:-1][owner] + np.array(starts, dtype=np.int64)[owner]
    slots = tables[owner, positions // block_size].astype(np.int64) * block_size + positions % block_size

    last_rows = first_row[1:] - 1
    logit_rows = [int(last_rows[i]) for i, s in enumerate(seqs) if s.num_samples > 0]
    num_sampled = len(logit_rows)
    prompt_slices: dict[int, tuple[int, int]] = {}
    for i, s in enumerate(seqs):
        if s.prompt_logprobs:
            prompt_slices[s.seq_id] = (len(logit_rows), len(logit_rows) + query_lens[i])
            logit_rows.extend(range(int(first_row[i]), int(first_row[i + 1])))

    def put(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if device == _CPU else tensor.to(device, non_blocking=True)

    meta = AttentionMetadata(
        query_start_loc=put(first_row),
        seq_lens=put(np.array(seq_lens, dtype=np.int32)),
        block_tables=put(tables),
        slot_mapping=put(slots),
        block_size=block_size,
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
        query_lens=tuple(query_lens),
        seq_lens_list=tuple(seq_lens),
    )
    return StepTensors(
        input_ids=put(ids),
        positions=put(positions),
        meta=meta,
        logit_rows=put(np.array(logit_rows, dtype=np.int64)),
        num_sampled=num_sampled,
        prompt_slices=prompt_slices,
    )
