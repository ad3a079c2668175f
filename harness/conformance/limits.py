"""How far numbers may lie apart before they count as wrong, by the precision that the engine declares.

Greedy answers of sound engines differ where the best two tokens are nearly equal: seen divergences have gaps up to 0.003
nats in fp32 (llama.cpp against transformers), 0.12 in bf16 (vLLM) and 0.3 with 4-bit weights.  ``regret`` is what a
returned token may lie below the best one by the judge's count.  ``kl`` bounds the mean k3 estimate.  SGLang's own tests
allow 0.0025 in bf16; the sentinel's logits are larger than those of a trained model: to round its exact ones to bf16 gives
0.0032 to 0.0066 over the prompts of LGP-04 (tests/harness/conformance/test_limits.py).  ``jump`` bounds one token's
log-probability.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.results.schema import EngineInfo


@dataclass(frozen=True, slots=True)
class Limits:
    """All in nats.  ``drift`` bounds the mean absolute difference of log-probabilities (NUM-10)."""

    name: str
    regret: float
    kl: float
    jump: float
    drift: float


FP32 = Limits("fp32", regret=0.05, kl=2e-5, jump=0.05, drift=2e-3)
FP16 = Limits("fp16", regret=0.25, kl=1e-3, jump=0.4, drift=2e-2)
BF16 = Limits("bf16", regret=0.75, kl=2e-2, jump=1.2, drift=6e-2)
QUANTISED = Limits("quantised", regret=1.5, kl=5e-2, jump=3.0, drift=0.3)
# Nothing declared: as loose as bf16.
UNKNOWN = Limits("unknown", regret=0.75, kl=2e-2, jump=1.2, drift=6e-2)


def limits_of(dtype: str | None, kv_dtype: str | None = None) -> Limits:
    """Limits for declared types of weights and KV; the coarser of the two counts."""
    found = [named(text) for text in (dtype, kv_dtype) if text]
    return max(found, key=lambda limits: limits.regret) if found else UNKNOWN


def limits_of_engine(info: EngineInfo, dtype: str | None = None, kv_dtype: str | None = None) -> Limits:
    """By what the engine says of itself; ``dtype`` and ``kv_dtype`` win over that."""
    kv = kv_dtype or str(info.settings.get("kv_dtype") or info.settings.get("cache_type_k") or "") or None
    return limits_of(dtype or info.dtype, kv)


def named(text: str) -> Limits:
    low = text.lower()
    if any(word in low for word in ("fp8", "int8", "int4", "q4", "q5", "q6", "q8", "e4m3", "e5m2", "awq", "gptq")):
        return QUANTISED
    if "bf16" in low or "bfloat16" in low:
        return BF16
    if low in ("auto", "model"):
        return UNKNOWN
    if "f32" in low or "float32" in low or "fp32" in low:
        return FP32
    if "f16" in low or "float16" in low or "fp16" in low or low == "half":
        return FP16
    return UNKNOWN
