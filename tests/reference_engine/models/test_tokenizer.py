"""Tokenizers: from tokenizer.json and from GGUF metadata, against the tokenizers library and transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from reference_engine.models.errors import ModelLoadError
from reference_engine.models.gguf_file import GgufFile
from reference_engine.models.gguf_tokenizer import tokenizer_from_gguf
from reference_engine.models.tokenizer import Tokenizer, byte_level_alphabet, tokenizer_from_directory

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces   three\n\n\tand tabs \r\n ends with space ",
    "numbers 1 22 333 4444 3.14159 1,000,000 0x1F 10²³",
    "I'm you're he'll THEY'VE don't O'Brien's 'quoted'",
    "naïve café Ångström ﬁ ligature É (two ways: E\u0301)",
    "日本語のテキスト、한국어, русский, العربية, עברית, हिन्दी",
    "emoji 🙂👍🏽👨‍👩‍👧‍👦 flags 🇫🇷🇯🇵",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "text<|im_end|>glued <|endoftext|> <|not_special|>",
    "def f(x):\n    return {'a': [1, 2, 3]}  # comment\n",
    "zero\u200bwidth, nbsp\u00a0here, \ufeffbom, control\x01\x7f",
    "a" * 300 + " " * 50 + "!" * 40,
]
CORPUS = [
    "the cat sat on the mat and then the cat ate the rat " * 20,
    "it's 12 o'clock, they've 345 things; we'll see\n\n  if 67 < 89: pass\n" * 20,
    "naïve café 日本語 русский 🙂 " * 20,
]
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What each model's own tokenizer.json says.
OFFICIAL = {
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES_ONLY]),
    "qwen2": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), "isolated"), BYTES_ONLY]
    ),
}


def random_text() -> str:
    """Characters from many corners of Unicode."""
    ranges = [(32, 127), (32, 127), (0xA0, 0x250), (0x400, 0x500), (0x3040, 0x30FF), (0x1F300, 0x1F600), (9, 14)]
    picked = (random.choice(ranges) for _ in range(random.randrange(60)))
    return "".join(chr(random.randrange(*limits)) for limits in picked)


def trained(pre: Any, normalizer: Any = None) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def write_vocabulary(path: Path, kind: str, pre: str | None, pieces: list[str], **fields: Any) -> None:
    """A GGUF file with the metadata of a llama and one small tensor: enough for its tokenizer."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(8)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    import numpy as np

    writer.add_tensor("token_embd.weight", np.zeros((len(pieces), 32), dtype=np.float32))
    writer.add_tokenizer_model(kind)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(pieces)
    for name, value in fields.items():
        getattr(writer, name)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_gguf(backend: tokenizers.Tokenizer, path: Path, pre: str, **fields: Any) -> Tokenizer:
    import json

    raw = json.loads(backend.to_str())
    vocab = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    merges = [" ".join(m) if isinstance(m, list) else m for m in raw["model"]["merges"]]
    special = {token["content"] for token in raw["added_tokens"]}
    write_vocabulary(
        path,
        "gpt2",
        pre,
        vocab,
        add_token_types=[3 if piece in special else 1 for piece in vocab],
        add_token_merges=merges,
        add_bos_token_id=1,
        add_eos_token_id=2,
        **fields,
    )
    return tokenizer_from_gguf(GgufFile(path))


@pytest.mark.parametrize("pre", OFFICIAL)
def test_gguf_byte_level_equals_the_original(pre: str, tmp_path: Path) -> None:
    original = trained(OFFICIAL[pre], normalizers.NFC() if pre == "qwen2" else None)
    ours = as_gguf(original, tmp_path / "v.gguf", pre, add_add_bos_token=False)
    for text in [*TEXTS, *CORPUS, *(random_text() for _ in range(300))]:
        assert ours.encode(text) == original.encode(text).ids, text
        ids = ours.encode(text)
        if pre != "qwen2":  # NFC changes the text
            assert ours.decode(ids, skip_special_tokens=False) == text
            assert b"".join(map(ours.token_bytes, ids)).decode() == text


def test_the_pre_tokenizers_differ(tmp_path: Path) -> None:
    """On one vocabulary, which has digits merged: each cuts its own way, and as the original does."""
    backend = trained(GPT2)
    made = {pre: as_gguf(backend, tmp_path / f"{pre}.gguf", pre, add_add_bos_token=False) for pre in OFFICIAL}
    splits = {pre: tuple(t.encode("cat  12345 THEY'VE\n\n  end")) for pre, t in made.items()}
    assert len(set(splits.values())) == len(OFFICIAL)
    for pre in ("gpt-2", "smollm", "llama-bpe"):
        backend.pre_tokenizer = OFFICIAL[pre]
        for text in [*TEXTS, *CORPUS]:
            assert made[pre].encode(text, add_special_tokens=False) == backend.encode(text).ids, (pre, text)


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="pre-tokenizer 'klingon', which is not supported"):
        as_gguf(trained(GPT2), tmp_path / "v.gguf", "klingon")


def test_bos_and_eos_are_added_when_the_file_says_so(tmp_path: Path) -> None:
    backend = trained(GPT2)
    plain = as_gguf(backend, tmp_path / "a.gguf", "gpt-2")
    assert plain.encode("the cat") == backend.encode("the cat").ids
    edged = as_gguf(backend, tmp_path / "b.gguf", "gpt-2", add_add_bos_token=True, add_add_eos_token=True)
    assert edged.encode("the cat") == [1, *backend.encode("the cat").ids, 2]
    assert edged.encode("the cat", add_special_tokens=False) == backend.encode("the cat").ids
    assert as_gguf(backend, tmp_path / "c.gguf", "llama-bpe").encode("the")[0] == 1, "Llama 3 files default to BOS"


def sentencepiece_like(tmp_path: Path) -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = {"▁": -1.0, "h": -9.0, "e": -8.0, "l": -7.0, "o": -6.0, "▁h": -5.5, "el": -5.0, "lo": -4.0, "▁hel": -3.5}
    words |= {"▁hello": -3.0, "ll": -4.5, "hello": -6.5}
    pieces += list(words)
    write_vocabulary(
        tmp_path / "spm.gguf",
        "llama",
        None,
        pieces,
        add_token_scores=[0.0] * 259 + list(words.values()),
        add_token_types=[2, 3, 3] + [6] * 256 + [1] * len(words),
        add_bos_token_id=1,
        add_eos_token_id=2,
        add_unk_token_id=0,
    )
    return tokenizer_from_gguf(GgufFile(tmp_path / "spm.gguf"))


def test_sentencepiece_vocabulary(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like(tmp_path)
    pieces = [tokenizer.token_bytes(i) for i in tokenizer.encode("hello hello", add_special_tokens=False)]
    assert pieces == [b" hello", b" hello"]
    ids = tokenizer.encode("hello é!")
    assert ids[0] == 1, "BOS is the default"
    assert b"".join(tokenizer.token_bytes(i) for i in ids[1:]) == " hello é!".encode()
    assert tokenizer.decode(ids) == "hello é!"
    assert tokenizer.token_bytes(3 + 0xC3) == b"\xc3"


def test_sentencepiece_prefers_the_best_scored_pair(tmp_path: Path) -> None:
    """In "llo" the later pair "lo" (-4) beats the earlier "ll" (-4.5)."""
    tokenizer = sentencepiece_like(tmp_path)
    pieces = [tokenizer.token_bytes(i) for i in tokenizer.encode("llo", add_special_tokens=False)]
    assert pieces == [b" ", b"l", b"lo"]


def test_byte_level_alphabet_is_the_library_s() -> None:
    assert set(byte_level_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    encoder = trained(GPT2)
    for char in "é日🙂 \n":
        text = "".join(encoder.id_to_token(i) for i in encoder.encode(char).ids)
        assert bytes(byte_level_alphabet()[c] for c in text) == char.encode()


def test_directory_tokenizer_equals_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=trained(GPT2), bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    fast.save_pretrained(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), tokenizer_from_directory(tmp_path)
    for text in [*TEXTS, *(random_text() for _ in range(50))]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)
    assert ours.special_ids == {0, 1, 2}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert ours.render_chat(messages, False) == theirs.apply_chat_template(messages, tokenize=False)


def test_token_bytes_of_no_token(tmp_path: Path) -> None:
    tokenizer = as_gguf(trained(GPT2), tmp_path / "v.gguf", "gpt-2")
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.token_bytes(1) == b"<|im_start|>"


def test_truncation_in_the_file_is_not_applied(tmp_path: Path) -> None:
    backend = trained(GPT2)
    backend.enable_truncation(3)
    backend.enable_padding(length=20)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(tokenizer_from_directory(tmp_path).encode("the cat sat on the mat")) == 6
