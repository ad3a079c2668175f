"""Eager execution of step plans: owns the KV pool and drives model and attention backend; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference_engine.attention.base import AttentionBackend, AttentionMetadata, KVCacheLayer, empty_cache_layer
from reference_engine.attention.kv_format import KVFormat, plain_format
from reference_engine.batch import StepTensors, build
from reference_engine.config import CacheConfig, ConfigError, ModelConfig
from reference_engine.models.llama import Attend, LlamaModel
from reference_engine.plan import BlockCopy, StepPlan
from reference_engine.swap_copies import HostPool


@dataclass(frozen=True, slots=True)
class StepLogits:
    """What a step computed, fp32 on the runner's device.

    sampled   [S, V]: the last row of every plan sequence with ``num_samples > 0``, in plan order
    prompt    seq_id -> [query_len, V] for sequences with ``prompt_logprobs``; row i scores the token after the
    slice's i-th
    """

    sampled: Tensor
    prompt: dict[int, Tensor]


def block_bytes(model_config: ModelConfig, block_size: int, kv: KVFormat | torch.dtype) -> int:
    """Bytes of K and V that one block of ``block_size`` slots occupies over all layers."""
    kv_format = kv if isinstance(kv, KVFormat) else plain_format(kv)
    return block_size * kv_format.bytes_per_token(model_config)


def num_blocks_for(memory_bytes: int, model_config: ModelConfig, block_size: int, kv: KVFormat | torch.dtype) -> int:
    """How many blocks fit in ``memory_bytes``.  Raises ConfigError when not even one does."""
    one = block_bytes(model_config, block_size, kv)
    if memory_bytes < one:
        raise ConfigError(
            f"{memory_bytes} bytes of KV memory hold no block of {block_size} tokens ({one} bytes); raise --kv-memory"
        )
    return memory_bytes // one


class ModelRunner:
    """Executes plans against one KV pool.  Not thread-safe; one step at a time."""

    def __init__(
        self,
        model: LlamaModel,
        model_config: ModelConfig,
        cache: CacheConfig,
        backend: AttentionBackend,
        device: torch.device,
        dtype: torch.dtype,
        *,
        kv_format: KVFormat | None = None,
        kv_scales: list[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """``kv_format``: how K/V are stored; None = in ``dtype``, the model's.  ``kv_scales``: of K and V per layer,
        for a format with a scale a head.
        """
        self.model = model
        self.model_config = model_config
        self.cache = cache
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.kv_format = kv_format or plain_format(dtype)
        self.kv_bytes = cache.num_blocks * block_bytes(model_config, cache.block_size, self.kv_format)
        self._scale = model_config.head_dim**-0.5
        shape = (cache.num_blocks, cache.block_size, model_config.num_kv_heads, model_config.head_dim)
        try:
            self.layers = [
                empty_cache_layer(*shape, self.kv_format.dtype, device, slot_scales=self.kv_format.scales == "slot")
                for _ in range(model_config.num_layers)
            ]
        except (RuntimeError, MemoryError):
            raise ConfigError(
                f"cannot allocate {self.kv_bytes / 2**30:.2f} GiB of KV memory on {device}; lower --kv-memory"
            ) from None
        if self.kv_format.scales == "head":
            scales = kv_scales or [(torch.ones(shape[2], device=device),) * 2] * model_config.num_layers
            self.layers = [
                replace(layer, key_scale=key, value_scale=value)
                for layer, (key, value) in zip(self.layers, scales, strict=True)
            ]
        self.host = HostPool(self.layers, cache.num_host_blocks) if cache.num_host_blocks else None

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepLogits:
        """Apply the plan's swaps and block copies, compute its rows, return the logits that it needs."""
        self._move_blocks(plan)
        if plan.is_empty:
            return StepLogits(torch.empty((0, self.model_config.vocab_size), device=self.device), {})
        step = build(plan, self.cache.block_size, self.device)
        logits = self._forward(step)
        return StepLogits(
            sampled=logits[: step.num_sampled],
            prompt={seq_id: logits[begin:end] for seq_id, (begin, end) in step.prompt_slices.items()},
        )

    @torch.inference_mode()
    def poison(self) -> None:
        """Fill the whole pool with NaN: in tests, any read of a slot that was never written shows in the logits."""
        for layer in self.layers:
            layer.fill(float("nan"))

    def _forward(self, step: StepTensors) -> Tensor:
        return self.model.forward(step.input_ids, step.positions, self._attend(step.meta), step.logit_rows)

    def _attend(self, meta: AttentionMetadata) -> Attend:
        """What the model calls to attend: rows placed by ``meta`` over this runner's pool."""

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self.backend.forward(
                query,
                key,
                value,
                self.layers[layer],
                meta,
                scale=self._scale,
                window=self.model_config.window(layer),
            )

        return attend

    def _move_blocks(self, plan: StepPlan) -> None:
        """All that happens to whole blocks before the step computes, in the order that the plan promises."""
        if self.host is not None:
            self.host.swap_out(plan.swap_out)
            self.host.swap_in(plan.swap_in)
        self._copy_blocks(plan.copies)

    def _copy_blocks(self, copies: tuple[BlockCopy, ...]) -> None:
        if not copies:
            return
        sources = torch.tensor([c.source for c in copies], device=self.device)
        targets = torch.tensor([c.target for c in copies], device=self.device)
        for layer in self.layers:
            _copy_within(layer, sources, targets)


def _copy_within(layer: KVCacheLayer, sources: Tensor, targets: Tensor) -> None:
    for pool in layer.tensors():
        rows = pool.view(torch.uint8) if pool.dtype.itemsize == 1 else pool
        rows.index_copy_(0, targets, rows.index_select(0, sources))
