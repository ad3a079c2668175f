"""Weights and shape from one GGUF file.

GGUF keeps its own tensor names; this file answers to Hugging Face names, so that one model class serves both formats.
Files of architecture ``llama`` store the rows of Q and K permuted for interleaved RoPE; they are put back into the
half-split order:

::

    stored    pairs (2i, 2i+1) rotate together         row = 2 * i + half
    wanted    pairs (i, i + D/2) rotate together       row = half * D/2 + i
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from reference_engine.config import ModelConfig, RopeScaling
from reference_engine.models.errors import ModelLoadError

MAGIC = b"GGUF"
_FAMILY = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


class GgufFile:
    """Tensors of a GGUF file by Hugging Face name, its metadata, and the model's shape."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as handle:
                magic = handle.read(4)
        except OSError as error:
            raise ModelLoadError(f"cannot read {path}: {error.strerror}") from None
        if magic != MAGIC:
            raise ModelLoadError(
                f"{path} is not a GGUF file (it starts with {magic!r}); give a .gguf file or a model directory"
            )
        try:
            self._reader = gguf.GGUFReader(path)
        except Exception as error:  # the reader raises whatever numpy raises on a damaged file
            raise ModelLoadError(
                f"{path} is a damaged GGUF file ({type(error).__name__}: {error}); download it again"
            ) from None
        self._tensors = {t.name: t for t in self._reader.tensors}
        self.architecture = str(self.get("general.architecture", ""))
        if self.architecture not in _FAMILY:
            raise ModelLoadError(
                f"GGUF architecture {self.architecture or 'unknown'!r} is not supported; "
                f"this engine runs {', '.join(_FAMILY)}"
            )
        self.config = self._read_config()

    def get(self, key: str, default: Any = None) -> Any:
        """Metadata value of ``key``."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def __contains__(self, name: str) -> bool:
        return _gguf_name(name) in self._tensors

    def tensor(self, name: str) -> Tensor:
        """The tensor in fp32, dequantised.  Raises ModelLoadError when missing or not decodable."""
        stored = self._tensors.get(_gguf_name(name))
        if stored is None:
            raise ModelLoadError(
                f"{self.path} lacks the tensor {_gguf_name(name)!r}; the file is incomplete or of another model"
            )
        kind = gguf.GGMLQuantizationType(stored.tensor_type)
        try:
            values = gguf.dequantize(stored.data, kind)
        except NotImplementedError:
            raise ModelLoadError(
                f"tensor {stored.name!r} is {kind.name}, which cannot be decoded; use Q8_0, Q4_1, F16, BF16 or F32"
            ) from None
        tensor = torch.from_numpy(np.array(values, dtype=np.float32, copy=True))
        if self.architecture == "llama":
            if ".self_attn.q_proj." in name:
                tensor = _half_split(tensor, self.config.num_heads)
            elif ".self_attn.k_proj." in name:
                tensor = _half_split(tensor, self.config.num_kv_heads)
        return tensor

    def _need(self, key: str) -> Any:
        value = self.get(f"{self.architecture}.{key}")
        if value is None:
            raise ModelLoadError(f"{self.path} lacks the metadata {self.architecture}.{key}; the file is incomplete")
        return value

    def _read_config(self) -> ModelConfig:
        arch = self.architecture
        heads = int(self._need("attention.head_count"))
        kv_heads = int(self.get(f"{arch}.attention.head_count_kv") or heads)
        hidden, layers = int(self._need("embedding_length")), int(self._need("block_count"))
        if "token_embd.weight" not in self._tensors:
            raise ModelLoadError(f"{self.path} lacks the tensor 'token_embd.weight'; the file is incomplete")
        head_dim = int(self.get(f"{arch}.attention.key_length") or hidden // heads)
        if int(self.get(f"{arch}.rope.dimension_count") or head_dim) != head_dim:
            raise ModelLoadError(
                f"{self.path} rotates only part of each head, which is not supported; only full RoPE is"
            )
        if int(self.get(f"{arch}.expert_count") or 0):
            raise ModelLoadError(f"{self.path} is a mixture of experts, which is not supported; use a dense model")
        max_positions = int(self._need("context_length"))
        window = self.get(f"{arch}.attention.sliding_window")
        bos, eos = self.get("tokenizer.ggml.bos_token_id"), self.get("tokenizer.ggml.eos_token_id")
        ends = [int(e) for e in (eos, self.get("tokenizer.ggml.eot_token_id")) if e is not None]
        return ModelConfig(
            family=_FAMILY[arch],
            vocab_size=int(self._tensors["token_embd.weight"].shape[1]),
            hidden_size=hidden,
            intermediate_size=int(self._need("feed_forward_length")),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            rms_norm_eps=float(self._need("attention.layer_norm_rms_epsilon")),
            rope_theta=float(self.get(f"{arch}.rope.freq_base") or 10_000.0),
            rope_scaling=self._rope_scaling(max_positions, head_dim),
            tie_word_embeddings="output.weight" not in self._tensors,
            qkv_bias="blk.0.attn_q.bias" in self._tensors,
            o_bias="blk.0.attn_output.bias" in self._tensors,
            mlp_bias="blk.0.ffn_up.bias" in self._tensors,
            qk_norm="blk.0.attn_q_norm.weight" in self._tensors,
            sliding_windows=(int(window),) * layers if window else (),
            bos_token_id=None if bos is None else int(bos),
            eos_token_ids=tuple(dict.fromkeys(ends)),
        )

    def _rope_scaling(self, max_positions: int, head_dim: int) -> RopeScaling | None:
        """Scaling from metadata, or from ``rope_freqs``: one divisor a dimension (how Llama 3.1 is stored)."""
        if "rope_freqs.weight" in self._tensors:
            divisors = [
                float(v) for v in np.asarray(self._tensors["rope_freqs.weight"].data, dtype=np.float32)[: head_dim // 2]
            ]
            return RopeScaling(
                "longrope",
                {
                    "short_factor": divisors,
                    "long_factor": divisors,
                    "attention_factor": 1.0,
                    "original_max_position_embeddings": max_positions,
                },
            )
        prefix = f"{self.architecture}.rope.scaling"
        kind, factor = self.get(f"{prefix}.type"), self.get(f"{prefix}.factor")
        if kind in (None, "none") or not factor:
            return None
        if kind not in ("linear", "yarn"):
            raise ModelLoadError(f"RoPE scaling {kind!r} in a GGUF file is not supported; linear and yarn are")
        fields: dict[str, object] = {"factor": float(factor)}
        if kind == "yarn":
            fields["original_max_position_embeddings"] = int(
                self.get(f"{prefix}.original_context_length") or max_positions
            )
            attention = self.get(f"{prefix}.attn_factor")
            if attention:
                fields["attention_factor"] = float(attention)
        return RopeScaling(str(kind), fields)


def _gguf_name(name: str) -> str:
    if name in _GLOBAL:
        return _GLOBAL[name]
    match = _LAYER_NAME.fullmatch(name)
    if match and match[2] in _IN_LAYER:
        return f"blk.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"
    return name


def _half_split(tensor: Tensor, heads: int) -> Tensor:
    """Rows of a Q or K matrix (or bias) from interleaved to half-split rotary order."""
    rest = tensor.shape[1:]
    return tensor.reshape(heads, -1, 2, *rest).transpose(1, 2).reshape(tensor.shape).contiguous()
