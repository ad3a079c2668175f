"""Tokenizer from a GGUF file's metadata: byte-level BPE (``gpt2``) and SentencePiece BPE (``llama``).

GGUF stores no pre-tokenizer, only its name (``tokenizer.ggml.pre``); the splitting rules below are those that the
named models' own ``tokenizer.json`` files state.
"""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from reference_engine.models.errors import ModelLoadError
from reference_engine.models.gguf_file import GgufFile
from reference_engine.models.tokenizer import Tokenizer

# Values of tokenizer.ggml.token_type.
_CONTROL, _USER_DEFINED, _UNKNOWN = 3, 4, 2

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3_SPLIT = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> how text is cut before BPE: GPT-2's rule, GPT-2's with single digits, or a pattern of its own.
_GPT2_NAMES = frozenset({"default", "gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais"})
_DIGIT_NAMES = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
_PATTERNS = {
    "llama-bpe": _LLAMA3_SPLIT,
    "llama3": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "smaug-bpe": _LLAMA3_SPLIT,
    "qwen2": _QWEN2_SPLIT,
    "deepseek-r1-qwen": _QWEN2_SPLIT,
    "stablelm2": _QWEN2_SPLIT,
}
_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3", "smaug-bpe"})


def tokenizer_from_gguf(file: GgufFile) -> Tokenizer:
    """Raises ModelLoadError when the file carries no tokenizer or one of a kind that is not supported."""
    kind, tokens = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.tokens")
    if not kind or not tokens:
        raise ModelLoadError(
            f"{file.path} carries no tokenizer; use a GGUF file that was converted together with its vocabulary"
        )
    pieces = [str(token) for token in tokens]
    if kind == "gpt2":
        backend = _byte_level_bpe(file, pieces)
    elif kind == "llama":
        backend = _sentencepiece_bpe(file, pieces)
    else:
        raise ModelLoadError(
            f"{file.path} has a {kind!r} tokenizer, which is not supported; gpt2 and llama tokenizers are"
        )
    types = file.get("tokenizer.ggml.token_type") or [1] * len(pieces)
    backend.add_special_tokens(
        [AddedToken(p, normalized=False, special=True) for p, t in zip(pieces, types, strict=True) if t == _CONTROL]
    )
    backend.add_tokens(
        [AddedToken(p, normalized=False) for p, t in zip(pieces, types, strict=True) if t == _USER_DEFINED]
    )
    special = _special_tokens(file, pieces)
    _add_edges(backend, file, kind, special)
    return Tokenizer(backend, chat_template=_text_or_none(file.get("tokenizer.chat_template")), special_tokens=special)


def _byte_level_bpe(file: GgufFile, pieces: list[str]) -> tokenizers.Tokenizer:
    split = (str(merge).partition(" ") for merge in file.get("tokenizer.ggml.merges") or [])
    merges = [(left, right) for left, _, right in split]
    pre = str(file.get("tokenizer.ggml.pre") or "default")
    vocab = {piece: index for index, piece in enumerate(pieces)}
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=pre in _WHOLE_WORDS_FIRST))
    except Exception as error:  # the library raises plain Exception
        raise ModelLoadError(f"{file.path} carries a damaged tokenizer ({error}); download the file again") from None
    if pre in _GPT2_NAMES:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif pre in _DIGIT_NAMES:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif pre in _PATTERNS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PATTERNS[pre]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        known = ", ".join(sorted(_GPT2_NAMES | _DIGIT_NAMES | set(_PATTERNS)))
        raise ModelLoadError(f"{file.path} uses the pre-tokenizer {pre!r}, which is not supported; known are {known}")
    if pre in ("qwen2", "deepseek-r1-qwen"):
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_bpe(file: GgufFile, pieces: list[str]) -> tokenizers.Tokenizer:
    """SentencePiece's BPE has scores instead of merges: the pair with the best-scored result goes first."""
    scores = file.get("tokenizer.ggml.scores")
    if not scores:
        raise ModelLoadError(f"{file.path} carries a llama tokenizer without scores; the file is incomplete")
    vocab = {piece: index for index, piece in enumerate(pieces)}
    unknown = pieces[int(file.get("tokenizer.ggml.unknown_token_id", 0) or 0)]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab,
            _merges_by_score(vocab, pieces, [float(s) for s in scores]),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(file.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    return backend


def _merges_by_score(vocab: dict[str, int], pieces: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every split of every piece into two pieces, best-scored result first, ties by vocabulary order."""
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, score in zip(pieces, scores, strict=True):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-score, vocab[left], vocab[right], left, right))
    ranked.sort()
    return [(left, right) for _, _, _, left, right in ranked]


def _special_tokens(file: GgufFile, pieces: list[str]) -> dict[str, str]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    found: dict[str, str] = {}
    for name, key in names.items():
        index = file.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None and 0 <= int(index) < len(pieces):
            found[name] = pieces[int(index)]
    return found


def _add_edges(backend: tokenizers.Tokenizer, file: GgufFile, kind: str, special: dict[str, str]) -> None:
    """BOS before and EOS after every text, when the file asks for them (SentencePiece and Llama 3 default to BOS)."""
    default = kind == "llama" or str(file.get("tokenizer.ggml.pre")) in _WHOLE_WORDS_FIRST
    flag = file.get("tokenizer.ggml.add_bos_token")
    bos = special.get("bos_token") if (default if flag is None else flag) else None
    eos = special.get("eos_token") if file.get("tokenizer.ggml.add_eos_token") else None
    if bos is None and eos is None:
        return
    pattern = " ".join(part for part in (bos and f"{bos}:0", "$A:0", eos and f"{eos}:0") if part)
    used = [(token, backend.token_to_id(token)) for token in (bos, eos) if token is not None]
    backend.post_processor = processors.TemplateProcessing(single=pattern.split(" "), special_tokens=used)


def _text_or_none(value: Any) -> str | None:
    return str(value) if value else None
