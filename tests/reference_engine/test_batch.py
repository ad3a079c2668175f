"""StepPlan -> tensors, against a slow row-by-row construction."""

from __future__ import annotations

import random

import pytest
import torch

from reference_engine.batch import build
from reference_engine.plan import ScheduledSeq, StepPlan

CPU = torch.device("cpu")


def random_plan(block_size: int, only_decodes: bool) -> StepPlan:
    seqs = []
    for seq_id in random.sample(range(1000), random.randrange(1, 9)):
        start = random.randrange(60)
        count = 1 if only_decodes else random.choice([1, 1, 3, 20])
        blocks = -(-(start + count) // block_size) + random.randrange(3)
        seqs.append(
            ScheduledSeq(
                seq_id=seq_id,
                start=start,
                tokens=tuple(random.randrange(500) for _ in range(count)),
                block_table=tuple(random.sample(range(500), blocks)),
                num_samples=random.choice([0, 1, 1, 4]),
                prompt_logprobs=not only_decodes and random.random() < 0.4,
            )
        )
    return StepPlan(0, tuple(seqs))


@pytest.mark.parametrize("block_size", [1, 4, 7, 256])
@pytest.mark.parametrize("only_decodes", [True, False])
def test_against_row_by_row(block_size: int, only_decodes: bool) -> None:
    for _ in range(40):
        plan = random_plan(block_size, only_decodes)
        step = build(plan, block_size, CPU)
        ids, positions, slots, starts, last_rows = [], [], [], [0], {}
        for seq in plan.seqs:
            for offset, token in enumerate(seq.tokens):
                position = seq.start + offset
                ids.append(token)
                positions.append(position)
                slots.append(seq.block_table[position // block_size] * block_size + position % block_size)
            starts.append(len(ids))
            last_rows[seq.seq_id] = len(ids) - 1
        meta = step.meta
        assert step.input_ids.tolist() == ids
        assert step.positions.tolist() == positions
        assert meta.slot_mapping.tolist() == slots
        assert meta.query_start_loc.tolist() == starts
        assert meta.seq_lens.tolist() == list(meta.seq_lens_list) == [s.seq_len for s in plan.seqs]
        assert meta.query_lens == tuple(s.query_len for s in plan.seqs)
        assert (meta.max_query_len, meta.max_seq_len) == (max(meta.query_lens), max(meta.seq_lens_list))
        assert meta.block_size == block_size
        assert meta.num_seqs == len(plan.seqs)
        for seq, row in zip(plan.seqs, meta.block_tables.tolist(), strict=True):
            assert tuple(row[: len(seq.block_table)]) == seq.block_table
            assert set(row[len(seq.block_table) :]) <= {-1}, "padding must not name a block"
        rows = step.logit_rows.tolist()
        assert rows[: step.num_sampled] == [last_rows[s.seq_id] for s in plan.seqs if s.num_samples]
        for index, seq in enumerate(plan.seqs):
            if seq.prompt_logprobs:
                begin, end = step.prompt_slices[seq.seq_id]
                assert rows[begin:end] == list(range(starts[index], starts[index + 1]))
        assert set(step.prompt_slices) == {s.seq_id for s in plan.seqs if s.prompt_logprobs}


def test_types() -> None:
    step = build(random_plan(4, False), 4, CPU)
    assert step.input_ids.dtype == step.positions.dtype == step.logit_rows.dtype == torch.int64
    assert step.meta.slot_mapping.dtype == torch.int64
    assert step.meta.block_tables.dtype == step.meta.seq_lens.dtype == step.meta.query_start_loc.dtype == torch.int32


def test_the_plan_is_not_remembered() -> None:
    plan = random_plan(4, False)
    first, second = build(plan, 4, CPU), build(plan, 4, CPU)
    assert torch.equal(first.input_ids, second.input_ids)
    assert first.input_ids.data_ptr() != second.input_ids.data_ptr()
