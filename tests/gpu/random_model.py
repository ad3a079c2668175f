"""Random-weight models of any Llama shape, and engines over them: speed and equality need no trained weights."""

from __future__ import annotations

import torch
from torch import Tensor

from reference_engine.attention.base import AttentionBackend
from reference_engine.attention.kv_format import KVFormat
from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.config import CacheConfig, ModelConfig, SchedulerConfig
from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine, EngineLimits
from reference_engine.graphs import GraphRunner
from reference_engine.models.llama import LlamaModel
from reference_engine.models.ops import Ops
from reference_engine.runner import ModelRunner

LLAMA_8B = ModelConfig(
    family="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position_embeddings=131072,
    rope_theta=500_000.0,
)

TINY = ModelConfig(
    family="qwen3",
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    qk_norm=True,
    qkv_bias=True,
    sliding_windows=(None, 20),
)


class RandomWeights:
    """A weight source by Hugging Face names.  The same seed and name give the same tensor."""

    def __init__(self, config: ModelConfig, device: torch.device, seed: int = 0, spread: float | None = None) -> None:
        self.config, self.device, self.seed = config, device, seed
        self.spread = config.hidden_size**-0.5 if spread is None else spread

    def __contains__(self, name: str) -> bool:
        return True

    def tensor(self, name: str) -> Tensor:
        c = self.config
        q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        last = name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
        sizes = {
            "embed_tokens": (c.vocab_size, c.hidden_size),
            "lm_head": (c.vocab_size, c.hidden_size),
            "q_proj": (q, c.hidden_size),
            "k_proj": (kv, c.hidden_size),
            "v_proj": (kv, c.hidden_size),
            "o_proj": (c.hidden_size, q),
            "gate_proj": (c.intermediate_size, c.hidden_size),
            "up_proj": (c.intermediate_size, c.hidden_size),
            "down_proj": (c.hidden_size, c.intermediate_size),
            "q_norm": (c.head_dim,),
            "k_norm": (c.head_dim,),
        }
        shape = sizes.get(last, (c.hidden_size,))
        if name.endswith(".bias"):
            shape = shape[:1]
        seed = self.seed * 1_000_003 + sum((i + 1) * ord(letter) for i, letter in enumerate(name))
        generator = torch.Generator(device=self.device).manual_seed(seed)
        drawn = torch.randn(shape, generator=generator, device=self.device) * self.spread
        return 1.0 + drawn if "norm" in last else drawn


def random_model(
    config: ModelConfig,
    ops: Ops,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    spread: float | None = None,
    drawn_on: torch.device | None = None,
) -> LlamaModel:
    """A model on ``device``; its weights are drawn there too, or on ``drawn_on`` to be the same on two devices."""
    weights = RandomWeights(config, drawn_on or device, seed, spread)
    with torch.inference_mode():
        return LlamaModel(config, weights, ops, dtype=dtype, device=device)


def make_runner(
    model: LlamaModel,
    backend: AttentionBackend,
    cache: CacheConfig,
    *,
    graphs: int = 0,
    max_model_len: int = 512,
    kv_format: KVFormat | None = None,
) -> ModelRunner:
    """An eager runner, or one with graphs for up to ``graphs`` sequences."""
    if graphs:
        if not isinstance(backend, TritonPagedAttention):
            raise TypeError("graphs need the triton backend")
        return GraphRunner(
            model,
            model.config,
            cache,
            backend,
            model.device,
            model.dtype,
            max_num_seqs=graphs,
            max_model_len=max_model_len,
            kv_format=kv_format,
        )
    return ModelRunner(model, model.config, cache, backend, model.device, model.dtype, kv_format=kv_format)


class NumberTokens:
    """Tokens that spell their own number; enough of a tokenizer for an engine that is fed ids."""

    special_ids: frozenset[int] = frozenset()

    def token_bytes(self, token: int) -> bytes:
        return f"{token} ".encode()


def make_engine(
    runner: ModelRunner,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int,
    overlap: bool = False,
) -> Engine:
    """An engine over ``runner`` without a real tokenizer."""
    config = runner.model_config
    return Engine(
        runner,
        EngineLimits(config.vocab_size, (), runner.kv_format.bytes_per_token(config)),
        SchedulerConfig(
            max_model_len=max_model_len, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
        ),
        runner.cache,
        TokenTable(NumberTokens()),
        overlap=overlap,
    )
