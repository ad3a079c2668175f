"""Engines on the simulated runner, with the same tokenizer, limits and times as those of ``hash_model``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine, EngineLimits
from reference_engine.simulate.profile import Profile, load_profile
from reference_engine.simulate.runner import START, SimulatedRunner, logits_of, mix
from reference_engine.simulate.tokenizer import EOS, VOCAB, ByteTokenizer


def flat_profile(step_seconds: float = 0.0, output_mean: float = 30.0) -> Profile:
    """Every step takes the same time."""
    nothing = dict.fromkeys(
        ("per_sequence", "weights", "per_context_token", "per_token", "copy_block_token", "swap_call", "swap_token"),
        0.0,
    )
    return replace(load_profile("a100-opt-13b"), fixed=step_seconds, output_mean=output_mean, **nothing)


def next_logits(history: Sequence[int]) -> np.ndarray:
    """Logits [VOCAB] after ``history``."""
    chain = START
    for token in history:
        chain = mix(chain, token)
    return logits_of(np.array([chain], dtype=np.uint64), flat_profile().output_mean)[0]


def make_engine(
    *,
    num_blocks: int = 256,
    block_size: int = 4,
    prefix_caching: bool = True,
    step_seconds: float = 0.0,
    audit_every: int = 1,
    **scheduler: Any,
) -> tuple[Engine, SimulatedRunner]:
    """An engine on a fresh ``SimulatedRunner``; ``scheduler`` are fields of SchedulerConfig."""
    cache = CacheConfig(num_blocks=num_blocks, block_size=block_size, prefix_caching=prefix_caching)
    config = SchedulerConfig(**{"max_model_len": 512, "max_num_batched_tokens": 256, **scheduler})
    runner = SimulatedRunner(flat_profile(step_seconds), cache)
    limits = EngineLimits(vocab_size=VOCAB, eos_token_ids=(EOS,), kv_bytes_per_token=8)
    return Engine(runner, limits, config, cache, TokenTable(ByteTokenizer()), audit_every=audit_every), runner
