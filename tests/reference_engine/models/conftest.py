"""Tiny random models of every family, saved by transformers, and a run of them through a poisoned paged pool."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from reference_engine.attention import make_backend
from reference_engine.config import CacheConfig
from reference_engine.models.loader import LoadedModel, load_model
from reference_engine.plan import ScheduledSeq, StepPlan
from reference_engine.runner import ModelRunner

CPU = torch.device("cpu")
VOCAB = 320

SaveTiny = Callable[..., Any]
RunPaged = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE with a few merges and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("Ġ", "the"), ("i", "n")]
    pieces = [*alphabet, *("".join(pair) for pair in merges)]
    backend = tokenizers.Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(directory / "tokenizer.json"))


@pytest.fixture
def save_tiny(tmp_path: Path) -> SaveTiny:
    """``save_tiny(family, **config)`` saves a random model and a tokenizer; returns (directory, model)."""

    def save(family: str, *, shard: str | None = None, seed: int | None = None, **overrides: Any) -> tuple[Path, Any]:
        import transformers

        names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
        config_class = getattr(transformers, f"{names[family]}Config")
        defaults: dict[str, Any] = {
            "vocab_size": VOCAB,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
        }
        torch.manual_seed(random.randrange(2**31) if seed is None else seed)
        model_class = getattr(transformers, f"{names[family]}ForCausalLM")
        model = model_class(config_class(**{**defaults, **overrides})).to(torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith(
                    "bias"
                ):  # transformers starts these at 1 and 0, which hides mistakes
                    parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0, 0.5)
        directory = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(directory, **({"max_shard_size": shard} if shard else {}))
        write_tokenizer(directory)
        return directory, model

    return save


@pytest.fixture
def run_paged() -> RunPaged:
    """``run_paged(loaded, tokens, chunks, ...)``: logits [N, V] through shuffled blocks of a NaN pool."""

    def run(
        loaded: LoadedModel,
        tokens: Sequence[int],
        chunks: Sequence[int],
        *,
        block_size: int = 4,
        backend: str = "gather",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        assert sum(chunks) == len(tokens)
        needed = -(-len(tokens) // block_size)
        cache = CacheConfig(num_blocks=needed + 5, block_size=block_size)
        runner = ModelRunner(loaded.model, loaded.config, cache, make_backend(backend, CPU), CPU, dtype)
        runner.poison()
        table = tuple(random.sample(range(cache.num_blocks), needed))
        rows, start = [], 0
        for count in chunks:
            part = tuple(tokens[start : start + count])
            used = table[: -(-(start + count) // block_size)]
            logits = runner.execute(StepPlan(0, (ScheduledSeq(7, start, part, used, 1, prompt_logprobs=True),)))
            torch.testing.assert_close(logits.sampled[0], logits.prompt[7][-1], rtol=0, atol=1e-4)
            rows.append(logits.prompt[7])
            start += count
        return torch.cat(rows)

    return run


@pytest.fixture
def load_tiny() -> Callable[..., LoadedModel]:
    def load(path: Path | str, **options: Any) -> LoadedModel:
        return load_model(str(path), **{"dtype": torch.float32, "device": CPU, **options})

    return load


def random_chunks(total: int) -> list[int]:
    """A random cut of ``total`` tokens into a prefill, some chunks and single decodes."""
    chunks: list[int] = []
    while total:
        count = min(total, random.choice([1, 1, 1, 2, 5, 17, 40]))
        chunks.append(count)
        total -= count
    return chunks
