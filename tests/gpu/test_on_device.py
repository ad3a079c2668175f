"""What only a GPU can show: real tensor cores, real graphs, real memory ordering.  Skipped where there is none."""

from __future__ import annotations

import random
import secrets
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reference_engine.attention.base import KVCacheLayer
from reference_engine.config import CacheConfig
from reference_engine.plan import ScheduledSeq, StepPlan
from reference_engine.request import Request, SamplingParams

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parent))

from random_model import TINY, make_engine, make_runner, random_model

from reference_engine.attention.gather import GatherAttention
from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.kernels.cases import Case, build_problem, decode_case, exact_attention, relative_error
from reference_engine.kernels.measure import check, run_ours
from reference_engine.kernels.ops import TritonOps
from reference_engine.kernels.store_kv import store_kv_launch
from reference_engine.models.ops import TorchOps

pytestmark = pytest.mark.gpu
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LLAMA = replace(TINY, family="llama", qk_norm=False, num_heads=8, head_dim=64, hidden_size=256, intermediate_size=384)


@pytest.fixture
def seed() -> int:
    drawn = secrets.randbits(30)
    print("seed", drawn)
    return drawn


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_attention_against_float64(dtype: torch.dtype, seed: int) -> None:
    cases = [
        Case("mixed", (1, 40, 200, 1), (500, 40, 333, 64), dtype=dtype),
        Case("window", (1, 40, 200, 1), (500, 40, 333, 64), dtype=dtype, window=100),
        replace(decode_case("long", 2, 9000), dtype=dtype),
    ]
    assert all(row["passed"] for row in check(cases, CUDA, seed=seed))


def test_fp8_cache(seed: int) -> None:
    case = Case("fp8", (1, 30, 1), (700, 90, 64))
    problem = build_problem(case, CUDA, seed=seed, poison=0.0)
    scale = torch.full((case.num_kv_heads,), 0.02, device=CUDA)
    shape = problem.cache.key.shape
    cache = KVCacheLayer(*(torch.zeros(shape, dtype=torch.float8_e4m3fn, device=CUDA) for _ in range(2)), scale, scale)
    slots = [
        problem.meta.block_tables[i].long()[torch.arange(n, device=CUDA) // 16] * 16 + torch.arange(n, device=CUDA) % 16
        for i, n in enumerate(case.seq_lens)
    ]
    key, value = torch.cat(problem.keys), torch.cat(problem.values)
    store_kv_launch(key, value, cache.key, cache.value, torch.cat(slots), key_scale=scale, value_scale=scale).run()

    def quantised(rows: torch.Tensor) -> torch.Tensor:
        return (rows.float() / 0.02).clamp(-448, 448).to(torch.float8_e4m3fn).double() * float(scale[0])

    truth = replace(
        problem,
        keys=tuple(quantised(k) for k in problem.keys),
        values=tuple(quantised(v) for v in problem.values),
    )
    result = TritonPagedAttention(CUDA).attend(problem.query, cache, problem.meta, scale=case.scale)
    assert relative_error(result, exact_attention(truth)) < 1e-2


def test_the_same_call_gives_the_same_bits_every_time(seed: int) -> None:
    """A moving result would be a race."""
    for case in (decode_case("split", 1, 20000), Case("mixed", (1, 300, 7), (5000, 900, 64))):
        problem = build_problem(case, CUDA, seed=seed)
        backend = TritonPagedAttention(CUDA)
        first = run_ours(problem, backend)
        assert all(torch.equal(run_ours(problem, backend), first) for _ in range(20))


@pytest.mark.parametrize("config", [TINY, LLAMA], ids=["qk-norm", "llama"])
def test_graphs_give_the_logits_of_eager_steps(config: object, seed: int) -> None:
    """Padded batches, growing and shrinking, with tables that change between replays."""
    model = random_model(config, TritonOps(), CUDA, torch.float32, seed=seed, spread=0.1)  # type: ignore[arg-type]
    cache = CacheConfig(num_blocks=64, block_size=16)
    eager = make_runner(model, TritonPagedAttention(CUDA), cache)
    graphed = make_runner(model, TritonPagedAttention(CUDA), cache, graphs=6, max_model_len=200)
    rng = random.Random(seed)
    for runner in (eager, graphed):
        generator = torch.Generator(device=CUDA).manual_seed(seed)
        for layer in runner.layers:
            layer.key.normal_(generator=generator)
            layer.value.normal_(generator=generator)
    for batch in (3, 6, 1, 5, 2):
        blocks = rng.sample(range(64), batch * 10)
        seqs = [
            ScheduledSeq(i, rng.randrange(160), (rng.randrange(97),), tuple(blocks[10 * i : 10 * i + 10]), 1)
            for i in range(batch)
        ]
        plan = StepPlan(0, tuple(seqs))
        torch.testing.assert_close(graphed.execute(plan).sampled, eager.execute(plan).sampled, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("graphs", [0, 8])
@pytest.mark.parametrize("overlap", [False, True])
def test_tokens_of_the_engine_on_the_gpu_are_those_of_the_cpu(graphs: int, overlap: bool, seed: int) -> None:
    rng = random.Random(seed)
    prompts = [[rng.randrange(97) for _ in range(rng.choice((3, 16, 17, 90)))] for _ in range(10)]

    def generate(device: torch.device) -> dict[str, list[int]]:
        on_gpu = device.type == "cuda"
        ops = TritonOps() if on_gpu else TorchOps()
        model = random_model(LLAMA, ops, device, torch.float32, seed=seed, spread=0.2, drawn_on=CPU)
        backend = TritonPagedAttention(device) if on_gpu else GatherAttention()
        runner = make_runner(model, backend, CacheConfig(40, 16), graphs=graphs if on_gpu else 0, max_model_len=160)
        runner.poison()
        engine = make_engine(
            runner, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=160, overlap=overlap and on_gpu
        )
        params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        for i, prompt in enumerate(prompts):
            engine.add(Request(str(i), tuple(prompt), params))
        text: dict[str, list[int]] = {}
        while engine.has_work:
            for output in engine.step():
                assert output.token is not None
                text.setdefault(output.request_id, []).append(output.token)
        return text

    assert generate(CUDA) == generate(CPU)
