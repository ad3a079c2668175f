"""Defaults that depend on the device."""

from __future__ import annotations

import pytest
import torch

from reference_engine.config import CacheConfig, ModelConfig, SchedulerConfig
from reference_engine.server.build import DEFAULT_CPU_BUDGET, DEFAULT_CUDA_BUDGET, _scheduler_config
from reference_engine.server.options import ServerOptions

MODEL = ModelConfig(
    family="llama",
    vocab_size=32,
    hidden_size=8,
    intermediate_size=8,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
)


def config(device: str, **options: int) -> SchedulerConfig:
    cache = CacheConfig(num_blocks=8, block_size=16)
    return _scheduler_config(ServerOptions(**options), MODEL, cache, torch.device(device))


@pytest.mark.parametrize(("device", "expected"), [("cpu", DEFAULT_CPU_BUDGET), ("cuda", DEFAULT_CUDA_BUDGET)])
def test_the_token_budget_of_a_step_depends_on_the_device_unless_given(device: str, expected: int) -> None:
    assert config(device).max_num_batched_tokens == expected
    assert config(device, max_num_batched_tokens=77).max_num_batched_tokens == 77
