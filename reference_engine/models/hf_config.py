"""``config.json`` of a Hugging Face model directory -> ``ModelConfig``.

Old files keep RoPE under ``rope_theta`` and ``rope_scaling`` (with ``type`` or ``rope_type``), files saved by
transformers 5 under ``rope_parameters``; both may be partial, and a key in ``rope_parameters`` wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reference_engine.config import ModelConfig, RopeScaling
from reference_engine.models.errors import ModelLoadError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_KINDS = ("linear", "dynamic", "llama3", "yarn", "longrope")
_SCALED_FROM_ORIGINAL = ("llama3", "yarn", "longrope")
# What transformers assumes for a key that the file leaves out.
_DEFAULT_MAX_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
_DEFAULT_ROPE_THETA = 10_000.0


def parse_hf_config(raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Shape of the model that ``raw`` (config.json) describes; ``generation`` is generation_config.json when there is
    one.

    Raises ModelLoadError for an architecture, activation or RoPE variant that this engine does not compute.
    """
    family = str(raw.get("model_type", ""))
    if family not in FAMILIES:
        raise ModelLoadError(
            f"model architecture {family or 'unknown'!r} is not supported; "
            f"this engine runs {', '.join(FAMILIES)} (SmolLM2 is llama)"
        )
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelLoadError(f"activation {activation!r} is not supported; Llama-family models use 'silu'")
    try:
        hidden, heads, layers = int(raw["hidden_size"]), int(raw["num_attention_heads"]), int(raw["num_hidden_layers"])
        intermediate, vocab = int(raw["intermediate_size"]), int(raw["vocab_size"])
    except KeyError as missing:
        raise ModelLoadError(f"config.json has no {missing}; the file is incomplete") from None
    kv_heads = int(raw.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        raise ModelLoadError(
            f"{heads} query heads cannot share {kv_heads} key/value heads evenly; config.json is damaged"
        )
    max_positions = int(raw.get("max_position_embeddings") or _DEFAULT_MAX_POSITIONS[family])
    theta, scaling = _rope(raw, max_positions)
    attention_bias = bool(raw.get("attention_bias", False))
    eos = _ids(raw.get("eos_token_id")) + _ids((generation or {}).get("eos_token_id"))
    bos = _ids(raw.get("bos_token_id"))
    return ModelConfig(
        family=family,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=int(raw.get("head_dim") or (128 if family == "qwen3" else hidden // heads)),
        max_position_embeddings=max_positions,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or (family in ("llama", "qwen3") and attention_bias),
        o_bias=family in ("llama", "qwen3") and attention_bias,
        mlp_bias=family == "llama" and bool(raw.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        sliding_windows=_windows(raw, family, layers),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=tuple(dict.fromkeys(eos)),
    )


def _rope(raw: Mapping[str, Any], max_positions: int) -> tuple[float, RopeScaling | None]:
    """RoPE base and scaling from the old and the new spelling together."""
    fields: dict[str, Any] = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    if any(isinstance(value, Mapping) for value in fields.values()):
        raise ModelLoadError(
            "RoPE parameters that differ by layer type are not supported; use a model with one set for all layers"
        )
    theta = fields.pop("rope_theta", None)
    theta = float(raw.get("rope_theta") or _DEFAULT_ROPE_THETA) if theta is None else float(theta)
    kind, old_kind = fields.pop("rope_type", None), fields.pop("type", None)
    kind = str(kind or old_kind or "default")
    kind = "longrope" if kind == "su" else kind
    partial = float(fields.pop("partial_rotary_factor", None) or raw.get("partial_rotary_factor") or 1.0)
    if partial != 1.0:
        raise ModelLoadError(f"partial rotary embedding (factor {partial:g}) is not supported; only full RoPE is")
    if kind in ("default", "none"):
        return theta, None
    if kind not in ROPE_KINDS:
        raise ModelLoadError(f"RoPE scaling {kind!r} is not supported; this engine knows {', '.join(ROPE_KINDS)}")
    if kind in _SCALED_FROM_ORIGINAL:
        original = raw.get("original_max_position_embeddings") or fields.get("original_max_position_embeddings")
        fields["original_max_position_embeddings"] = int(original or max_positions)
    return theta, RopeScaling(kind=kind, parameters={k: v for k, v in fields.items() if v is not None})


def _windows(raw: Mapping[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    """Sliding window of each layer, or () when no layer has one."""
    window = raw.get("sliding_window")
    if family.startswith("qwen") and not raw.get("use_sliding_window", False):
        window = None
    if window is None or family == "llama":
        return ()
    kinds = raw.get("layer_types")
    if kinds is not None:
        windows = tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
    elif family == "mistral":
        windows = (int(window),) * layers
    else:
        first = int(raw.get("max_window_layers", 28))
        windows = tuple(int(window) if layer >= first else None for layer in range(layers))
    if len(windows) != layers:
        raise ModelLoadError(f"config.json lists {len(windows)} layer_types for {layers} layers; the file is damaged")
    return windows if any(w is not None for w in windows) else ()


def _ids(value: object) -> list[int]:
    """Token ids of a field that may be absent, one id or a list."""
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(str(value))]
