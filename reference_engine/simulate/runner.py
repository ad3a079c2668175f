"""A runner without a model: it takes as long as a profile says, and keeps one 64-bit number a KV slot.

::

    slot of position p   chain(p) = mix(chain(p - 1), token(p))     read and written through the plan's block tables
    logits after p       a hash of chain(p): printable bytes, and the end of the answer once in ``output_mean`` tokens

So an answer depends on exactly the tokens before it, in order, as a real model's does: a wrong table, a missed copy or a
block with two owners changes the text.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reference_engine.config import CacheConfig
from reference_engine.plan import StepPlan
from reference_engine.simulate.profile import Profile
from reference_engine.simulate.tokenizer import EOS, VOCAB

logger = logging.getLogger(__name__)

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15  # the multiplier of SplitMix64's sequence
START = 0x2545F4914F6CDD1D  # chain before the first position
_FIRST, _LAST = 32, 127  # printable ASCII
# Between two steps the engine books tokens and answers clients; up to this much of it counts as part of the next step.
_SLACK = 0.005  # s


def mix(chain: int, token: int) -> int:
    """The next chain value: SplitMix64's finaliser over both."""
    value = (chain ^ (token + 1) * _ODD) & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def logits_of(chains: np.ndarray, output_mean: float) -> np.ndarray:
    """float32 [len(chains), VOCAB] from uint64 chain values."""
    with np.errstate(over="ignore"):
        columns = np.arange(_FIRST, _LAST + 1, dtype=np.uint64) * np.uint64(_ODD)
        value = chains[:, None] + columns[None, :]  # the last column decides about the end
        value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        value ^= value >> np.uint64(31)
    uniform = value.astype(np.float64) * 2.0**-64
    logits = np.full((len(chains), VOCAB), -30.0, dtype=np.float32)
    logits[:, _FIRST:_LAST] = 8.0 * uniform[:, :-1] - 4.0
    logits[:, EOS] = np.where(uniform[:, -1] * output_mean < 1.0, 30.0, -30.0)
    return logits


@dataclass(frozen=True, slots=True)
class SimulatedLogits:
    """As ``reference_engine.plan_log.StepLogits``."""

    sampled: Tensor
    prompt: dict[int, Tensor]


class SimulatedRunner:
    """Executes plans in the profile's time.  ``behind`` is the largest delay so far of a step that the host was too slow
    for [s].
    """

    def __init__(self, profile: Profile, cache: CacheConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        self.profile = profile
        self.behind = 0.0
        self._cache = cache
        self._sleep = sleep
        self._due = 0.0  # when the last step ended, on the monotonic clock
        self._chains = np.zeros(cache.num_slots, dtype=np.uint64)

    def execute(self, plan: StepPlan) -> SimulatedLogits:
        began = time.monotonic()
        size = self._cache.block_size
        blocks = self._chains.reshape(-1, size)
        for copy in plan.copies:
            blocks[copy.target] = blocks[copy.source]
        sampled: list[int] = []
        prompt: dict[int, Tensor] = {}
        for part in plan.seqs:
            values = self._advance(part.start, part.tokens, part.block_table)
            if part.num_samples:
                sampled.append(values[-1])
            if part.prompt_logprobs:
                prompt[part.seq_id] = self._logits(values)
        logits = SimulatedLogits(self._logits(sampled), prompt)
        self._wait(began, self.profile.step_seconds(plan, size))
        return logits

    def _advance(self, start: int, tokens: tuple[int, ...], table: tuple[int, ...]) -> list[int]:
        """Write the chain values of the tokens from position ``start`` on; returns them."""
        size, chains = self._cache.block_size, self._chains
        chain = START
        if start:
            chain = int(chains[table[(start - 1) // size] * size + (start - 1) % size])
        values = []
        for position, token in enumerate(tokens, start):
            chain = mix(chain, token)
            chains[table[position // size] * size + position % size] = chain
            values.append(chain)
        return values

    def _logits(self, values: list[int]) -> Tensor:
        return torch.from_numpy(logits_of(np.array(values, dtype=np.uint64), self.profile.output_mean))

    def _wait(self, began: float, seconds: float) -> None:
        self._due = max(self._due, began - _SLACK) + seconds
        left = self._due - time.monotonic()
        if left > 0:
            self._sleep(left)
        elif -left > self.behind + 0.1:
            self.behind = -left
            logger.warning("this machine is too slow for the profile: a step ended %.1f s late", self.behind)
