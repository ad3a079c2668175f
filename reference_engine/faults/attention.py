"""Faults of attention, positions and numbers: F15 to F26."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_engine.attention.base import AttentionMetadata
from reference_engine.batch import StepTensors
from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.faults.tools import (
    Attended,
    on_attention,
    on_logits,
    on_tensors,
    row_starts,
    with_own_mask,
)
from reference_engine.plan import StepPlan

Mask = Callable[[np.ndarray, np.ndarray], np.ndarray]


def causal(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.asarray(columns <= rows)


def _round_to_fp8(values: Tensor) -> Tensor:
    largest = values.abs().amax().clamp_min(1e-12)
    scale = 448.0 / largest
    return ((values * scale).to(torch.float8_e4m3fn).to(torch.float32) / scale).to(values.dtype)


@fault(
    "F15",
    "K and V are silently kept in 8 bits (e4m3)",
    source="vllm-project/vllm#50702 (quantised KV under a cache)",
    trigger="any request",
)
def silently_quantised(lab: Lab) -> None:
    def make(forward: Attended) -> Attended:
        def faulty(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **settings: Any) -> Tensor:
            if lab.fires():
                key, value = _round_to_fp8(key), _round_to_fp8(value)
            return forward(query, key, value, *rest, **settings)

        return faulty

    on_attention(lab, make)


@fault(
    "F16",
    "query heads read the wrong K/V head (h mod Hkv)",
    source="HazyResearch/HipKittens#22, PSAL-POSTECH/ONNXim#33",
    trigger="a model with grouped queries and more than one K/V head",
)
def wrong_head_map(lab: Lab) -> None:
    def make(forward: Attended) -> Attended:
        def faulty(query: Tensor, key: Tensor, *rest: Any, **settings: Any) -> Tensor:
            heads, kv_heads = query.shape[1], key.shape[1]
            order = sorted(range(heads), key=lambda head: (head % kv_heads, head))
            if order == list(range(heads)) or not lab.fires():
                return forward(query, key, *rest, **settings)
            result = forward(query[:, order].contiguous(), key, *rest, **settings)
            back = torch.empty_like(result)
            back[:, order] = result
            return back

        return faulty

    on_attention(lab, make)


@fault(
    "F17",
    "the position is one too high in decodes, or in chunks after the first (where=chunk)",
    source="GeeeekExplorer/nano-vllm#67",
    trigger="any decode; with where=chunk a prompt longer than the token budget",
    where="decode",
)
def position_off_by_one(lab: Lab) -> None:
    def change(plan: StepPlan, step: StepTensors) -> StepTensors:
        positions = step.positions.clone()
        for first, part in zip(row_starts(plan), plan.seqs, strict=True):
            is_decode = part.query_len == 1 and part.num_samples > 0
            wanted = is_decode if lab.value("where") == "decode" else not is_decode and part.start > 0
            if wanted and lab.fires():
                positions[first : first + part.query_len] += 1
        return replace(step, positions=positions)

    on_tensors(lab, change)


@fault(
    "F18",
    "the causal mask lets one future token in",
    source="a classic off-by-one of the mask; no single report chosen",
    trigger="any prompt of more than one token",
)
def one_future_token(lab: Lab) -> None:
    def mask(meta: AttentionMetadata, index: int) -> Mask:
        return lambda rows, columns: columns <= rows + 1

    with_own_mask(lab, lambda meta, index: meta.query_lens[index] > 1, mask)


@fault(
    "F19",
    "the mask at a chunk's edge is wrong: a later chunk does not see the last block before it",
    source="GeeeekExplorer/nano-vllm#213, vllm-project/vllm#36580",
    trigger="a prompt longer than the token budget, or prefilled in parts under load",
    needs=("--max-num-batched-tokens below the prompt's length",),
)
def chunk_edge_mask(lab: Lab) -> None:
    def start(meta: AttentionMetadata, index: int) -> int:
        return meta.seq_lens_list[index] - meta.query_lens[index]

    def mask(meta: AttentionMetadata, index: int) -> Mask:
        end = start(meta, index)
        return lambda rows, columns: (columns <= rows) & ((columns < end - meta.block_size) | (columns >= end))

    with_own_mask(lab, lambda meta, index: meta.query_lens[index] > 1 and start(meta, index) > 0, mask)


@fault(
    "F20",
    "the softmax scale is 2 % too large",
    source="a constant of the kernel; no single report chosen",
    trigger="any request",
    seen_with={"model": "smollm2"},
    factor=1.02,
)
def softmax_scale(lab: Lab) -> None:
    def make(forward: Attended) -> Attended:
        def faulty(*tensors: Any, scale: float, **settings: Any) -> Tensor:
            return forward(*tensors, scale=scale * (lab.number("factor") if lab.fires() else 1.0), **settings)

        return faulty

    on_attention(lab, make)


@fault(
    "F21",
    "the sliding window is off by one",
    source="vllm-project/vllm#17398",
    trigger="a sequence longer than the window",
    seen_with={"sliding_window": 256},
    needs=("a model with a sliding window (python -m reference_engine.sentinel.export --sliding-window N)",),
    by=-1,
)
def window_off_by_one(lab: Lab) -> None:
    def make(forward: Attended) -> Attended:
        def faulty(*tensors: Any, window: int | None = None, **settings: Any) -> Tensor:
            meta: AttentionMetadata = tensors[4]
            if window is not None and meta.max_seq_len >= window and lab.fires():
                window = max(1, window + int(lab.value("by")))
            return forward(*tensors, window=window, **settings)

        return faulty

    on_attention(lab, make)


@fault(
    "F22",
    "split-k drops the last partition of long contexts",
    source="sgl-project/sglang#2465 (the stages disagree on the split)",
    trigger="a decode at a length above `above` that ends inside a partition",
    above=256,
    partition=64,
)
def split_drops_last(lab: Lab) -> None:
    def is_touched(meta: AttentionMetadata, index: int) -> bool:
        return meta.query_lens[index] == 1 and meta.seq_lens_list[index] > int(lab.value("above"))

    def mask(meta: AttentionMetadata, index: int) -> Mask:
        size = int(lab.value("partition"))
        end = (meta.seq_lens_list[index] - 1) // size * size
        return lambda rows, columns: columns < end

    with_own_mask(lab, is_touched, mask)


@fault(
    "F23",
    "padding is attended: the shorter sequences of a batch see the slot that padding points to",
    source="sgl-project/sglang#32477, #35351",
    trigger="decodes of different lengths in one step",
)
def padding_attended(lab: Lab) -> None:
    def missing(meta: AttentionMetadata, index: int) -> int:
        return meta.max_seq_len - meta.seq_lens_list[index]

    with_own_mask(
        lab,
        lambda meta, index: meta.num_seqs > 1 and meta.query_lens[index] == 1 and missing(meta, index) > 0,
        lambda meta, index: causal,
        lambda meta, index: (0,) * missing(meta, index),
    )


@fault(
    "F24",
    "rows are swapped when a batch is compacted",
    source="vllm-project/vllm#43894, #48419",
    trigger="a request ends while at least two others go on",
)
def rows_swapped(lab: Lab) -> None:
    before: list[int] = []

    def change(plan: StepPlan, logits: Any) -> Any:
        rows = [part.seq_id for part in plan.seqs if part.num_samples]
        shrunk = bool(set(before) - set(rows)) and len(rows) > 1
        before[:] = rows
        if not shrunk or not lab.fires():
            return logits
        order = [1, 0, *range(2, len(rows))]
        return replace(logits, sampled=logits.sampled[order])

    on_logits(lab, change)


@fault(
    "F25",
    "logits are rounded to `mantissa` bits",
    source="logits computed in the weights' type; found by arXiv 2511.20621's method",
    trigger="any request",
    mantissa=4,
)
def coarse_logits(lab: Lab) -> None:
    def coarse(values: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(values)
        steps = 2.0 ** int(lab.value("mantissa"))
        return torch.ldexp((mantissa * steps).round() / steps, exponent)

    def change(plan: StepPlan, logits: Any) -> Any:
        if not lab.fires():
            return logits
        prompt = {seq_id: coarse(rows) for seq_id, rows in logits.prompt.items()}
        return replace(logits, sampled=coarse(logits.sampled), prompt=prompt)

    on_logits(lab, change)


@fault(
    "F26",
    "one row's NaN spreads to the whole batch",
    source="vllm-project/vllm#47305, Dao-AILab/flash-attention#1745",
    trigger="at least two requests in a step; the first NaN is the fault's own",
    rate=0.02,
)
def nan_spreads(lab: Lab) -> None:
    def change(plan: StepPlan, logits: Any) -> Any:
        if logits.sampled.shape[0] < 2 or not lab.fires():
            return logits
        return replace(logits, sampled=torch.full_like(logits.sampled, float("nan")))

    on_logits(lab, change)
