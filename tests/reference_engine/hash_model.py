"""A model without weights: the next token's logits are a hash of the tokens found in the KV pool.

It keeps one token id per KV slot and reads a history back through the block table of the plan, so a wrong
table, a missed copy or a block given to two owners changes what it says.  Its text is printable ASCII, one byte a token.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine, EngineLimits
from reference_engine.plan import StepPlan
from reference_engine.simulate.tokenizer import BOS, EOS, NAMES, OTHER_END, VOCAB, ByteTokenizer

__all__ = ["BOS", "EOS", "NAMES", "OTHER_END", "VOCAB", "ByteTokenizer", "HashRunner", "make_engine", "next_logits"]


def next_logits(history: Sequence[int]) -> np.ndarray:
    """Logits [VOCAB] after ``history``: printable bytes likely, the end-of-sequence token now and then."""
    rng = np.random.default_rng([len(history), *history[-64:], sum(history)])
    logits = np.full(VOCAB, -30.0, dtype=np.float32)
    logits[32:127] = rng.normal(0, 2, 95)
    logits[EOS] = rng.normal(-1.5, 2)
    return logits


@dataclass
class HashLogits:
    sampled: Tensor
    prompt: dict[int, Tensor]


@dataclass
class HashRunner:
    """Runs plans on ``next_logits``.  Faults: histories starting as in ``poisoned`` give NaN; ``explode`` raises."""

    cache: CacheConfig
    step_seconds: float = 0.0
    poisoned: set[tuple[int, ...]] = field(default_factory=set)
    explode: bool = False
    steps: int = 0

    def __post_init__(self) -> None:
        self.slots = np.full((self.cache.num_blocks, self.cache.block_size), -1, dtype=np.int64)
        self.host = np.full((self.cache.num_host_blocks, self.cache.block_size), -1, dtype=np.int64)

    def execute(self, plan: StepPlan) -> HashLogits:
        self.steps += 1
        if self.step_seconds:
            time.sleep(self.step_seconds)
        if self.explode:
            raise MemoryError("out of memory, says the test")
        for copy in plan.swap_out:
            self.host[copy.target] = self.slots[copy.source]
        for copy in plan.swap_in:
            self.slots[copy.target] = self.host[copy.source]
        for copy in plan.copies:
            self.slots[copy.target] = self.slots[copy.source]
        size = self.cache.block_size
        for part in plan.seqs:
            for position, token in enumerate(part.tokens, part.start):
                self.slots[part.block_table[position // size], position % size] = token
        sampled, prompt = [], {}
        for part in plan.seqs:
            history = self.slots[list(part.block_table)].reshape(-1)[: part.seq_len].tolist()
            assert min(history) >= 0, "a slot was read that was never written"
            if part.num_samples:
                sampled.append(self._logits(history))
            if part.prompt_logprobs:
                rows = [next_logits(history[: end + 1]) for end in range(part.start, part.seq_len)]
                prompt[part.seq_id] = torch.from_numpy(np.stack(rows))
        return HashLogits(torch.from_numpy(np.stack(sampled)) if sampled else torch.empty(0, VOCAB), prompt)

    def _logits(self, history: list[int]) -> np.ndarray:
        logits = next_logits(history)
        if any(tuple(history[: len(bad)]) == bad for bad in self.poisoned):
            logits[random.randrange(VOCAB)] = np.nan
        return logits


def make_engine(
    *,
    num_blocks: int = 256,
    block_size: int = 4,
    prefix_caching: bool = True,
    step_seconds: float = 0.0,
    audit_every: int = 1,
    overlap: bool = False,
    num_host_blocks: int = 0,
    prefix_index: Any = "hash",
    **scheduler: Any,
) -> tuple[Engine, HashRunner]:
    """An engine on a fresh ``HashRunner``; ``scheduler`` are fields of SchedulerConfig."""
    cache = CacheConfig(num_blocks, block_size, prefix_caching, num_host_blocks, prefix_index)
    config = SchedulerConfig(**{"max_model_len": 512, "max_num_batched_tokens": 256, **scheduler})
    runner = HashRunner(cache, step_seconds)
    limits = EngineLimits(vocab_size=VOCAB, eos_token_ids=(EOS,), kv_bytes_per_token=8)
    return Engine(
        runner, limits, config, cache, TokenTable(ByteTokenizer()), audit_every=audit_every, overlap=overlap
    ), runner
