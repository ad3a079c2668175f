"""GGUF files written by gguf's own writer, in every stored type, against the dequantised weights."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from reference_engine.models.errors import ModelLoadError
from reference_engine.models.gguf_file import GgufFile

Q = gguf.GGMLQuantizationType
TYPES = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q6_K]
CAN_QUANTISE = {Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1}

TO_GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
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


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{TO_GGUF[rest]}.{kind}"
    return f"{TO_GGUF[stem]}.{kind}"


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's permutation of Q and K: half-split rotary order to interleaved."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path, model: Any, arch: str, kind: Any = Q.F32, *, tokenizer: bool = True, drop: str = "", **metadata: Any
) -> dict[str, torch.Tensor]:
    """Write a transformers model; returns the weights as they will be read back (dequantised), by Hugging Face name."""
    c = model.config
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim if getattr(c, "head_dim", None) else c.hidden_size // c.num_attention_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    for key, value in metadata.items():
        getattr(writer, key)(value)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        from tokenizers import pre_tokenizers

        pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
        pieces += [f"<extra{i}>" for i in range(c.vocab_size - len(pieces) - 2)] + ["<s>", "</s>"]
        writer.add_token_list(pieces)
        writer.add_token_types([1] * (len(pieces) - 2) + [3, 3])
        writer.add_token_merges(["t h"])
        writer.add_bos_token_id(len(pieces) - 2)
        writer.add_eos_token_id(len(pieces) - 1)
    read_back: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        stored = values
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = c.num_attention_heads if ".q_proj." in name else c.num_key_value_heads
            stored = interleave(values, heads)
        if values.ndim == 2 and kind != Q.F32:
            data = gguf.quantize(stored, kind)
            back = gguf.dequantize(data, kind)
            if arch == "llama" and stored is not values:
                heads = c.num_attention_heads if ".q_proj." in name else c.num_key_value_heads
                back = back.reshape(heads, -1, 2, back.shape[1]).swapaxes(1, 2).reshape(back.shape)
            read_back[name] = torch.from_numpy(np.array(back, dtype=np.float32))
            if gguf_name(name) != drop:
                writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
        else:
            read_back[name] = tensor.float()
            if gguf_name(name) != drop:
                writer.add_tensor(gguf_name(name), np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_back


SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.mark.parametrize("kind", sorted(CAN_QUANTISE), ids=lambda kind: kind.name)
def test_a_llama_in_every_type(kind: Any, tmp_path: Path, save_tiny: Any, load_tiny: Any, run_paged: Any) -> None:
    _, model = save_tiny("llama", **SIZES)
    file = tmp_path / "model.gguf"
    weights = write_gguf(file, model, "llama", kind)
    model.load_state_dict(weights)  # the reference computes with exactly what the file holds
    loaded = load_tiny(file)
    for name, expected in weights.items():
        assert torch.equal(GgufFile(file).tensor(name), expected), name
    tokens = [random.randrange(300) for _ in range(30)]
    with torch.inference_mode():
        reference = model(torch.tensor([tokens])).logits[0]
    ours = run_paged(loaded, tokens, [12, 1, 1, 16])
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=2e-4 * float(reference.abs().max()))


@pytest.mark.parametrize(
    ("family", "extra"), [("qwen2", {"tie_word_embeddings": True}), ("qwen3", {}), ("llama", {"attention_bias": True})]
)
def test_other_families(
    family: str, extra: dict[str, Any], tmp_path: Path, save_tiny: Any, load_tiny: Any, run_paged: Any
) -> None:
    _, model = save_tiny(family, **SIZES, **extra)
    file = tmp_path / "model.gguf"
    model.load_state_dict(write_gguf(file, model, family, Q.F16), strict=False)
    loaded = load_tiny(file)
    assert loaded.config.family == family
    tokens = [random.randrange(300) for _ in range(20)]
    with torch.inference_mode():
        reference = model(torch.tensor([tokens])).logits[0]
    ours = run_paged(loaded, tokens, [12, 1, 7])
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=2e-4 * float(reference.abs().max()))


def test_types_that_only_decode(tmp_path: Path) -> None:
    """Q6_K has no encoder in gguf; random bytes of the right size decode to the library's own numbers."""
    block, size = gguf.GGML_QUANT_SIZES[Q.Q6_K]
    data = np.random.default_rng().integers(0, 60, (4, 256 // block * size), dtype=np.uint8)
    path = tmp_path / "q6.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 8),
        (writer.add_embedding_length, 256),
        (writer.add_feed_forward_length, 8),
        (writer.add_head_count, 2),
        (writer.add_layer_norm_rms_eps, 1e-5),
    ):
        add(value)
    writer.add_tensor("token_embd.weight", data, raw_dtype=Q.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = GgufFile(path).tensor("model.embed_tokens.weight")
    assert torch.equal(read, torch.from_numpy(gguf.dequantize(data, Q.Q6_K)))


def test_rope_divisors_are_read(tmp_path: Path, save_tiny: Any) -> None:
    """Llama 3.1 in GGUF: scaling is a tensor of divisors."""
    from reference_engine.models.rope import inverse_frequencies

    _, model = save_tiny("llama", **SIZES)
    path = tmp_path / "model.gguf"
    divisors = np.linspace(1, 8, 8, dtype=np.float32)

    class WithDivisors(gguf.GGUFWriter):
        def write_header_to_file(self, *args: Any, **kwargs: Any) -> None:
            self.add_tensor("rope_freqs.weight", divisors)
            super().write_header_to_file(*args, **kwargs)

    original, gguf.GGUFWriter = gguf.GGUFWriter, WithDivisors
    try:
        write_gguf(path, model, "llama")
    finally:
        gguf.GGUFWriter = original
    ours, factor = inverse_frequencies(GgufFile(path).config, 100)
    plain = 1.0 / 10_000.0 ** (torch.arange(0, 16, 2).float() / 16)
    torch.testing.assert_close(ours, plain / torch.from_numpy(divisors))
    assert factor == 1.0


def test_yarn_metadata(tmp_path: Path, save_tiny: Any) -> None:
    _, model = save_tiny("qwen2", **SIZES)
    path = tmp_path / "model.gguf"
    scaling = {
        "add_rope_scaling_type": gguf.RopeScalingType.YARN,
        "add_rope_scaling_factor": 4.0,
        "add_rope_scaling_orig_ctx_len": 128,
    }
    write_gguf(path, model, "qwen2", **scaling)
    found = GgufFile(path).config.rope_scaling
    assert found is not None
    assert found.kind == "yarn"
    assert found.parameters == {"factor": 4.0, "original_max_position_embeddings": 128}


def test_damaged_and_foreign_files(tmp_path: Path, save_tiny: Any, load_tiny: Any) -> None:
    text = tmp_path / "a.gguf"
    text.write_text("hello, I am not a model")
    with pytest.raises(ModelLoadError, match="is not a GGUF file"):
        load_tiny(text)
    text.write_bytes(b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 40)
    with pytest.raises(ModelLoadError, match="damaged GGUF file"):
        load_tiny(text)
    _, model = save_tiny("llama", **SIZES)
    file = tmp_path / "b.gguf"
    write_gguf(file, model, "llama", drop="blk.1.ffn_up.weight")
    with pytest.raises(ModelLoadError, match=r"lacks the tensor 'blk.1.ffn_up.weight'"):
        load_tiny(file)
    write_gguf(file, model, "llama", tokenizer=False)
    with pytest.raises(ModelLoadError, match="carries no tokenizer"):
        load_tiny(file)
    write_gguf(file, model, "gemma3")
    with pytest.raises(ModelLoadError, match="architecture 'gemma3' is not supported"):
        load_tiny(file)
    whole = tmp_path / "c.gguf"
    write_gguf(whole, model, "llama")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ModelLoadError):
        load_tiny(whole)
