"""The bounds of a precision lie above its own rounding, and below that of a coarser one."""

from __future__ import annotations

import random

import pytest
import torch

from harness.conformance.cases.logprobs import UNLIKELY
from harness.conformance.limits import BF16
from harness.conformance.sentinel_asks import SentinelPrompts
from harness.conformance.stats import k3
from reference_engine.attention import make_backend
from reference_engine.config import CacheConfig
from reference_engine.models.loader import load_model
from reference_engine.plan import ScheduledSeq, StepPlan
from reference_engine.runner import ModelRunner
from reference_engine.sentinel import CHECKPOINT

CPU, BLOCKS, BLOCK = torch.device("cpu"), 32, 16


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    loaded = load_model(str(CHECKPOINT), dtype=torch.float32, device=CPU)
    cache = CacheConfig(num_blocks=BLOCKS, block_size=BLOCK)
    return ModelRunner(loaded.model, loaded.config, cache, make_backend("gather", CPU), CPU, torch.float32)


def rounded(logits: torch.Tensor, bits: int) -> torch.Tensor:
    """To ``bits`` bits of significand; bfloat16 has 8."""
    mantissa, exponent = torch.frexp(logits)
    return torch.ldexp((mantissa * 2**bits).round(), exponent - bits)


def divergence(runner: ModelRunner, seed: int, bits: int) -> float:
    """k3 over the prompts of LGP-04 between the sentinel's exact logits and the same ones rounded."""
    rng, prompts = random.Random(f"{seed} LGP-04"), SentinelPrompts([], [], takes_ids=True)
    before: list[float] = []
    after: list[float] = []
    for number in range(10):
        ids = prompts.uncertain(rng) if number % 2 else prompts.make_prompt(rng, 30 + 40 * number)
        assert isinstance(ids, list)
        part = ScheduledSeq(0, 0, tuple(ids), tuple(range(BLOCKS)), 1, prompt_logprobs=True)
        logits = runner.execute(StepPlan(0, (part,))).prompt[0][: len(ids) - 1].double()
        following = torch.tensor(ids[1:])[:, None]
        exact, coarse = (some.log_softmax(-1).gather(1, following)[:, 0] for some in (logits, rounded(logits, bits)))
        likely = exact > UNLIKELY
        before += exact[likely].tolist()
        after += coarse[likely].tolist()
    return k3(after, before)


@pytest.mark.parametrize("seed", range(8))
def test_rounding_to_bf16_is_allowed_and_to_two_bits_less_is_not(runner: ModelRunner, seed: int) -> None:
    assert divergence(runner, seed, 8) < BF16.kl / 2
    assert divergence(runner, seed, 6) > BF16.kl
