"""SmolLM2 through scheduler and runner against golden tokens that transformers generated from the same weights.

Positions whose two best reference logits differ by less than 0.01 are judged by the logits; everywhere the reference's
two best logits must be met within 1e-3.  Each sequence then goes on with the reference token, so one near-tie cannot hide
what follows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from reference_engine.attention import make_backend
from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.models.errors import ModelLoadError
from reference_engine.models.loader import LoadedModel, load_model
from reference_engine.request import FinishReason, Request, SamplingParams
from reference_engine.runner import ModelRunner
from reference_engine.scheduler import Scheduler, SchedulerStats

GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2_greedy.json"
CPU = torch.device("cpu")
NEAR_TIE = 0.01
LOGIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt and the reference's greedy continuation: ids, runners-up, and the logits of both at every position."""

    prompt: tuple[int, ...]
    tokens: list[int]
    second: list[int]
    logits: list[list[float]]

    def check(self, index: int, row: torch.Tensor) -> float:
        """Judge the logits for output position ``index``; returns the absolute error of the two reference logits."""
        best, second = self.tokens[index], self.second[index]
        error = float((row[[best, second]] - torch.tensor(self.logits[index])).abs().max())
        assert error <= LOGIT_TOLERANCE, f"output {index}: logits differ by {error:.2e}"
        gap = self.logits[index][0] - self.logits[index][1]
        chosen = int(row.argmax())
        allowed = (best,) if gap >= NEAR_TIE else (best, second)
        assert chosen in allowed, f"output {index}: {chosen} instead of {best}, reference gap {gap:.4f}"
        return error


@cache
def golden() -> list[Case]:
    raw = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    return [Case(tuple(c["prompt"]), c["tokens"], c["second"], c["logits"]) for c in raw]


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    torch.set_num_threads(1)
    try:
        return load_model("smollm2", dtype=torch.float32, device=CPU)
    except ModelLoadError as error:
        pytest.skip(f"needs the embedded model: {error}")


def run(
    loaded: LoadedModel,
    cases: list[Case],
    *,
    new_tokens: int,
    block_size: int,
    budget: int,
    at_once: int,
    prefix_caching: bool,
    num_blocks: int | None = None,
) -> SchedulerStats:
    """Drive all cases through one engine and judge every output; audits the scheduler after each step."""
    longest = max(len(c.prompt) for c in cases) + new_tokens
    cache_config = CacheConfig(num_blocks or at_once * (-(-longest // block_size) + 1), block_size, prefix_caching)
    limits = SchedulerConfig(max_model_len=longest, max_num_seqs=at_once, max_num_batched_tokens=budget, watermark=0.0)
    scheduler = Scheduler(limits, cache_config)
    runner = ModelRunner(loaded.model, loaded.config, cache_config, make_backend("gather", CPU), CPU, torch.float32)
    runner.poison()
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    owners = {scheduler.add(Request(f"r{i}", c.prompt, params)).seq_id: c for i, c in enumerate(cases)}
    judged = 0
    while scheduler.has_work:
        plan = scheduler.schedule()
        assert not plan.is_empty
        sampled = runner.execute(plan).sampled
        drawn: dict[int, list[int]] = {}
        rows = iter(sampled)
        for part in plan.seqs:
            if part.num_samples:
                case = owners[part.seq_id]
                index = part.seq_len - len(case.prompt)
                case.check(index, next(rows))
                drawn[part.seq_id] = [case.tokens[index]]
                judged += 1
        for token in scheduler.commit(plan, drawn):
            if token.sequence.num_generated == new_tokens:
                scheduler.finish(token.sequence, FinishReason.LENGTH)
        scheduler.audit()
    assert judged == len(cases) * new_tokens, "every output is drawn exactly once, also after a preemption"
    return scheduler.stats()


def test_the_golden_file_is_what_it_says() -> None:
    from reference_engine.models.embedded import SHA256

    assert json.loads(GOLDEN.read_text())["about"]["model_sha256"] == SHA256
    assert len(golden()) == 32
    assert all(len(c.tokens) == len(c.second) == len(c.logits) == 64 for c in golden())
    assert all(a >= b for c in golden() for a, b in c.logits)
    assert len({len(c.prompt) for c in golden()}) > 10, "many prompt lengths"


def test_the_judge_can_fail() -> None:
    case = Case((1,), [4], [2], [[3.0, 1.0]])
    row = torch.zeros(6)
    row[4], row[2] = 3.0, 1.0
    case.check(0, row)
    row[4] = 3.01
    with pytest.raises(AssertionError, match="differ by"):
        case.check(0, row)
    row[4], row[5] = 3.0, 9.0
    with pytest.raises(AssertionError, match="5 instead of 4"):
        case.check(0, row)


def test_together_with_prefix_cache(smollm2: LoadedModel) -> None:
    stats = run(smollm2, golden()[:16], new_tokens=20, block_size=16, budget=256, at_once=16, prefix_caching=True)
    assert stats.preemptions == 0


def test_odd_blocks_and_small_chunks(smollm2: LoadedModel) -> None:
    run(smollm2, golden()[10:32:3], new_tokens=12, block_size=7, budget=16, at_once=5, prefix_caching=False)


def test_under_preemption(smollm2: LoadedModel) -> None:
    cases = golden()[12:20]
    held = sum(len(c.prompt) + 16 for c in cases)
    stats = run(
        smollm2,
        cases,
        new_tokens=16,
        block_size=4,
        budget=64,
        at_once=8,
        prefix_caching=True,
        num_blocks=held // 4 // 2,
    )
    assert stats.preemptions > 0, "the pool was meant to be too small"


@pytest.mark.slow
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize(
    ("block_size", "budget", "at_once"),
    [
        (1, 2048, 16),
        (1, 64, 4),
        (7, 16, 8),
        (7, 512, 16),
        (16, 16, 16),
        (16, 128, 1),
        (16, 2048, 2),
        (16, 2048, 16),
        (64, 32, 16),
        (64, 2048, 5),
    ],
)
def test_all_prompts(smollm2: LoadedModel, block_size: int, budget: int, at_once: int, prefix_caching: bool) -> None:
    run(
        smollm2,
        golden(),
        new_tokens=64,
        block_size=block_size,
        budget=budget,
        at_once=at_once,
        prefix_caching=prefix_caching,
    )


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [1, 7, 16, 64])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "uncached"])
def test_all_prompts_under_preemption(smollm2: LoadedModel, block_size: int, prefix_caching: bool) -> None:
    longest = max(len(c.prompt) for c in golden()) + 64
    stats = run(
        smollm2,
        golden(),
        new_tokens=64,
        block_size=block_size,
        budget=256,
        at_once=16,
        prefix_caching=prefix_caching,
        num_blocks=-(-longest // block_size) * 3,
    )
    assert stats.preemptions > 0
