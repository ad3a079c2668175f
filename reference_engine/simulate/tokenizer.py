"""The simulated model's tokenizer: one byte a token, so that lengths are exact and every text has a meaning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BYTES = 256
EOS, BOS, OTHER_END = 256, 257, 258
VOCAB = 320
NAMES = {EOS: "<eos>", BOS: "<bos>", OTHER_END: "<end>"}


class ByteTokenizer:
    """Token id = byte value; a few special tokens above.  ``render_chat`` writes ``role: content`` lines."""

    vocab_size = VOCAB
    bos_id, eos_id = BOS, EOS
    special_ids = frozenset(NAMES)
    has_chat_template = True

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        shown = [i for i in ids if not (skip_special_tokens and i in self.special_ids)]
        return b"".join(self.token_bytes(i) for i in shown).decode(errors="replace")

    def token_bytes(self, token_id: int, /) -> bytes:
        return bytes([token_id]) if token_id < BYTES else NAMES.get(token_id, "").encode()

    def render_chat(
        self, messages: Iterable[Mapping[str, Any]], add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return "".join(lines) + ("assistant:" if add_generation_prompt else "")
