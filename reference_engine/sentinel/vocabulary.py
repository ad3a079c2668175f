"""How the sentinel's tokens are spelled: a byte-level BPE whose merges build four-letter words with a space before them.

::

    id        token                                    code word
    0 .. 3    <|bos|> <|eos|> and two unused ones      id
    4 .. 259  the 256 bytes                            id
    260 .. 4095   " baba", " babi", ... " xuyu"        id      two syllables of 16 consonants and 4 vowels
    4096 ..   "ba" ... and " ba" ...                   none    steps on the way to a word, never seen in a text of words

    merges    b + a -> ba          " " + ba -> " ba"          " ba" + bi -> " babi"

Any text can be written (by its bytes), any tokenizer that reads GPT-2's format can read it.  The partner of a word
(the complement of its code word, ``4095 - id``) is a word, except for the 260 highest, whose partners are bytes.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from reference_engine.models.tokenizer import byte_level_alphabet
from reference_engine.sentinel.code import NUM_WORDS

BOS, EOS = "<|bos|>", "<|eos|>"
SPECIAL = (BOS, EOS, "<|unused2|>", "<|unused3|>")
CONSONANTS, VOWELS = "bcdfjlmnqrstvwxy", "aiou"
SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)
FIRST_BYTE = len(SPECIAL)
FIRST_WORD = FIRST_BYTE + 256
SPACE = "Ġ"  # how a byte-level vocabulary writes a space
VOCAB_SIZE = 4224  # the last few ids are unused, so that it is a multiple of 64
CONTEXT = 8192

# The roles' words are common words: a template of special tokens could not be asked for in a passage.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'system': ' data', 'user': ' lima', 'assistant': ' sofa'}[message['role']] }}{{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' sofa' }}{% endif %}"
)


def words() -> list[str]:
    """Words of the ids from FIRST_WORD on, as the vocabulary writes them."""
    spelled = [f"{SPACE}{first}{second}" for first in SYLLABLES for second in SYLLABLES]
    return spelled[: NUM_WORDS - FIRST_WORD]


def tokens() -> list[str]:
    """Every token, by id."""
    by_byte = {value: char for char, value in byte_level_alphabet().items()}
    known = [*SPECIAL, *(by_byte[value] for value in range(256)), *words(), *SYLLABLES]
    known += [SPACE + syllable for syllable in SYLLABLES]
    return [*known, *(f"<|unused{index}|>" for index in range(len(known), VOCAB_SIZE))]


def merges() -> list[tuple[str, str]]:
    """BPE merges, first ones first."""
    syllables = [(syllable[0], syllable[1]) for syllable in SYLLABLES]
    beginnings = [(SPACE, syllable) for syllable in SYLLABLES]
    return [*syllables, *beginnings, *((spelled[:3], spelled[3:]) for spelled in words())]


def special_tokens() -> list[str]:
    return [token for token in tokens() if token.startswith("<|")]


def build_tokenizer() -> Tokenizer:
    """The tokenizer; it puts BOS before every text."""
    vocabulary = {token: index for index, token in enumerate(tokens())}
    backend = Tokenizer(models.BPE(vocabulary, merges(), fuse_unk=False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens()])
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return backend


def tokenizer_config() -> dict[str, Any]:
    """``tokenizer_config.json``, without the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
