"""A seed gives the same tokens on a CPU and on CUDA."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch

from reference_engine.request import Request, SamplingParams, Sequence
from reference_engine.sampler import FAULT, Draw, Sampler

pytestmark = pytest.mark.gpu

EOS = (2,)


def random_draws(rng: np.random.Generator, rows: int, vocab: int) -> list[Draw]:
    draws = []
    for row in range(rows):
        params = SamplingParams(
            temperature=float(rng.choice([0.0, 0.6, 1.0, 1.7])),
            top_k=int(rng.choice([0, 0, 5, 60, 400])),
            top_p=float(rng.choice([1.0, 0.95, 0.5])),
            min_p=float(rng.choice([0.0, 0.05])),
            repetition_penalty=float(rng.choice([1.0, 1.2])),
            frequency_penalty=float(rng.choice([0.0, 0.5])),
            logit_bias=((7, 2.0),) if rng.random() < 0.3 else (),
            min_tokens=int(rng.choice([0, 30])),
            seed=int(rng.integers(2**63)),
            logprobs=int(rng.integers(4)),
        )
        tokens = rng.integers(vocab, size=24).tolist()
        request = Request(request_id=str(row), prompt=tuple(tokens[:10]), params=params)
        draws.append(Draw(row, Sequence(row, request, tokens=tokens), int(rng.integers(3))))
    return draws


@pytest.mark.parametrize("vocab", [1000, 49152, 128256])
def test_same_tokens_and_logprobs_on_both_devices(vocab: int) -> None:
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    rows = 48
    logits = torch.from_numpy(rng.normal(0, 3, (rows, vocab)).astype(np.float32))
    draws = random_draws(rng, rows, vocab)
    here = Sampler(EOS).sample(logits, draws)
    there = Sampler(EOS).sample(logits.cuda(), draws)
    # exp and the order of sums differ by rounding: a draw within about 1e-7 of a boundary may fall on its other side.
    different = sum(a != b for a, b in zip(here.tokens, there.tokens, strict=True))
    assert different <= 1
    assert FAULT not in here.tokens
    for ours, theirs, token in zip(here.logprobs, there.logprobs, there.tokens, strict=True):
        assert ours is not None
        assert theirs is not None
        if ours.token == token:
            assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-4)


def test_a_row_draws_the_same_alone_and_in_company_on_cuda() -> None:
    rng = np.random.default_rng(secrets.randbits(32))
    logits = torch.from_numpy(rng.normal(0, 3, (32, 49152)).astype(np.float32)).cuda()
    draws = random_draws(rng, 32, 49152)
    together = Sampler(EOS).sample(logits, draws).tokens
    for row, draw in enumerate(draws):
        alone = Sampler(EOS).sample(logits[row : row + 1], [Draw(0, draw.sequence, draw.index)])
        assert alone.tokens == [together[row]]
