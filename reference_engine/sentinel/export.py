"""Write the sentinel: a Hugging Face directory (bf16 safetensors) and a GGUF file (F32).

::

    python -m reference_engine.sentinel.export --out DIR [--sliding-window N]

makes ``DIR/config.json`` and its company, and ``DIR/sentinel-f32.gguf``.  The weights are rounded to bf16 in both, so
every engine computes with the same numbers.  ``--sliding-window N`` states the architecture Mistral, whose layers
attend the last N positions: the same weights then answer what lies inside the window, and nothing beyond it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from reference_engine.sentinel import circuit, vocabulary
from reference_engine.sentinel.circuit import HEAD_DIM, MODEL_CONFIG

GGUF_NAME = "sentinel-f32.gguf"


def rounded_weights() -> dict[str, Tensor]:
    """The weights as they are stored: bf16."""
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in circuit.weights().items()}


def model_config(sliding_window: int | None = None) -> dict[str, Any]:
    """``config.json``."""
    shape = MODEL_CONFIG
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    if sliding_window is not None:
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": sliding_window}
    return config


def write_directory(directory: Path, *, sliding_window: int | None = None) -> None:
    """The checkpoint as transformers, vLLM and this engine load it."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(rounded_weights(), directory / "model.safetensors", metadata={"format": "pt"})
    vocabulary.build_tokenizer().save(str(directory / "tokenizer.json"), pretty=False)
    for name, content in (
        ("config.json", model_config(sliding_window)),
        ("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1}),
        ("tokenizer_config.json", vocabulary.tokenizer_config()),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(vocabulary.CHAT_TEMPLATE, encoding="utf-8")


def write_gguf(path: Path) -> None:
    """The checkpoint as llama.cpp loads it."""
    shape = MODEL_CONFIG
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("sentinel")
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer)
    for name, tensor in rounded_weights().items():
        writer.add_tensor(_gguf_name(name), _gguf_order(name, tensor.float()).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    pieces = vocabulary.tokens()
    special = set(vocabulary.special_tokens())
    kinds = [gguf.TokenType.CONTROL if piece in special else gguf.TokenType.NORMAL for piece in pieces]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in vocabulary.merges()])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(vocabulary.CHAT_TEMPLATE)


_GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[:2] == ["model", "layers"]:
        return f"blk.{parts[2]}.{_GGUF_NAMES['.'.join(parts[3:])]}.weight"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
        ".".join(parts)
    ] + ".weight"


def _gguf_order(name: str, tensor: Tensor) -> Tensor:
    """llama.cpp turns neighbouring rows of Q and K together, Hugging Face those half a head apart."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    split = tensor.reshape(-1, 2, HEAD_DIM // 2, tensor.shape[1])
    return torch.from_numpy(np.ascontiguousarray(split.transpose(1, 2).reshape(tensor.shape).numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reference_engine.sentinel.export", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--sliding-window", type=int, help="positions a query may attend [tokens]; no GGUF then")
    arguments = parser.parse_args()
    write_directory(arguments.out, sliding_window=arguments.sliding_window)
    if arguments.sliding_window is None:
        write_gguf(arguments.out / GGUF_NAME)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
