"""config.json -> ModelConfig."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reference_engine.models.errors import ModelLoadError
from reference_engine.models.hf_config import parse_hf_config

BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}


def test_what_a_file_leaves_out() -> None:
    config = parse_hf_config(BASE)
    assert (config.head_dim, config.rope_theta, config.rope_scaling) == (8, 10_000.0, None)
    assert (config.max_position_embeddings, config.rms_norm_eps) == (2048, 1e-6)
    assert config.sliding_windows == ()
    assert config.eos_token_ids == ()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_defaults_equal_transformers(family: str) -> None:
    """A file with only the sizes means what transformers makes of it."""
    import transformers

    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    sizes = {k: v for k, v in BASE.items() if k != "model_type"}
    theirs = json.loads(getattr(transformers, f"{names[family]}Config")(**sizes).to_json_string(use_diff=False))
    ours, from_theirs = parse_hf_config({**BASE, "model_type": family}), parse_hf_config(theirs)
    for name in ("head_dim", "rope_theta", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(from_theirs, name), name


def test_eos_ids_of_both_files_are_joined() -> None:
    config = parse_hf_config({**BASE, "eos_token_id": 2, "bos_token_id": 1}, {"eos_token_id": [5, 2]})
    assert config.eos_token_ids == (2, 5)
    assert config.bos_token_id == 1


@pytest.mark.parametrize(
    ("raw", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 8}, (8, 8, 8, 8)),
        ({"model_type": "mistral", "sliding_window": None}, ()),
        ({"model_type": "qwen2", "sliding_window": 8}, ()),
        (
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 8),
        ),
        ({"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 9}, ()),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (8, None, 8, None),
        ),
        ({"model_type": "llama", "sliding_window": 8}, ()),
    ],
)
def test_windows(raw: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert parse_hf_config({**BASE, **raw}).sliding_windows == windows


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "gpt2"}, "architecture 'gpt2' is not supported"),
        ({"model_type": None}, "is not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"num_key_value_heads": 4}, "cannot share"),
    ],
)
def test_what_is_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        parse_hf_config({**BASE, **raw})


def test_a_missing_size_is_named() -> None:
    with pytest.raises(ModelLoadError, match="no 'intermediate_size'"):
        parse_hf_config({k: v for k, v in BASE.items() if k != "intermediate_size"})
