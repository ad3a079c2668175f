"""Rotary position embedding: inverse frequencies of every scaling variant, cos/sin of positions.

Formulas: linear (Chen et al. 2023, arXiv 2306.15595), dynamic NTK (bloc97, emozilla), YaRN (Peng et al. 2023, arXiv
2309.00071), Llama 3.1's wavelength bands, LongRoPE (Ding et al. 2024, arXiv 2402.13753), with the conventions of
Hugging Face configs.

Dynamic NTK and LongRoPE depend on "the sequence length".  A paged cache keeps keys that were rotated earlier, so the
frequencies may never change while a sequence grows: here they are a constant of the loaded model, evaluated at
``seq_len`` = the longest sequence the engine admits.  A sequence's text then depends neither on its neighbours nor on
how it was chunked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reference_engine.config import ModelConfig
from reference_engine.models.errors import ModelLoadError


def inverse_frequencies(config: ModelConfig, seq_len: int) -> tuple[Tensor, float]:
    """Radians a position, fp32 ``[head_dim // 2]``, and the factor that multiplies cos and sin."""
    base, dim = config.rope_theta, config.head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / dim
    plain = 1.0 / (base**exponents)
    if config.rope_scaling is None:
        return plain, 1.0
    kind, fields = config.rope_scaling.kind, config.rope_scaling.parameters
    if kind == "linear":
        return plain / _number(fields, "factor"), 1.0
    if kind == "dynamic":
        longest = max(seq_len, config.max_position_embeddings)
        factor = _number(fields, "factor")
        stretched = base * ((factor * longest / config.max_position_embeddings) - (factor - 1)) ** (dim / (dim - 2))
        return 1.0 / (stretched**exponents), 1.0
    if kind == "llama3":
        return _llama3(plain, fields), 1.0
    if kind == "yarn":
        return _yarn(base, dim, exponents, config.max_position_embeddings, fields)
    if kind == "longrope":
        return _longrope(base, exponents, config.max_position_embeddings, seq_len, fields)
    raise ModelLoadError(f"RoPE scaling {kind!r} is not supported")


def cos_sin(positions: Tensor, inv_freq: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of ``positions [T]``, each ``[T, 1, head_dim]``: the half twice, ready to broadcast over heads."""
    angles = positions.to(torch.float32)[:, None] * inv_freq
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    cos, sin = angles.cos(), angles.sin()
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return cos.to(dtype), sin.to(dtype)


def _number(fields: Mapping[str, Any], key: str) -> float:
    value = fields.get(key)
    if value is None:
        raise ModelLoadError(f"the model's RoPE scaling lacks {key!r}; its config is incomplete")
    return float(value)


def _llama3(plain: Tensor, fields: Mapping[str, Any]) -> Tensor:
    """Long wavelengths are divided by ``factor``, short ones kept, those between blended."""
    factor, original = _number(fields, "factor"), _number(fields, "original_max_position_embeddings")
    low, high = _number(fields, "low_freq_factor"), _number(fields, "high_freq_factor")
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * plain / factor + smooth * plain
    scaled = torch.where(wavelength > original / low, plain / factor, plain)
    is_between = ~(wavelength < original / high) & ~(wavelength > original / low)
    return torch.where(is_between, blended, scaled)


def _yarn(
    base: float, dim: int, exponents: Tensor, max_positions: int, fields: Mapping[str, Any]
) -> tuple[Tensor, float]:
    """Frequencies that turn often keep their pace, slow ones are interpolated, a linear ramp between."""
    original = _number(fields, "original_max_position_embeddings")
    factor = float(fields["factor"]) if fields.get("factor") is not None else max_positions / original
    frequencies = base**exponents

    def dimension_of(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = dimension_of(float(fields.get("beta_fast") or 32))
    high = dimension_of(float(fields.get("beta_slow") or 1))
    if fields.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0.0
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    inv_freq = (1.0 / (factor * frequencies)) * ramp + (1.0 / frequencies) * (1 - ramp)

    def magnitude(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    attention = fields.get("attention_factor")
    if attention is None:
        mscale, mscale_all = fields.get("mscale"), fields.get("mscale_all_dim")
        attention = magnitude(float(mscale)) / magnitude(float(mscale_all)) if mscale and mscale_all else magnitude()
    return inv_freq, float(attention)


def _longrope(
    base: float, exponents: Tensor, max_positions: int, seq_len: int, fields: Mapping[str, Any]
) -> tuple[Tensor, float]:
    """One divisor a dimension, from one of two lists: short, or long beyond the original context."""
    original = _number(fields, "original_max_position_embeddings")
    factor = float(fields["factor"]) if fields.get("factor") is not None else max_positions / original
    key = "long_factor" if seq_len > original else "short_factor"
    if fields.get(key) is None or len(fields[key]) != len(exponents):
        raise ModelLoadError(
            f"the model's RoPE scaling needs {len(exponents)} numbers in {key!r}; its config is incomplete"
        )
    attention = fields.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    divisors = torch.tensor(fields[key], dtype=torch.float32)
    return 1.0 / (divisors * base**exponents), float(attention)
