"""The engine on ``--attention triton``, eager and through the graph runner's padded rows, says what ``gather`` says."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reference_engine.attention.gather import GatherAttention
from reference_engine.attention.kv_format import FORMATS
from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.config import CacheConfig, ModelConfig
from reference_engine.graphs import batch_ladder
from reference_engine.kernels.ops import TritonOps
from reference_engine.models.ops import Ops, TorchOps
from reference_engine.plan import BlockCopy, StepPlan
from reference_engine.request import Request, SamplingParams

sys.path.insert(0, str(Path(__file__).parents[3] / "gpu"))
from random_model import TINY, make_engine, make_runner, random_model

CPU = torch.device("cpu")
Text = dict[str, list[int]]


def requests(seed: int) -> list[Request]:
    """Prompts around the edges of a block; two share a prefix; all greedy."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(TINY.vocab_size) for _ in range(n)] for n in (3, 16, 17, 40)]
    prompts.append([*prompts[3][:32], 5, 6])
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    return [Request(f"r{i}", tuple(prompt), params) for i, prompt in enumerate(prompts)]


# Without QK norm, so that the graph runner rotates keys straight into the cache.
LLAMA = replace(TINY, family="llama", qk_norm=False, qkv_bias=False)


def generate(
    attention: str,
    ops: Ops,
    seed: int,
    *,
    config: ModelConfig = TINY,
    graphs: int = 0,
    blocks: int = 64,
    budget: int = 24,
    kv_dtype: str = "float32",
) -> Text:
    backend = GatherAttention() if attention == "gather" else TritonPagedAttention(CPU)
    model = random_model(config, ops, CPU, torch.float32, seed=seed, spread=0.3)
    cache = CacheConfig(num_blocks=blocks, block_size=16, window=config.kv_window)
    runner = make_runner(model, backend, cache, graphs=graphs, max_model_len=64, kv_format=FORMATS[kv_dtype])
    runner.poison()
    engine = make_engine(runner, max_num_seqs=4, max_num_batched_tokens=budget, max_model_len=64)
    for request in requests(seed):
        engine.add(request)
    text: Text = {}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            assert output.token is not None
            text.setdefault(output.request_id, []).append(output.token)
    return text


@pytest.mark.parametrize(("config", "graphs"), [(TINY, 0), (TINY, 4), (LLAMA, 4)])
def test_triton_says_what_gather_says(config: ModelConfig, graphs: int, seed: int) -> None:
    expected = generate("gather", TorchOps(), seed, config=config)
    assert len(expected) == 5
    assert generate("triton", TritonOps(), seed, config=config, graphs=graphs) == expected


@pytest.mark.parametrize("graphs", [0, 4])
def test_an_fp8_cache_of_a_windowed_model(graphs: int, seed: int) -> None:
    """The table has -1 for blocks behind the window, which both backends must leave alone."""
    config = replace(LLAMA, sliding_windows=(18, 9)[: LLAMA.num_layers] + (18,) * (LLAMA.num_layers - 2))
    assert config.kv_window == 18
    expected = generate("gather", TorchOps(), seed, config=config, kv_dtype="fp8_e4m3")
    found = generate("triton", TritonOps(), seed, config=config, kv_dtype="fp8_e4m3", graphs=graphs)
    assert found == expected


def test_copies_of_blocks(seed: int) -> None:
    """Copy-on-write through the kernel gives what torch gives, also where one copy's target is another's source."""
    model = random_model(TINY, TorchOps(), CPU, torch.float32, seed=seed)
    runners = [
        make_runner(model, TritonPagedAttention(CPU), CacheConfig(num_blocks=8, block_size=16), graphs=graphs)
        for graphs in (0, 2)
    ]
    for copies in (((1, 5), (1, 6), (2, 7)), ((1, 2), (2, 3))):
        for runner in runners:
            generator = torch.Generator().manual_seed(seed)
            for layer in runner.layers:
                layer.key.normal_(generator=generator)
                layer.value.normal_(generator=generator)
            runner.execute(StepPlan(0, (), tuple(BlockCopy(*pair) for pair in copies)))
        for one, other in zip(runners[0].layers, runners[1].layers, strict=True):
            assert torch.equal(one.key, other.key)
            assert torch.equal(one.value, other.value)


def test_under_preemption_and_small_chunks(seed: int) -> None:
    expected = generate("gather", TorchOps(), seed)
    assert generate("triton", TritonOps(), seed, graphs=4, blocks=9, budget=7) == expected


def test_ladder_covers_every_size() -> None:
    for largest in (1, 3, 8, 64, 100, 256, 300):
        ladder = batch_ladder(largest)
        assert ladder == tuple(sorted(set(ladder)))
        assert ladder[-1] == largest
        assert all(any(size <= rung for rung in ladder) for size in range(1, largest + 1))
