"""RoPE scaling variants against transformers: the frequencies, and whole models."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch

from reference_engine.models.errors import ModelLoadError
from reference_engine.models.hf_config import parse_hf_config
from reference_engine.models.rope import cos_sin, inverse_frequencies

HALF = 8  # head_dim 16
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn tuned": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 1.3,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn attention factor": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 0.8,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0 + 0.1 * i for i in range(HALF)],
        "long_factor": [1.5 + 0.7 * i for i in range(HALF)],
    },
}


def hf_config(rope: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        rope_parameters=dict(rope),
    )


def as_saved(config: Any) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads(config.to_json_string())
    return saved


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seq_len", [40, 256, 1000])
def test_frequencies_equal_transformers(name: str, seq_len: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = hf_config(VARIANTS[name])
    kind = VARIANTS[name]["rope_type"]
    compute = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    expected, factor = compute(config, device=torch.device("cpu"), seq_len=seq_len)
    ours, our_factor = inverse_frequencies(parse_hf_config(as_saved(config)), seq_len)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    assert our_factor == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_models_equal_transformers(name: str, save_tiny: Any, load_tiny: Any, run_paged: Any) -> None:
    """Beyond the original context, so that length-dependent variants are in their scaled regime."""
    path, reference = save_tiny("llama", max_position_embeddings=128, rope_parameters=dict(VARIANTS[name]))
    length = 150 if name == "dynamic" else 120
    tokens = [random.randrange(300) for _ in range(length)]
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0]
    ours = run_paged(load_tiny(path, max_model_len=length), tokens, [70, 1, 1, length - 72])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=3e-4 * float(expected.abs().max()))


def test_old_spelling_means_the_same() -> None:
    """``rope_theta`` + ``rope_scaling`` with ``type``, as files before transformers 5 have it."""
    new = as_saved(hf_config(VARIANTS["yarn"]))
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    scaling = {k: v for k, v in VARIANTS["yarn"].items() if k not in ("rope_type", "rope_theta")}
    old |= {"rope_theta": 10_000.0, "rope_scaling": {"type": "yarn", **scaling}}
    assert parse_hf_config(old) == parse_hf_config(new)


def test_partial_fields_are_completed() -> None:
    """transformers fills the original context from max_position_embeddings; theta may stand outside."""
    raw = as_saved(hf_config(VARIANTS["default"]))
    raw["rope_parameters"] = {"rope_type": "yarn", "factor": 2.0}
    raw["rope_theta"] = 70_000.0
    config = parse_hf_config(raw)
    assert config.rope_theta == 70_000.0
    assert config.rope_scaling is not None
    assert config.rope_scaling.parameters == {"factor": 2.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "spiral"}, "RoPE scaling 'spiral' is not supported"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial rotary"),
        ({"full_attention": {"rope_type": "default"}}, "differ by layer type"),
    ],
)
def test_unknown_variants_are_refused(rope: dict[str, Any], message: str) -> None:
    raw = as_saved(hf_config(VARIANTS["default"])) | {"rope_parameters": rope}
    with pytest.raises(ModelLoadError, match=message):
        parse_hf_config(raw)


def test_missing_numbers_are_named() -> None:
    raw = as_saved(hf_config(VARIANTS["default"])) | {"rope_parameters": {"rope_type": "linear"}}
    with pytest.raises(ModelLoadError, match="lacks 'factor'"):
        inverse_frequencies(parse_hf_config(raw), 10)


def test_cos_sin_covers_each_half_twice() -> None:
    cos, sin = cos_sin(torch.tensor([0, 3]), torch.tensor([1.0, 0.1]), 2.0, torch.float32)
    assert cos.shape == sin.shape == (2, 1, 4)
    torch.testing.assert_close(cos[1, 0], 2 * torch.tensor([3.0, 0.3, 3.0, 0.3]).cos())
    torch.testing.assert_close(sin[1, 0], 2 * torch.tensor([3.0, 0.3, 3.0, 0.3]).sin())
