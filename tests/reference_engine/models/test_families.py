"""Every family against transformers' own implementation, in fp32, on random weights, through the paged cache."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama no gqa": ("llama", {"num_key_value_heads": 6}),
    "llama wide heads": ("llama", {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 9}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 window": ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen2 layer types": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", {}),
    "qwen3 tied bias": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}


def reference_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.abs().max() > 1, "a reference this flat would prove nothing"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(name: str, save_tiny: Any, load_tiny: Any, run_paged: Any) -> None:
    family, overrides = FAMILIES[name]
    path, reference = save_tiny(family, **overrides)
    loaded = load_tiny(path)
    tokens = [random.randrange(300) for _ in range(61)]
    expected = reference_logits(reference, tokens)
    agree(run_paged(loaded, tokens, [61]), expected)
    agree(run_paged(loaded, tokens, [20, 1, 1, 1, 13, 1, 24], block_size=7), expected)
    agree(run_paged(loaded, tokens, [1] * 21 + [40], block_size=1), expected)


@pytest.mark.parametrize("name", ["llama", "mistral window", "qwen3"])
def test_the_naive_oracle_agrees_too(name: str, save_tiny: Any, load_tiny: Any, run_paged: Any) -> None:
    family, overrides = FAMILIES[name]
    path, reference = save_tiny(family, **overrides)
    tokens = [random.randrange(300) for _ in range(25)]
    agree(
        run_paged(load_tiny(path), tokens, [10, 1, 14], backend="naive"),
        reference_logits(reference, tokens),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype, save_tiny: Any, load_tiny: Any, run_paged: Any) -> None:
    path, reference = save_tiny("llama", initializer_range=0.1)
    loaded = load_tiny(path, dtype=dtype)
    tokens = [random.randrange(300) for _ in range(33)]
    ours = run_paged(loaded, tokens, [20, 1, 1, 11], dtype=dtype)
    theirs = reference_logits(reference, tokens)
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() < 0.1 * theirs.abs().max()


def test_torch_ops_and_onednn_ops_agree(save_tiny: Any, load_tiny: Any, run_paged: Any) -> None:
    from reference_engine.models.ops import OneDnnOps, TorchOps

    path, _ = save_tiny("qwen3", attention_bias=True)
    tokens = [random.randrange(300) for _ in range(30)]
    plain = run_paged(load_tiny(path, ops=TorchOps()), tokens, [17, 1, 2, 3, 7])
    fast = run_paged(load_tiny(path, ops=OneDnnOps()), tokens, [17, 1, 2, 3, 7])
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=2e-4 * float(plain.abs().max()))
