"""Scales of an fp8 cache, measured by running a text through the model without a cache.

A scale maps the largest magnitude that a head's K (or V) took in the text, times ``MARGIN``, to the largest fp8 number.
fp8 has the same relative precision at every magnitude, so the margin costs almost nothing; without it an outlier that the
text did not show would be clipped.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reference_engine.attention.kv_format import FP8_MAX, SMALLEST_SCALE
from reference_engine.models.llama import LlamaModel

MARGIN = 2.0
TEXT = """The quick brown fox jumps over the lazy dog. In 1969, two astronauts walked on the Moon; 3.14159 is close to pi.
def add(a, b):
    return a + b  # not a word of prose
"Qui vivra verra", dit-elle. Question: what is 17 * 23? Answer: 391. {"name": "Ada", "born": 1815, "tags": ["x", "y"]}
Once upon a time there was a small village at the foot of a mountain, and everybody in it knew everybody else by name.
<html><body><p>Hello, world!</p></body></html> SELECT count(*) FROM users WHERE id > 10 ORDER BY name DESC; #!? ~~ 0xFF
"""


@torch.inference_mode()
def measure_scales(model: LlamaModel, tokens: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Per layer: fp32 scales ``[Hkv]`` of K and of V, from the activations of ``tokens``."""
    largest: list[tuple[Tensor, Tensor]] = []
    scale = model.config.head_dim**-0.5

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        largest.append((key.float().abs().amax((0, 2)), value.float().abs().amax((0, 2))))
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        attended = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return attended[0].transpose(0, 1)

    device = model.device
    ids = torch.tensor(tokens, device=device)
    model.forward(ids, torch.arange(len(tokens), device=device), attend, torch.tensor([0], device=device))
    return [tuple((m * MARGIN / FP8_MAX).clamp(min=SMALLEST_SCALE) for m in pair) for pair in largest]  # type: ignore[misc]
