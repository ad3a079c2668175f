"""The production launches that are compiled ahead of time: made by the functions that production calls.

Shapes are Llama-3.1-8B's (32 query heads, 8 K/V heads) unless the name says otherwise; tensors are small and never
read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from reference_engine.kernels.copy_blocks import copy_blocks_launch
from reference_engine.kernels.launch_plan import Device, LaunchPlan, choose_launch
from reference_engine.kernels.launcher import Launch
from reference_engine.kernels.linear import linear_launch
from reference_engine.kernels.merge_splits import merge_splits_launch
from reference_engine.kernels.paged_attention import paged_attention_launch
from reference_engine.kernels.rms_norm import head_norm_launch, rms_norm_launch
from reference_engine.kernels.rope import rope_launch, rope_store_kv_launch
from reference_engine.kernels.silu_mul import silu_mul_launch
from reference_engine.kernels.store_kv import store_kv_launch

HEADS, KV_HEADS, PAGE = 32, 8, 16

# One part of each architecture: its name (for the tuned table), multiprocessors, capability as choose_launch sees it.
PARTS = {
    "sm_80": Device("NVIDIA A100-SXM4-80GB", 108, (8, 0)),
    "sm_86": Device("NVIDIA A10", 72, (8, 6)),
    "sm_89": Device("NVIDIA L40S", 142, (8, 9)),
    "sm_90": Device("NVIDIA H100 80GB HBM3", 132, (9, 0)),
    "sm_100": Device("NVIDIA B200", 148, (10, 0)),
    "gfx942": Device("AMD Instinct MI300X", 304, (8, 0)),
}

Configuration = Callable[[Device], Launch]


def plan_of(
    device: Device,
    batch: int,
    query_len: int,
    head_dim: int,
    dtype: torch.dtype,
    cache: torch.dtype,
    deterministic: bool,
) -> LaunchPlan:
    return choose_launch(
        num_seqs=batch,
        max_query_len=query_len,
        max_seq_len=8192,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=head_dim,
        device=device,
        query_bytes=dtype.itemsize,
        cache_bytes=cache.itemsize,
        deterministic=deterministic,
    )


def attention(
    batch: int,
    query_len: int,
    *,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    cache: torch.dtype | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    deterministic: bool = False,
) -> Configuration:
    """Paged attention; a small batch of decodes is split, a large one is not."""
    cache_dtype = cache or dtype

    def build(device: Device) -> Launch:
        plan = plan_of(device, batch, query_len, head_dim, dtype, cache_dtype, deterministic)
        tokens = 4 * query_len
        query = torch.empty(tokens, HEADS, head_dim, dtype=dtype)
        pool = torch.empty(4, PAGE, KV_HEADS, head_dim, dtype=cache_dtype)
        parts = 4 * HEADS
        partials = (torch.empty(parts, head_dim), torch.empty(parts), torch.empty(parts)) if plan.splits else None
        scale = torch.empty(KV_HEADS) if cache is not None else None
        return paged_attention_launch(
            torch.empty_like(query),
            partials,
            query,
            pool,
            pool,
            torch.empty(4, 8, dtype=torch.int32),
            torch.empty(4, dtype=torch.int32),
            torch.empty(5, dtype=torch.int32),
            plan,
            scale=head_dim**-0.5,
            window=window,
            soft_cap=soft_cap,
            key_scale=scale,
            value_scale=scale,
        )

    return build


def merge(*, deterministic: bool) -> Configuration:
    def build(device: Device) -> Launch:
        plan = plan_of(device, 1, 1, 128, torch.bfloat16, torch.bfloat16, deterministic)
        parts = HEADS * plan.num_splits
        return merge_splits_launch(
            torch.empty(1, HEADS, 128, dtype=torch.bfloat16),
            (torch.empty(parts, 128), torch.empty(parts), torch.empty(parts)),
            torch.empty(1, dtype=torch.int32),
            torch.empty(2, dtype=torch.int32),
            KV_HEADS,
            plan,
        )

    return build


def half(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16)


def simple(launch: Callable[[], Launch]) -> Configuration:
    return lambda device: launch()


SLOTS = torch.empty(4, dtype=torch.int64)

CONFIGURATIONS: dict[str, Configuration] = {
    "decode": attention(64, 1),
    "decode split": attention(1, 1),
    "decode fp16": attention(64, 1, dtype=torch.float16),
    "decode d64": attention(64, 1, head_dim=64),
    "decode d80": attention(64, 1, head_dim=80),
    "decode d256": attention(64, 1, head_dim=256),
    "decode window": attention(64, 1, window=4096),
    "decode soft cap": attention(64, 1, soft_cap=50.0),
    "decode fp8 cache": attention(64, 1, cache=torch.float8_e4m3fn),
    "decode fp32": attention(64, 1, dtype=torch.float32),
    "decode deterministic": attention(64, 1, deterministic=True),
    "decode deterministic split": attention(1, 1, deterministic=True),
    "prefill": attention(4, 2048),
    "prefill d64": attention(4, 2048, head_dim=64),
    "prefill d256": attention(4, 2048, head_dim=256),
    "prefill window": attention(4, 2048, window=4096),
    "prefill fp32": attention(4, 2048, dtype=torch.float32),
    "prefill deterministic": attention(4, 2048, deterministic=True),
    "merge": merge(deterministic=False),
    "merge deterministic": merge(deterministic=True),
    "store_kv": simple(
        lambda: store_kv_launch(half(4, 8, 128), half(4, 8, 128), half(4, 16, 8, 128), half(4, 16, 8, 128), SLOTS)
    ),
    "rope": simple(lambda: rope_launch(half(4, 40, 128), half(4, 128), half(4, 128))),
    "rope_store_kv": simple(
        lambda: rope_store_kv_launch(
            half(4, 48 * 128), 32, 8, half(4, 128), half(4, 128), half(4, 16, 8, 128), half(4, 16, 8, 128), SLOTS
        )
    ),
    "rms_norm": simple(lambda: rms_norm_launch(half(4, 4096), half(4, 4096), half(4, 4096), half(4096), 1e-5)),
    "head_norm": simple(lambda: head_norm_launch(half(4, 32, 128), half(4, 32, 128), half(128), 1e-5)),
    "silu_mul": simple(lambda: silu_mul_launch(half(4, 14336), half(4, 28672))),
    "copy_blocks": simple(
        lambda: copy_blocks_launch(half(4, 16, 8, 128), half(4, 16, 8, 128), torch.empty(2, 2, dtype=torch.int64))
    ),
    "linear": simple(lambda: linear_launch(half(4, 4096), half(4, 4096), half(4096, 4096), None)),
}

# 8-bit floats are native from sm_89 on; CDNA3's e4m3 is another format.
UNSUPPORTED = {("sm_80", "decode fp8 cache"), ("sm_86", "decode fp8 cache"), ("gfx942", "decode fp8 cache")}


def supported(arch: str) -> list[str]:
    """Names of the configurations that ``arch`` must compile."""
    return [name for name in CONFIGURATIONS if (arch, name) not in UNSUPPORTED]
