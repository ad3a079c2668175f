"""The Llama family from one block description: Llama, Mistral, Qwen2, Qwen3, SmolLM2.

The model is pure: it knows weights, positions and nothing of sequences, caches or block tables.  Attention is a
function that it is handed (``Attend``), so the same object serves any cache layout, a mixed batch or a test that
attends densely.

::

    x -> norm -> [Wq Wk Wv] -> (QK norm) -> RoPE -> attend -> Wo -> + -> norm -> [Wgate Wup] -> silu*mul -> Wdown -> +
    |___________________________________________________________|   |______________________________________________|
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from reference_engine.config import ModelConfig
from reference_engine.models.errors import ModelLoadError
from reference_engine.models.ops import Ops
from reference_engine.models.rope import cos_sin, inverse_frequencies


class Attend(Protocol):
    """Attention of layer ``layer``: ``query [T, Hq, D]``, ``key, value [T, Hkv, D]``, rotated -> ``[T, Hq, D]``."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


@runtime_checkable
class RotatingAttend(Attend, Protocol):
    """An ``Attend`` that can also take the whole projection ``[T, Hq + 2 Hkv, D]`` and rotate queries and keys itself."""

    def rotate_and_attend(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...


class WeightSource(Protocol):
    """Where tensors come from, by Hugging Face name."""

    def __contains__(self, name: str) -> bool: ...

    def tensor(self, name: str) -> Tensor: ...


@dataclass(slots=True)
class _Block:
    input_norm: Any
    qkv: Any
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Any
    mlp_norm: Any
    gate_up: Any
    down: Any


class LlamaModel:
    """One loaded model.  ``max_model_len`` (tokens) fixes RoPE variants that depend on length; None: what it states."""

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightSource,
        ops: Ops,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int | None = None,
    ) -> None:
        self.config = config
        self.ops = ops
        self.dtype = dtype
        self.device = device
        inv_freq, self.rope_factor = inverse_frequencies(config, max_model_len or config.max_position_embeddings)
        self.inv_freq = inv_freq.to(device)
        load = _Loader(weights, ops, dtype, device, config.rms_norm_eps)
        c = config
        self.embed_tokens = load.plain("model.embed_tokens.weight", (c.vocab_size, c.hidden_size))
        self.blocks = [self._load_block(load, f"model.layers.{i}") for i in range(c.num_layers)]
        self.norm = load.norm("model.norm.weight", c.hidden_size)
        head = "model.embed_tokens" if c.tie_word_embeddings else "lm_head"
        self.lm_head = load.fused([head], [c.vocab_size], c.hidden_size, bias=False)

    def _load_block(self, load: _Loader, name: str) -> _Block:
        c = self.config
        q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        return _Block(
            input_norm=load.norm(f"{name}.input_layernorm.weight", c.hidden_size),
            qkv=load.fused(
                [f"{attention}.{p}_proj" for p in "qkv"], [q_size, kv_size, kv_size], c.hidden_size, bias=c.qkv_bias
            ),
            query_norm=load.plain(f"{attention}.q_norm.weight", (c.head_dim,)) if c.qk_norm else None,
            key_norm=load.plain(f"{attention}.k_norm.weight", (c.head_dim,)) if c.qk_norm else None,
            output=load.fused([f"{attention}.o_proj"], [c.hidden_size], q_size, bias=c.o_bias),
            mlp_norm=load.norm(f"{name}.post_attention_layernorm.weight", c.hidden_size),
            gate_up=load.fused(
                [f"{mlp}.gate_proj", f"{mlp}.up_proj"], [c.intermediate_size] * 2, c.hidden_size, bias=c.mlp_bias
            ),
            down=load.fused([f"{mlp}.down_proj"], [c.hidden_size], c.intermediate_size, bias=c.mlp_bias),
        )

    def forward(self, input_ids: Tensor, positions: Tensor, attend: Attend, logit_rows: Tensor | None = None) -> Tensor:
        """Logits, fp32 ``[R, V]``, of the flat rows ``logit_rows`` int64 ``[R]`` (None = all T rows).

        input_ids, positions: int64 ``[T]``.
        """
        c, ops = self.config, self.ops
        heads, kv_heads, dim = c.num_heads, c.num_kv_heads, c.head_dim
        tokens = input_ids.shape[0]
        rows = ops.padded_rows(tokens)
        if rows > tokens:  # the rows added here are computed along, seen by no attention, and dropped with the logits
            input_ids, positions = (functional.pad(t, (0, rows - tokens)) for t in (input_ids, positions))
        cos, sin = cos_sin(positions, self.inv_freq, self.rope_factor, self.dtype)
        rotating = attend if isinstance(attend, RotatingAttend) and rows == tokens and not c.qk_norm else None
        delta = ops.embedding(input_ids, self.embed_tokens)
        residual: Tensor | None = None
        for index, block in enumerate(self.blocks):
            normed, residual = ops.rms_norm(delta, block.input_norm, c.rms_norm_eps, residual)
            qkv = ops.linear(normed, block.qkv).view(rows, heads + 2 * kv_heads, dim)
            if rotating is not None:
                attended = rotating.rotate_and_attend(index, qkv, cos, sin)
            else:
                attended = self._rotate_then_attend(index, block, qkv, cos, sin, attend, tokens)
            delta = ops.linear(attended.reshape(rows, heads * dim), block.output)
            normed, residual = ops.rms_norm(delta, block.mlp_norm, c.rms_norm_eps, residual)
            delta = ops.linear(ops.silu_mul(ops.linear(normed, block.gate_up)), block.down)
        if logit_rows is None and rows > tokens:
            logit_rows = torch.arange(tokens, device=self.device)
        if logit_rows is not None:
            delta = delta.index_select(0, logit_rows)
            residual = None if residual is None else residual.index_select(0, logit_rows)
        normed, _ = ops.rms_norm(delta, self.norm, c.rms_norm_eps, residual)
        return ops.logits(normed, self.lm_head)

    def _rotate_then_attend(
        self, index: int, block: _Block, qkv: Tensor, cos: Tensor, sin: Tensor, attend: Attend, tokens: int
    ) -> Tensor:
        """Norm and rotate queries and keys of ``qkv [rows, Hq + 2 Hkv, D]``; attend with the first ``tokens`` rows."""
        c, ops = self.config, self.ops
        heads, kv_heads = c.num_heads, c.num_kv_heads
        if block.query_norm is not None and block.key_norm is not None:
            query = ops.rope(ops.head_norm(qkv[:, :heads], block.query_norm, c.rms_norm_eps), cos, sin)
            key = ops.rope(ops.head_norm(qkv[:, heads : heads + kv_heads], block.key_norm, c.rms_norm_eps), cos, sin)
        else:
            rotated = ops.rope(qkv[:, : heads + kv_heads], cos, sin)
            query, key = rotated[:, :heads], rotated[:, heads:]
        value = qkv[:, heads + kv_heads :]
        if qkv.shape[0] == tokens:
            return attend(index, query, key, value)
        attended = torch.zeros_like(query)
        attended[:tokens] = attend(index, query[:tokens], key[:tokens], value[:tokens])
        return attended


class _Loader:
    """Reads, checks, casts and fuses tensors; remembers nothing."""

    def __init__(
        self, weights: WeightSource, ops: Ops, dtype: torch.dtype, device: torch.device, norm_eps: float
    ) -> None:
        self.weights, self.ops, self.dtype, self.device, self.norm_eps = weights, ops, dtype, device, norm_eps

    def norm(self, name: str, width: int) -> Any:
        return self.ops.prepare_norm(self.plain(name, (width,)), self.norm_eps)

    def plain(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self.weights.tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"tensor {name!r} has shape {list(tensor.shape)}, the model's config says {list(shape)}; "
                "the files do not belong together"
            )
        return tensor.to(device=self.device, dtype=self.dtype)

    def fused(self, names: list[str], outs: list[int], inputs: int, *, bias: bool) -> Any:
        """The matrices stacked along their outputs, prepared as one."""
        parts = [self.plain(f"{name}.weight", (out, inputs)) for name, out in zip(names, outs, strict=True)]
        biases = [self.plain(f"{name}.bias", (out,)) for name, out in zip(names, outs, strict=True)] if bias else []
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.ops.prepare_linear(weight, torch.cat(biases) if biases else None)
