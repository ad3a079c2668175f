"""Text to token ids and back, with the bytes of every token.

Built on the ``tokenizers`` library; what a model's own ``tokenizer.json`` says is what happens.  ``token_bytes``
exists because a token need not be whole characters: logprobs report its bytes, and a stream may only show text once
the bytes form characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from reference_engine.models.chat_template import ChatTemplate
from reference_engine.models.errors import ModelLoadError
from reference_engine.models.safetensors_dir import read_json

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's map from printable characters to the 256 byte values they stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Tokenizer:
    """``bos_id`` / ``eos_id`` are None when the model names none.  ``vocab_size`` counts added tokens too."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        named = dict(special_tokens or {})
        self._template = ChatTemplate(chat_template, named)
        self.bos_id = self._id_of(named.get("bos_token"))
        self.eos_id = self._id_of(named.get("eos_token"))
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._added = {i: token.content.encode("utf-8") for i, token in added.items()}
        self._is_byte_level = '"ByteLevel"' in json.dumps(_components(backend))
        self._alphabet = byte_level_alphabet()

    @property
    def has_chat_template(self) -> bool:
        return self._template.source is not None

    @property
    def chat_template(self) -> str | None:
        """The template's Jinja source."""
        return self._template.source

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``.  Special tokens written out in it become their ids, as in Hugging Face tokenizers."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; incomplete characters become U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that this token contributes; b"" for an id that no token has."""
        if token_id in self._added:
            return self._added[token_id]
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            return b""
        if self._is_byte_level:
            if all(char in self._alphabet for char in piece):
                return bytes(self._alphabet[char] for char in piece)
            return bytes(piece.encode("utf-8"))
        fallback = _BYTE_FALLBACK.fullmatch(piece)
        if fallback:
            return bytes((int(fallback[1], 16),))
        return bytes(piece.replace("▁", " ").encode("utf-8"))

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """The prompt text of a chat.  Raises ChatTemplateMissing or ChatTemplateError."""
        return self._template.render(messages, add_generation_prompt, **kwargs)

    def _id_of(self, token: str | None) -> int | None:
        if token is None:
            return None
        found: int | None = self._backend.token_to_id(token)
        return found


def _components(backend: tokenizers.Tokenizer) -> list[Any]:
    """The pre-tokenizer and decoder as JSON, without the (large) model."""
    parts = (backend.pre_tokenizer, backend.decoder)
    return [json.loads(part.__getstate__()) for part in parts if part is not None]


def tokenizer_from_directory(directory: Path) -> Tokenizer:
    """Tokenizer and chat template of a model directory.  Raises ModelLoadError when ``tokenizer.json`` is missing."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ModelLoadError(
            f"{directory} has no tokenizer.json; add the model's fast tokenizer (AutoTokenizer's save_pretrained does)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ModelLoadError(f"{file} is not a readable tokenizer ({error}); download the model again") from None
    settings_file = directory / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    map_file = directory / "special_tokens_map.json"
    named = {**(read_json(map_file) if map_file.is_file() else {}), **settings}
    special = {name: _token_text(named[name]) for name in _SPECIAL_NAMES if named.get(name) is not None}
    return Tokenizer(backend, chat_template=_directory_template(directory, settings), special_tokens=special)


def _token_text(value: Any) -> str:
    """A special token is written as its text or as an AddedToken object."""
    return str(value.get("content", "")) if isinstance(value, Mapping) else str(value)


def _directory_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """``chat_template.jinja``, else ``chat_template.json``, else tokenizer_config.json's key (text or named list)."""
    jinja_file = directory / "chat_template.jinja"
    if jinja_file.is_file():
        return jinja_file.read_text(encoding="utf-8")
    json_file = directory / "chat_template.json"
    template = read_json(json_file).get("chat_template") if json_file.is_file() else settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) and template else None
