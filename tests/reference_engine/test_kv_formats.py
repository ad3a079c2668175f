"""KV formats through the whole engine: what fewer bits cost, as KL divergence against an fp32 pool, teacher-forced."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reference_engine.attention import make_backend
from reference_engine.attention.base import empty_cache_layer, flat_scale
from reference_engine.attention.kv_format import FORMATS, KVFormat, read_rows, store_rows
from reference_engine.batch import build
from reference_engine.config import CacheConfig
from reference_engine.kv_calibration import TEXT, measure_scales
from reference_engine.models.errors import ModelLoadError
from reference_engine.models.loader import LoadedModel, load_model
from reference_engine.plan import BlockCopy, ScheduledSeq, StepPlan
from reference_engine.runner import ModelRunner, num_blocks_for

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2_greedy.json"

# Mean and largest KL(fp32 || format) over positions, in nats: bounds of the tests below.
MEAN_KL = {"bfloat16": 1e-3, "float16": 1e-4, "fp8_e4m3": 0.03, "int8": 0.01}
LARGEST_KL = {"bfloat16": 0.05, "float16": 0.005, "fp8_e4m3": 0.5, "int8": 0.2}


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    torch.set_num_threads(1)
    try:
        return load_model("smollm2", dtype=torch.float32, device=CPU)
    except ModelLoadError as error:
        pytest.skip(f"needs the embedded model: {error}")


def logits_of(loaded: LoadedModel, kv: KVFormat, tokens: list[int], scales: Any, chunk: int = 32) -> torch.Tensor:
    """Logits of every position, computed in chunks and one decode at the end, over a poisoned pool."""
    cache = CacheConfig(-(-len(tokens) // 16) + 1, 16)
    own = scales if kv.scales == "head" else None
    runner = ModelRunner(
        loaded.model,
        loaded.config,
        cache,
        make_backend("gather", CPU),
        CPU,
        torch.float32,
        kv_format=kv,
        kv_scales=own,
    )
    runner.poison()
    table = tuple(reversed(range(cache.num_blocks)))
    rows = []
    starts = [*range(0, len(tokens) - 1, chunk), len(tokens) - 1]
    for step, (start, end) in enumerate(zip(starts, [*starts[1:], len(tokens)], strict=True)):
        part = ScheduledSeq(0, start, tuple(tokens[start:end]), table, 0, prompt_logprobs=True)
        rows.append(runner.execute(StepPlan(step, (part,))).prompt[0])
    return torch.cat(rows)


def divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(reference || other) of each position, in nats."""
    p, q = torch.log_softmax(reference.double(), -1), torch.log_softmax(other.double(), -1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "fp8_e4m3", "int8"])
def test_teacher_forced_divergence_is_within_its_bound(smollm2: LoadedModel, name: str) -> None:
    scales = measure_scales(smollm2.model, smollm2.tokenizer.encode(TEXT))
    found = []
    for case in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"][:3]:
        tokens = [*case["prompt"], *case["tokens"]][:96]
        exact = logits_of(smollm2, FORMATS["float32"], tokens, scales)
        found.append(divergence(exact, logits_of(smollm2, FORMATS[name], tokens, scales)))
    kl = torch.cat(found)
    print(f"{name}: mean {kl.mean():.2e}, largest {kl.max():.2e} nats over {len(kl)} positions")
    assert kl.mean() <= MEAN_KL[name]
    assert kl.max() <= LARGEST_KL[name]


def test_a_wrong_scale_breaks_the_bound(smollm2: LoadedModel) -> None:
    scales = measure_scales(smollm2.model, smollm2.tokenizer.encode(TEXT))
    tiny = [(key / 64, value / 64) for key, value in scales]
    tokens = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"][0]["prompt"][:64]
    exact = logits_of(smollm2, FORMATS["float32"], tokens, scales)
    kl = divergence(exact, logits_of(smollm2, FORMATS["fp8_e4m3"], tokens, tiny))
    assert kl.mean() > MEAN_KL["fp8_e4m3"], "values are clipped"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("window", [None, 7])
def test_gather_reads_what_naive_reads(name: str, window: int | None) -> None:
    """One layer: through a whole model a value on the edge between two stored numbers would tell backends apart."""
    kv, generator = FORMATS[name], torch.Generator().manual_seed(3)
    tables = ((4, 1, 6), (0, 5, 2))
    steps = (
        StepPlan(0, (ScheduledSeq(0, 0, (1,) * 9, tables[0], 1), ScheduledSeq(1, 0, (1,) * 4, tables[1], 1))),
        StepPlan(1, (ScheduledSeq(0, 9, (1,), tables[0], 1), ScheduledSeq(1, 4, (1,) * 3, tables[1], 1))),
        StepPlan(2, (ScheduledSeq(0, 10, (1,), tables[0], 1), ScheduledSeq(1, 7, (1,), tables[1], 1))),
    )
    scale = torch.tensor([0.02, 0.03]) if kv.scales == "head" else None
    layers = []
    for _ in range(2):
        layer = empty_cache_layer(7, 4, 2, 16, kv.dtype, CPU, slot_scales=kv.scales == "slot")
        layers.append(layer if scale is None else replace(layer, key_scale=scale, value_scale=scale * 2))
    backends = [make_backend(backend, CPU) for backend in ("naive", "gather")]
    for plan in steps:
        meta, rows = build(plan, 4, CPU).meta, plan.num_tokens
        query, key, value = (torch.randn(rows, heads, 16, generator=generator) for heads in (4, 2, 2))
        exact, found = (
            backend.forward(query, key, value, layer, meta, scale=0.25, window=window)
            for backend, layer in zip(backends, layers, strict=True)
        )
        assert (exact - found).abs().max() < 1e-5


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_comes_back_within_the_formats_precision(name: str) -> None:
    kv, rows = FORMATS[name], torch.randn(5, 2, 16) * torch.tensor([[[1.0], [30.0]]])
    layer = empty_cache_layer(3, 4, 2, 16, kv.dtype, CPU, slot_scales=kv.scales == "slot")
    scale = torch.tensor([4.0, 120.0]) / 448 if kv.scales == "head" else flat_scale(layer.key_scale)
    slots = torch.tensor([11, 0, 5, 6, 3])
    pool = layer.key.flatten(0, 1)
    store_rows(rows, pool, scale, slots)
    own = scale if scale is None or scale.dim() == 1 else scale[slots]
    error = (read_rows(pool[slots], own, torch.float32) - rows).abs() / rows.abs().amax(-1, keepdim=True)
    bound = {"float32": 0, "bfloat16": 2**-8, "float16": 2**-11, "fp8_e4m3": 2**-4, "int8": 0.51 / 127}[name]
    assert error.max() <= bound


@pytest.mark.parametrize("name", FORMATS)
def test_copies_and_swaps_take_scales_along(smollm2: LoadedModel, name: str) -> None:
    kv = FORMATS[name]
    cache = CacheConfig(4, 4, num_host_blocks=2)
    runner = ModelRunner(
        smollm2.model, smollm2.config, cache, make_backend("gather", CPU), CPU, torch.float32, kv_format=kv
    )
    for layer in runner.layers:
        for tensor in layer.tensors():
            tensor.view(torch.uint8).random_(0, 255)
    before = [tensor[1].clone() for layer in runner.layers for tensor in layer.tensors()]
    runner.execute(StepPlan(0, (), (BlockCopy(1, 3),), swap_out=(BlockCopy(1, 0),), swap_in=(BlockCopy(0, 2),)))
    for then, tensor in zip(before, (t for layer in runner.layers for t in layer.tensors()), strict=True):
        assert torch.equal(tensor[2].view(torch.uint8), then.view(torch.uint8))
        assert torch.equal(tensor[3].view(torch.uint8), then.view(torch.uint8))


def test_sizes(smollm2: LoadedModel) -> None:
    sizes = {name: kv.bytes_per_token(smollm2.config) for name, kv in FORMATS.items()}
    assert sizes == {"float32": 46080, "bfloat16": 23040, "float16": 23040, "fp8_e4m3": 11520, "int8": 12240}
    assert num_blocks_for(16 * 12240, smollm2.config, 16, FORMATS["int8"]) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_poison_is_read_as_such_in_every_format(name: str) -> None:
    kv = FORMATS[name]
    layer = empty_cache_layer(5, 4, 2, 16, kv.dtype, CPU, slot_scales=kv.scales == "slot")
    layer.fill(1.0)
    layer.fill(float("nan"), torch.tensor([1, 3]))
    head = torch.ones(2) if kv.scales == "head" else None
    for pool, scale in ((layer.key, layer.key_scale), (layer.value, layer.value_scale)):
        read = read_rows(pool.flatten(0, 1), head if scale is None else flat_scale(scale), torch.float32)
        poisoned = read.isnan().flatten(1).all(-1).reshape(5, 4).all(-1)
        assert poisoned.tolist() == [False, True, False, True, False]
        assert read.isnan().reshape(5, -1).any(-1).tolist() == poisoned.tolist()
