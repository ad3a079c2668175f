"""Whole decode steps of a random-weight model, against the time that its weights and K/V need to cross the memory bus once."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import torch
from random_model import make_runner
from torch.profiler import ProfilerActivity, profile

from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.config import CacheConfig
from reference_engine.graphs import GraphRunner
from reference_engine.models.llama import LlamaModel
from reference_engine.plan import ScheduledSeq, StepPlan
from reference_engine.runner import ModelRunner

PAGE = 16


def decode_plan(batch: int, seq_len: int, vocab: int, num_blocks: int, seed: int) -> StepPlan:
    """``batch`` sequences that compute position ``seq_len - 1``, over shuffled blocks."""
    rng = random.Random(seed)
    per_seq = -(-seq_len // PAGE)
    blocks = rng.sample(range(num_blocks), batch * per_seq)
    return StepPlan(
        0,
        tuple(
            ScheduledSeq(i, seq_len - 1, (rng.randrange(vocab),), tuple(blocks[i * per_seq : (i + 1) * per_seq]), 1)
            for i in range(batch)
        ),
    )


def step_floor_bytes(model: LlamaModel, batch: int, seq_len: int) -> tuple[int, int]:
    """Bytes of all weights and K/V, and the fewest that a step must read: it reads only rows of the embedding table."""
    c = model.config
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    block = c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size + 2)
    weights = c.num_layers * block + c.hidden_size + c.vocab_size * c.hidden_size
    size = model.dtype.itemsize
    read = weights * size + batch * seq_len * c.kv_bytes_per_token(size)
    table = 0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size * size
    return read + table, read + batch * c.hidden_size * size


def fill_pool(runner: ModelRunner) -> None:
    """Random K/V everywhere, so that no number is timed on zeros."""
    for layer in runner.layers:
        layer.key.normal_()
        layer.value.normal_()


def time_steps(runner: ModelRunner, plan: StepPlan, repeats: int) -> dict[str, float]:
    """Median ms of ``execute`` by the wall clock, and of the device's part by events."""
    for _ in range(3):
        runner.execute(plan)
    wall, device = [], []
    for _ in range(repeats):
        if runner.device.type == "cuda":
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start = time.perf_counter()
            before.record()
            runner.execute(plan)
            after.record()
            torch.cuda.synchronize()
            wall.append((time.perf_counter() - start) * 1e3)
            device.append(before.elapsed_time(after))
        else:
            start = time.perf_counter()
            runner.execute(plan)
            wall.append((time.perf_counter() - start) * 1e3)
    return {"wall_ms": statistics.median(wall), "device_ms": statistics.median(device or wall)}


def measure_steps(
    model: LlamaModel,
    shapes: list[tuple[int, int]],
    copy_bytes_per_s: float | None,
    *,
    deterministic: bool = False,
    graphs: bool = True,
    repeats: int = 20,
) -> list[dict[str, Any]]:
    """One row a (batch, seq_len).  The pool holds exactly the largest shape."""
    device = model.device
    blocks = max(batch * -(-seq_len // PAGE) for batch, seq_len in shapes) + 1
    backend = TritonPagedAttention(device, deterministic=deterministic)
    longest = max(seq_len for _, seq_len in shapes) + 1
    runner = make_runner(
        model,
        backend,
        CacheConfig(num_blocks=blocks, block_size=PAGE),
        graphs=max(batch for batch, _ in shapes) if graphs else 0,
        max_model_len=longest,
    )
    fill_pool(runner)
    rows = []
    for batch, seq_len in shapes:
        plan = decode_plan(batch, seq_len, model.config.vocab_size, blocks, seed=batch)
        whole, floor = step_floor_bytes(model, batch, seq_len)
        row: dict[str, Any] = {
            "batch": batch,
            "seq_len": seq_len,
            "graphs": isinstance(runner, GraphRunner),
            "deterministic": deterministic,
            "weight_and_kv_bytes": whole,
            "floor_bytes": floor,
            **time_steps(runner, plan, repeats),
        }
        if copy_bytes_per_s:
            row["floor_ms"] = floor / copy_bytes_per_s * 1e3
            row["over_floor"] = row["wall_ms"] / row["floor_ms"]
            row["over_weights_and_kv"] = row["wall_ms"] / (whole / copy_bytes_per_s * 1e3)
        rows.append(row)
    return rows


def profile_steps(model: LlamaModel, shapes: list[tuple[int, int]], steps: int = 3) -> list[dict[str, Any]]:
    """Device time of every kernel of a graphed decode step, microseconds a step, largest first."""
    device = model.device
    blocks = max(batch * -(-seq_len // PAGE) for batch, seq_len in shapes) + 1
    runner = make_runner(
        model,
        TritonPagedAttention(device),
        CacheConfig(num_blocks=blocks, block_size=PAGE),
        graphs=max(batch for batch, _ in shapes),
        max_model_len=max(seq_len for _, seq_len in shapes) + 1,
    )
    fill_pool(runner)
    found = []
    for batch, seq_len in shapes:
        plan = decode_plan(batch, seq_len, model.config.vocab_size, blocks, seed=batch)
        runner.execute(plan)
        with profile(activities=[ProfilerActivity.CUDA]) as watch:
            for _ in range(steps):
                runner.execute(plan)
            torch.cuda.synchronize()
        kernels: dict[str, list[float]] = {}
        for event in watch.events() or ():
            kernels.setdefault(event.name, []).append(event.device_time)
        rows = [
            {"kernel": name[:120], "us": sum(times) / steps, "launches": len(times) / steps}
            for name, times in kernels.items()
        ]
        rows.sort(key=lambda row: -row["us"])
        found.append(
            {"batch": batch, "seq_len": seq_len, "busy_us": sum(row["us"] for row in rows), "kernels": rows[:30]}
        )
    return found
