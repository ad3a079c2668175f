"""Attention through the Triton kernels: store the new K/V, attend, merge.  No host sync, no allocation but the output.

Runs on a CUDA (or ROCm) device; on CPU tensors only inside Triton's interpreter (``TRITON_INTERPRET=1``), which is
how the tests prove it.  Under a CUDA graph the caller passes the ladder's batch size and the longest length the graph
may meet as ``meta.num_seqs`` and ``meta.max_seq_len``; the plan, hence every launch, then depends on nothing that
changes between replays.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from reference_engine.attention.base import AttentionMetadata, KVCacheLayer
from reference_engine.config import ConfigError
from reference_engine.kernels.launch_plan import Device, LaunchPlan, choose_launch
from reference_engine.kernels.merge_splits import merge_splits_launch
from reference_engine.kernels.paged_attention import paged_attention_launch
from reference_engine.kernels.rope import rope_store_kv_launch
from reference_engine.kernels.store_kv import store_kv_launch

INTERPRETER = Device(name="interpreter", sm_count=4, capability=(9, 0))


def describe_device(device: torch.device) -> Device:
    """The numbers ``choose_launch`` needs of ``device``.  Raises ConfigError where Triton cannot run."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = (8, 0) if torch.version.hip else (properties.major, properties.minor)
        return Device(properties.name, properties.multi_processor_count, capability)
    if os.environ.get("TRITON_INTERPRET") == "1":
        return INTERPRETER
    raise ConfigError("attention 'triton' needs a CUDA device; choose --attention gather on a CPU")


class TritonPagedAttention:
    """:class:`~reference_engine.attention.base.AttentionBackend` over the Triton kernels.

    ``deterministic``: a row's result has the same bits whatever else is in the batch and however its sequence was
    chunked.
    """

    name = "triton"

    def __init__(self, device: torch.device, *, deterministic: bool = False) -> None:
        self.device = describe_device(device)
        self.deterministic = deterministic
        self._scratch = torch.empty(0, dtype=torch.float32, device=device)
        self._outgrown: list[Tensor] = []

    def plan(self, query: Tensor, cache: KVCacheLayer, meta: AttentionMetadata) -> LaunchPlan:
        """The launch plan ``forward`` uses; the same numbers give the same plan."""
        return choose_launch(
            num_seqs=meta.num_seqs,
            max_query_len=meta.max_query_len,
            max_seq_len=meta.max_seq_len,
            num_heads=query.shape[1],
            num_kv_heads=cache.key.shape[2],
            head_dim=query.shape[2],
            device=self.device,
            query_bytes=query.element_size(),
            cache_bytes=cache.key.element_size(),
            deterministic=self.deterministic,
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: KVCacheLayer,
        meta: AttentionMetadata,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        """``[T, Hq, D]``; see :class:`~reference_engine.attention.base.AttentionBackend`."""
        if query.shape[0] == 0:
            return torch.empty_like(query)
        store_kv_launch(
            rows(key),
            rows(value),
            cache.key,
            cache.value,
            meta.slot_mapping,
            key_scale=cache.key_scale,
            value_scale=cache.value_scale,
        ).run()
        return self.attend(query, cache, meta, scale=scale, window=window, soft_cap=soft_cap)

    def rotate_store_attend(
        self,
        qkv: Tensor,
        num_heads: int,
        cos: Tensor,
        sin: Tensor,
        cache: KVCacheLayer,
        meta: AttentionMetadata,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        """``forward`` of a whole projection ``qkv [T, Hq + 2 Hkv, D]`` that RoPE has not been applied to yet.

        One launch rotates the queries in place, rotates the keys into the cache and stores the values.
        """
        num_kv_heads = (qkv.shape[1] - num_heads) // 2
        if qkv.shape[0] == 0:
            return torch.empty_like(qkv[:, :num_heads])
        rope_store_kv_launch(
            qkv,
            num_heads,
            num_kv_heads,
            cos,
            sin,
            cache.key,
            cache.value,
            meta.slot_mapping,
            key_scale=cache.key_scale,
            value_scale=cache.value_scale,
        ).run()
        return self.attend(qkv[:, :num_heads], cache, meta, scale=scale, window=window, soft_cap=soft_cap)

    def attend(
        self,
        query: Tensor,
        cache: KVCacheLayer,
        meta: AttentionMetadata,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
        plan: LaunchPlan | None = None,
    ) -> Tensor:
        """Attention alone, over K/V that are in the cache already."""
        plan = plan or self.plan(query, cache, meta)
        query = rows(query)
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        partials = self._partials(query, plan) if plan.splits else None
        paged_attention_launch(
            out,
            partials,
            query,
            cache.key,
            cache.value,
            meta.block_tables,
            meta.seq_lens,
            meta.query_start_loc,
            plan,
            scale=scale,
            window=window,
            soft_cap=soft_cap,
            key_scale=cache.key_scale,
            value_scale=cache.value_scale,
        ).run()
        if partials is not None:
            merge_splits_launch(
                out,
                partials,
                meta.seq_lens,
                meta.query_start_loc,
                cache.key.shape[2],
                plan,
                value_scale=cache.value_scale,
            ).run()
        return out

    def _partials(self, query: Tensor, plan: LaunchPlan) -> tuple[Tensor, Tensor, Tensor]:
        """Views of one buffer that layers and steps share, in stream order."""
        num_tokens, num_heads, head_dim = query.shape
        parts = -(-num_tokens * num_heads * plan.num_splits // 4) * 4  # every view starts on 16 bytes
        needed = parts * (head_dim + 2)
        if self._scratch.numel() < needed:
            # Captured CUDA graphs go on writing to the buffer they saw, so an outgrown one is kept.
            self._outgrown.append(self._scratch)
            self._scratch = torch.empty(
                max(needed, 2 * self._scratch.numel()), dtype=torch.float32, device=query.device
            )
        acc, rest = self._scratch[: parts * head_dim], self._scratch[parts * head_dim :]
        return acc.view(parts, head_dim), rest[:parts], rest[parts : 2 * parts]


def rows(tensor: Tensor) -> Tensor:
    """``tensor [T, H, D]`` with heads contiguous inside a row (the kernels' layout); copied only when it is not."""
    contiguous_heads = tensor.stride(2) == 1 and (tensor.stride(1) == tensor.shape[2] or tensor.shape[1] == 1)
    return tensor if contiguous_heads else tensor.contiguous()
