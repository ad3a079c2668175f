"""CUDA graphs for decode steps: one graph a batch size of a ladder, replayed over static buffers.

::

    decode step of 13 sequences, ladder 1 2 4 8 16 24 ...  ->  graph 16

    static rows   [ 13 sequences            | 3 rows of padding                             ]
    input_ids       their tokens              0
    positions       theirs                    0
    slot_mapping    theirs                    TRASH_SLOT: store_kv stores nothing there
    seq_lens        theirs                    0: attention reads no block and gives zeros
    block_tables    theirs                    left over from earlier steps, never read

What is launched depends on the ladder's size and on ``max_model_len`` alone, so capture and replay choose the same
launch plan. Steps with a prefill chunk in them, with prompt logprobs, or larger than the ladder run eagerly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_engine.attention.base import AttentionMetadata
from reference_engine.attention.kv_format import KVFormat
from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.batch import StepTensors
from reference_engine.config import CacheConfig, ModelConfig
from reference_engine.kernels.copy_blocks import copy_blocks_launch
from reference_engine.models.llama import Attend, LlamaModel
from reference_engine.plan import BlockCopy, StepPlan
from reference_engine.runner import ModelRunner, StepLogits

TRASH_SLOT = -1
_PADDING = np.array([[0], [0], [TRASH_SLOT], [0]])  # input id, position, slot, seq_len of a padded row


def batch_ladder(largest: int) -> tuple[int, ...]:
    """Batch sizes that get a graph, ascending: fine steps where a padded row costs much, coarse ones above; ends in
    ``largest``.
    """
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, largest, 64)]
    return (*(size for size in steps if size < largest), largest)


@dataclass(slots=True)
class _Staging:
    """Pinned host copies of a step's inputs.  ``ready`` fires once the device has read them."""

    rows: Tensor  # int64 [4 * largest]: input_ids, positions, slot_mapping, seq_lens, each as long as the graph's batch
    tables: Tensor  # int32 [largest * width]: the block tables that changed, each as wide as the widest of them
    changed: Tensor  # int64 [largest]: which rows those are
    ready: torch.cuda.Event | None = None


@dataclass(frozen=True, slots=True)
class _RotatingAttend:
    """Attention that takes the projection before RoPE; see ``models.llama.RotatingAttend``."""

    plain: Attend
    runner: GraphRunner
    meta: AttentionMetadata

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.plain(layer, query, key, value)

    def rotate_and_attend(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        runner = self.runner
        return runner.triton.rotate_store_attend(
            qkv,
            runner.model_config.num_heads,
            cos,
            sin,
            runner.layers[layer],
            self.meta,
            scale=runner._scale,
            window=runner.model_config.window(layer),
        )


class GraphRunner(ModelRunner):
    """A :class:`ModelRunner` that replays graphs for decode steps of up to ``max_num_seqs`` sequences.

    The logits that ``execute`` returns for such a step are valid until the next ``execute``.  Without a CUDA device
    (tests) the same padded rows run eagerly.  The attention backend must take everything from device tensors, as
    ``triton`` does.
    """

    def __init__(
        self,
        model: LlamaModel,
        model_config: ModelConfig,
        cache: CacheConfig,
        backend: TritonPagedAttention,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_num_seqs: int,
        max_model_len: int,
        kv_format: KVFormat | None = None,
        kv_scales: list[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__(model, model_config, cache, backend, device, dtype, kv_format=kv_format, kv_scales=kv_scales)
        self.triton = backend
        self.ladder = batch_ladder(max_num_seqs)
        self.max_model_len = max_model_len
        self._width = -(-max_model_len // cache.block_size)
        self._rows = torch.zeros(4 * max_num_seqs, dtype=torch.int64, device=device)
        self._tables = torch.zeros((max_num_seqs, self._width), dtype=torch.int32, device=device)
        self._starts = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._logits = torch.zeros((max_num_seqs, model_config.vocab_size), dtype=torch.float32, device=device)
        self._known_tables: list[tuple[int, ...]] = [()] * max_num_seqs  # what each row of _tables holds
        self._staging = [self._make_staging(max_num_seqs) for _ in range(2)]
        self._replays: dict[int, Callable[[], object]] = {}
        self._pool: Any = None

    def capture(self) -> None:
        """Capture the whole ladder, largest first, so that no request waits for it later."""
        for size in reversed(self.ladder):
            self._replay_of(size)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepLogits:
        """As :meth:`ModelRunner.execute`."""
        size = self._graph_size(plan)
        if size is None:
            return super().execute(plan)
        self._move_blocks(plan)
        self._fill(plan, size)
        self._replay_of(size)()
        return StepLogits(self._logits[: len(plan.seqs)], {})

    def _attend(self, meta: AttentionMetadata) -> Attend:
        return _RotatingAttend(super()._attend(meta), self, meta)

    def _copy_blocks(self, copies: tuple[BlockCopy, ...]) -> None:
        sources, targets = {copy.source for copy in copies}, {copy.target for copy in copies}
        if not copies or sources & targets:
            super()._copy_blocks(copies)  # which reads every source before it writes a target
            return
        pairs = torch.tensor([(copy.source, copy.target) for copy in copies], device=self.device)
        for layer in self.layers:
            for pool in layer.tensors():
                elements = pool.view(torch.uint8) if pool.dtype.itemsize == 1 else pool
                copy_blocks_launch(elements, elements, pairs).run()

    def _graph_size(self, plan: StepPlan) -> int | None:
        """The ladder's size for ``plan``; None if it must run eagerly."""
        seqs = plan.seqs
        if not seqs or len(seqs) > self.ladder[-1]:
            return None
        if any(
            len(s.tokens) != 1 or s.num_samples < 1 or s.prompt_logprobs or s.start >= self.max_model_len for s in seqs
        ):
            return None
        return next(size for size in self.ladder if size >= len(seqs))

    def _fill(self, plan: StepPlan, size: int) -> None:
        """Copy the step's inputs to the static buffers, without a sync; block tables only if one has changed."""
        seqs, count, block_size = plan.seqs, len(plan.seqs), self.cache.block_size
        staging = self._staging[0]
        self._staging.reverse()
        if staging.ready is not None:
            staging.ready.synchronize()
        rows = staging.rows[: 4 * size].numpy().reshape(4, size)
        rows[:, count:] = _PADDING
        rows[0, :count] = [s.tokens[0] for s in seqs]
        rows[1, :count] = [s.start for s in seqs]
        rows[2, :count] = [s.block_table[s.start // block_size] * block_size + s.start % block_size for s in seqs]
        rows[3, :count] = rows[1, :count] + 1
        self._rows[: 4 * size].copy_(staging.rows[: 4 * size], non_blocking=True)
        self._update_tables([s.block_table for s in seqs], staging)
        if self.device.type == "cuda":
            staging.ready = torch.cuda.Event()
            staging.ready.record()

    def _update_tables(self, tables: list[tuple[int, ...]], staging: _Staging) -> None:
        """Send the rows of ``tables`` that differ from what the device holds: a few a step, as sequences reach new blocks."""
        changed = [row for row, table in enumerate(tables) if table != self._known_tables[row]]
        if not changed:
            return
        width = max(len(tables[row]) for row in changed)
        staged = staging.tables[: len(changed) * width].view(len(changed), width)
        values = staged.numpy()
        for at, row in enumerate(changed):
            values[at, : len(tables[row])] = tables[row]
            self._known_tables[row] = tables[row]
        staging.changed[: len(changed)] = torch.tensor(changed)
        rows = staging.changed[: len(changed)].to(self.device, non_blocking=True)
        self._tables[:, :width].index_copy_(0, rows, staged.to(self.device, non_blocking=True))

    def _replay_of(self, size: int) -> Callable[[], object]:
        """What computes ``_logits[:size]`` from the static buffers."""
        if size not in self._replays:
            if self.device.type == "cuda":
                self._replays[size] = self._capture(size)
            else:
                self._replays[size] = lambda: self._compute(size)
        return self._replays[size]

    @torch.inference_mode()
    def _capture(self, size: int) -> Callable[[], object]:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self._compute(size)  # compiles kernels and sizes scratch memory, which a capture must not
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._compute(size)
        self._pool = self._pool or graph.pool()
        return graph.replay

    def _compute(self, size: int) -> None:
        input_ids, positions, slots, seq_lens = self._rows[: 4 * size].view(4, size)
        meta = AttentionMetadata(
            query_start_loc=self._starts[: size + 1],
            seq_lens=seq_lens.int(),
            block_tables=self._tables[:size],
            slot_mapping=slots,
            block_size=self.cache.block_size,
            max_query_len=1,
            max_seq_len=self.max_model_len,
            query_lens=(1,) * size,
            seq_lens_list=(self.max_model_len,) * size,
        )
        step = StepTensors(
            input_ids=input_ids,
            positions=positions,
            meta=meta,
            logit_rows=self._starts[:size].long(),
            num_sampled=size,
            prompt_slices={},
        )
        self._logits[:size].copy_(self._forward(step))

    def _make_staging(self, rows: int) -> _Staging:
        pinned = self.device.type == "cuda"
        return _Staging(
            rows=torch.zeros(4 * rows, dtype=torch.int64, pin_memory=pinned),
            tables=torch.zeros(rows * self._width, dtype=torch.int32, pin_memory=pinned),
            changed=torch.zeros(rows, dtype=torch.int64, pin_memory=pinned),
        )
