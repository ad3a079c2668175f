"""The runner: mixed batches, copies, poison, memory sums, on a tiny random model with no file behind it."""

from __future__ import annotations

import io
import random

import pytest
import torch
from torch import Tensor

from reference_engine.attention import make_backend
from reference_engine.config import CacheConfig, ConfigError, ModelConfig
from reference_engine.models import ops as ops_module
from reference_engine.models.llama import LlamaModel
from reference_engine.models.ops import OneDnnOps, TorchOps, is_intel_processor, make_ops
from reference_engine.plan import BlockCopy, ScheduledSeq, StepPlan
from reference_engine.runner import ModelRunner, block_bytes, num_blocks_for

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    family="llama",
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=256,
)


class RandomWeights:
    """Weights by name, made when asked for."""

    def __contains__(self, name: str) -> bool:
        return True

    def tensor(self, name: str) -> Tensor:
        c = CONFIG
        q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        shapes = {
            "embed_tokens": (c.vocab_size, c.hidden_size),
            "lm_head": (c.vocab_size, c.hidden_size),
            "q_proj": (q, c.hidden_size),
            "k_proj": (kv, c.hidden_size),
            "v_proj": (kv, c.hidden_size),
            "o_proj": (c.hidden_size, q),
            "gate_proj": (c.intermediate_size, c.hidden_size),
            "up_proj": (c.intermediate_size, c.hidden_size),
            "down_proj": (c.hidden_size, c.intermediate_size),
        }
        shape = shapes.get(name.split(".")[-2], (c.hidden_size,))
        return torch.randn(shape) * 0.3 if len(shape) == 2 else torch.rand(shape) + 0.5


@pytest.fixture
def model() -> LlamaModel:
    torch.set_num_threads(1)
    with torch.inference_mode():
        return LlamaModel(CONFIG, RandomWeights(), make_ops(CPU, torch.float32), dtype=torch.float32, device=CPU)


def make_runner(model: LlamaModel, num_blocks: int = 40, block_size: int = 4, backend: str = "gather") -> ModelRunner:
    cache = CacheConfig(num_blocks, block_size)
    runner = ModelRunner(model, CONFIG, cache, make_backend(backend, CPU), CPU, torch.float32)
    runner.poison()
    return runner


def one(
    seq_id: int, tokens: list[int], start: int, count: int, table: tuple[int, ...], **options: bool
) -> ScheduledSeq:
    return ScheduledSeq(seq_id, start, tuple(tokens[start : start + count]), table, 1, **options)


def test_a_mixed_batch_equals_each_sequence_alone(model: LlamaModel) -> None:
    """Decodes, a fresh prompt, a chunk: computed together or one by one."""
    lengths = [(9, 1), (0, 7), (5, 6), (30, 1), (12, 1)]
    texts = [[random.randrange(97) for _ in range(context + new)] for context, new in lengths]
    ids = random.sample(range(40), 40)
    tables = [tuple(ids.pop() for _ in range(-(-len(text) // 4))) for text in texts]
    together, alone = make_runner(model), make_runner(model)
    for runner in (together, alone):
        for i, (context, _) in enumerate(lengths):
            if context:
                runner.execute(StepPlan(0, (one(i, texts[i], 0, context, tables[i]),)))
    parts = tuple(
        one(i, texts[i], context, new, tables[i], prompt_logprobs=new > 1) for i, (context, new) in enumerate(lengths)
    )
    batch = together.execute(StepPlan(1, parts))
    assert batch.sampled.shape == (5, 97)
    assert batch.sampled.dtype == torch.float32
    assert {k: v.shape for k, v in batch.prompt.items()} == {1: (7, 97), 2: (6, 97)}
    for i, part in enumerate(parts):
        single = alone.execute(StepPlan(1, (part,)))
        torch.testing.assert_close(batch.sampled[i], single.sampled[0], rtol=1e-4, atol=1e-4)
        if part.prompt_logprobs:
            torch.testing.assert_close(batch.prompt[i], single.prompt[i], rtol=1e-4, atol=1e-4)


def test_only_sequences_that_sample_have_rows(model: LlamaModel) -> None:
    tokens = [1, 2, 3, 4, 5, 6]
    parts = (
        ScheduledSeq(5, 0, tuple(tokens[:3]), (0, 1), 0),
        ScheduledSeq(9, 0, tuple(tokens), (2, 3), 3),
    )
    logits = make_runner(model).execute(StepPlan(0, parts))
    assert logits.sampled.shape == (1, 97), "one row a sequence, whatever num_samples"
    expected = make_runner(model).execute(StepPlan(0, parts[1:]))
    torch.testing.assert_close(logits.sampled, expected.sampled, rtol=1e-4, atol=1e-4)
    assert logits.prompt == {}


def test_a_plan_in_which_nobody_samples(model: LlamaModel) -> None:
    runner = make_runner(model)
    logits = runner.execute(StepPlan(0, (ScheduledSeq(1, 0, (3, 4), (0,), 0),)))
    assert logits.sampled.shape == (0, 97)
    assert not runner.layers[1].key[0, :2].isnan().any(), "the K/V was still written"


def test_copies_come_before_the_computation(model: LlamaModel) -> None:
    """A forked sequence continues on a copy of the shared last block; the original is not disturbed."""
    tokens = [random.randrange(97) for _ in range(7)]
    runner = make_runner(model)
    first = runner.execute(StepPlan(0, (one(1, tokens, 0, 6, (10, 11)),)))
    assert not first.sampled.isnan().any()
    forked = ScheduledSeq(2, 6, (50,), (10, 20), 1)
    original = one(1, tokens, 6, 1, (10, 11))
    both = runner.execute(StepPlan(1, (original, forked), copies=(BlockCopy(11, 20),)))
    fresh = make_runner(model)
    for row, text in ((0, tokens), (1, [*tokens[:6], 50])):
        expected = fresh.execute(StepPlan(0, (one(3, text, 0, 7, (1, 2)),)))
        torch.testing.assert_close(both.sampled[row], expected.sampled[0], rtol=1e-4, atol=1e-4)


def test_copies_are_simultaneous(model: LlamaModel) -> None:
    """A block may be a source and, in the same plan, the target of another copy: sources are read first."""
    runner = make_runner(model)
    for layer in runner.layers:
        layer.key[:] = torch.arange(40.0)[:, None, None, None]
    runner.execute(StepPlan(0, (), copies=(BlockCopy(1, 2), BlockCopy(2, 3))))
    assert [float(runner.layers[0].key[b, 0, 0, 0]) for b in (1, 2, 3)] == [1.0, 1.0, 2.0]


def test_an_empty_plan(model: LlamaModel) -> None:
    logits = make_runner(model).execute(StepPlan(0, ()))
    assert logits.sampled.shape == (0, 97)


def test_poison_shows_when_a_slot_is_read_that_was_never_written(model: LlamaModel) -> None:
    runner = make_runner(model)
    skipped = ScheduledSeq(1, 3, (5,), (0,), 1)  # claims three computed tokens that nobody computed
    assert runner.execute(StepPlan(0, (skipped,))).sampled.isnan().all()


def test_naive_and_gather_runners_agree(model: LlamaModel) -> None:
    tokens = [random.randrange(97) for _ in range(23)]
    results = []
    for name in ("naive", "gather"):
        runner = make_runner(model, backend=name)
        runner.execute(StepPlan(0, (one(1, tokens, 0, 20, tuple(range(6))),)))
        results.append(runner.execute(StepPlan(1, (one(1, tokens, 20, 3, tuple(range(6))),))).sampled)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_memory_sums(model: LlamaModel) -> None:
    runner = make_runner(model, num_blocks=10, block_size=4)
    held = sum(t.numel() * t.element_size() for layer in runner.layers for t in (layer.key, layer.value))
    assert runner.kv_bytes == held == 10 * block_bytes(CONFIG, 4, torch.float32) == 10 * 4 * 2 * 2 * 2 * 8 * 4
    assert num_blocks_for(held, CONFIG, 4, torch.float32) == 10
    assert num_blocks_for(held - 1, CONFIG, 4, torch.float32) == 9
    assert num_blocks_for(held, CONFIG, 4, torch.bfloat16) == 20
    with pytest.raises(ConfigError, match="raise --kv-memory"):
        num_blocks_for(10, CONFIG, 4, torch.float32)


def test_a_pool_that_does_not_fit(model: LlamaModel) -> None:
    with pytest.raises(ConfigError, match="lower --kv-memory"):
        ModelRunner(model, CONFIG, CacheConfig(2**44), make_backend("gather", CPU), CPU, torch.float32)


def test_plain_torch_ops_serve_as_well(model: LlamaModel) -> None:
    torch.manual_seed(3)
    with torch.inference_mode():
        plain = LlamaModel(CONFIG, RandomWeights(), TorchOps(), dtype=torch.float32, device=CPU)
        torch.manual_seed(3)
        fast = LlamaModel(CONFIG, RandomWeights(), make_ops(CPU, torch.float32), dtype=torch.float32, device=CPU)
    plan = StepPlan(0, (ScheduledSeq(1, 0, tuple(range(9)), (4, 2, 7), 1),))
    results = [make_runner(m).execute(plan).sampled for m in (plain, fast)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_rows_kept_beside_packed_weights_give_the_same_products(rows: int) -> None:
    """Both layouts of one weight are the same weight: right against float64 on either side of the switch."""
    weight, bias, x = torch.randn(70, 48), torch.randn(70), torch.randn(rows, 48)
    want = (x.double() @ weight.double().T + bias.double()).float()
    for ops in (OneDnnOps(), OneDnnOps(keep_rows=True)):
        prepared = ops.prepare_linear(weight, bias)
        torch.testing.assert_close(ops.linear(x, prepared), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("cpuinfo", "is_intel"),
    [("vendor_id\t: GenuineIntel\n", True), ("vendor_id\t: AuthenticAMD\n", False), ("", False)],
)
def test_intel_processors_are_told_by_their_vendor(
    cpuinfo: str, is_intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO("processor\t: 0\n" + cpuinfo))
    assert is_intel_processor() is is_intel


@pytest.mark.parametrize("is_intel", [True, False])
def test_rows_are_kept_on_intel_and_only_in_fp32(is_intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_module, "is_intel_processor", lambda: is_intel)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert make_ops(CPU, torch.float32).padded_rows(1) == (1 if is_intel else 4)
    assert make_ops(CPU, torch.bfloat16).padded_rows(1) == 4


def test_no_cpuinfo_is_no_intel_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert is_intel_processor() is False


def test_no_more_rows_are_kept_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneDnnOps, "MOST_KEPT_BYTES", 100 * 4)
    ops, x = OneDnnOps(keep_rows=True), torch.randn(1, 8)
    weights = [torch.randn(10, 8), torch.randn(10, 8), torch.randn(2, 8)]
    prepared = [ops.prepare_linear(weight, None) for weight in weights]
    assert [layout[2] is not None for layout in prepared] == [True, False, True]
    for weight, layout in zip(weights, prepared, strict=True):
        torch.testing.assert_close(ops.linear(x, layout), x @ weight.T)
