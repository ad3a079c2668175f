"""The embedded model itself: its tokenizer, template and shape against transformers reading the same file."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from reference_engine.models.embedded import ensure_embedded_model
from reference_engine.models.errors import ModelLoadError
from reference_engine.models.gguf_file import GgufFile
from reference_engine.models.gguf_tokenizer import tokenizer_from_gguf
from reference_engine.models.tokenizer import Tokenizer

TEXTS = [
    "",
    " leading and trailing ",
    "Paging keeps 96 % of KV memory useful; 2^10 = 1024, pi = 3.14159265.",
    "I'm sure they've said it isn't what we'd want, y'all'll see.",
    "naïve café Ångström ﬁ E\u0301 — “quotes” … ½ ² ①",
    "日本語のテキスト。한국어 русский العربية עברית हिन्दी ไทย",
    "🙂👍🏽👨‍👩‍👧‍👦🇫🇷 mixed with text🙂and no spaces",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<|endoftext|><repo_name><|nope|>",
    "def f(x):\n\treturn {'a': [1, 2, 3]}  # comment\r\n\r\n\n   \t x\n",
    "https://example.org/a?b=c&d=%20#e user@host.tld C:\\path\\file.txt",
    "zero\u200bwidth nbsp\u00a0 \ufeffbom \x01\x7f control",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa        !!!!!!!!!!!!!!!",
    "THE QUICK BROWN FOX 1234567890 the quick brown fox",
]


def random_text() -> str:
    ranges = [(32, 127), (32, 127), (48, 58), (0xA0, 0x250), (0x3040, 0x30FF), (0x1F300, 0x1F600), (9, 14)]
    picked = (random.choice(ranges) for _ in range(random.randrange(80)))
    return "".join(chr(random.randrange(*limits)) for limits in picked)


@pytest.fixture(scope="module")
def pair() -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    try:
        path = ensure_embedded_model()
    except ModelLoadError as error:
        pytest.skip(f"needs the embedded model: {error}")
    return tokenizer_from_gguf(GgufFile(path)), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def test_ids_equal_transformers(pair: tuple[Tokenizer, Any]) -> None:
    """transformers' GGUF reader forgets that this model's own tokenizer cuts digits off before everything else (GGUF:
    ``pre`` = smollm), which shows where two blanks precede a digit; so its pre-tokenizer is set right first."""
    ours, theirs = pair
    texts = [*TEXTS, *(random_text() for _ in range(500))]
    for text in texts:
        if text.isascii() and not re.search(r"\s\s\d", text):
            assert ours.encode(text) == theirs.encode(text), repr(text)
    backend = theirs.backend_tokenizer
    original = backend.pre_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    try:
        for text in texts:
            ids = theirs.encode(text)
            assert ours.encode(text) == ids, repr(text)
            assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, clean_up_tokenization_spaces=False)
            assert b"".join(map(ours.token_bytes, ids)).decode() == text
    finally:
        backend.pre_tokenizer = original


def test_every_token_has_its_bytes(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.vocab_size == len(theirs) == 49152
    for token in random.sample(range(49152), 2000):
        text = theirs.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if "�" not in text:
            assert ours.token_bytes(token) == text.encode()
        else:
            assert 1 <= len(ours.token_bytes(token)) <= 64


def test_special_tokens(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    assert ours.special_ids == frozenset(range(17))
    assert ours.decode([1, 9690, 2]) == "system"


def test_chat_template_equals_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    chats = [
        [{"role": "user", "content": "What is 2 + 2?"}],
        [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "  Hi <b> & 'you' "}],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "é 漢 🙂"},
        ],
    ]
    assert ours.has_chat_template
    for chat in chats:
        for prompt in (True, False):
            expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
            assert ours.render_chat(chat, prompt) == expected


def test_shape() -> None:
    try:
        config = GgufFile(ensure_embedded_model()).config
    except ModelLoadError as error:
        pytest.skip(f"needs the embedded model: {error}")
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim) == (
        30,
        576,
        9,
        3,
        64,
    )
    assert config.kv_bytes_per_token(4) == 46_080
    assert (config.rope_theta, config.max_position_embeddings, config.vocab_size) == (100_000.0, 8192, 49152)
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (2,)
