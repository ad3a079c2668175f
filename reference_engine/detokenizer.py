"""Text from tokens, one at a time: whole characters only, and nothing that may turn out to be a stop string.

::

    token bytes --> UTF-8 decoder --> pending text -----------------> released text
                    (keeps the bytes    (its end may be the start of
                     of half a char)     a stop string: held back)

Each token is decoded once, so the cost per token does not grow with the length of the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Set
from typing import Protocol

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class TokenSource(Protocol):
    """The part of a tokenizer that text is made from."""

    @property
    def special_ids(self) -> Set[int]: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...


class TokenTable:
    """The bytes of every token, looked up in the tokenizer once each."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._special = source.special_ids
        self._all: dict[int, bytes] = {}
        self._shown: dict[int, bytes] = {}

    def with_special(self, token: int) -> bytes:
        """Bytes of the token; a special token's are its name."""
        data = self._all.get(token)
        if data is None:
            data = self._all[token] = self._source.token_bytes(token)
        return data

    def shown(self, token: int) -> bytes:
        """Bytes that the token adds to a text: those of ``with_special``, or none for a special token."""
        data = self._shown.get(token)
        if data is None:
            data = self._shown[token] = b"" if token in self._special else self.with_special(token)
        return data


class Detokenizer:
    """The text of one continuation.

    Bytes that are not UTF-8 become U+FFFD, as ``bytes.decode(errors="replace")`` has it; an unfinished character at the
    end of the text does so when ``finish`` is called.
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], *, stop: tuple[str, ...] = (), include_stop: bool = False
    ) -> None:
        """``token_bytes`` maps an id to the bytes it adds to the text (none for a token that is not shown)."""
        self._token_bytes = token_bytes
        self._stop = stop
        self._include_stop = include_stop
        self._decode = _utf8_decoder("replace").decode
        self._pending = ""
        self._released: list[str] = []
        self.offset = 0  # characters decoded so far: where the text of the next token begins

    def push(self, token: int, *, check_stop: bool = True) -> str | None:
        """Add a token.  Returns the stop string that it completed, if any: then the text ends there and is closed.

        With ``check_stop`` false the token's text is released at once and can never be part of a stop string.
        """
        text = self._decode(self._token_bytes(token))
        if not text:
            return None
        self.offset += len(text)
        if not self._stop:
            self._released.append(text)
            return None
        pending = self._pending + text
        if not check_stop:
            self._released.append(pending)
            self._pending = ""
            return None
        found = self._first_stop(pending)
        if found is not None:
            start, stop = found
            self._released.append(pending[: start + len(stop)] if self._include_stop else pending[:start])
            self._pending = ""
            return stop
        held = self._held_back(pending)
        if held < len(pending):
            self._released.append(pending[: len(pending) - held])
        self._pending = pending[len(pending) - held :]
        return None

    def take(self) -> str:
        """The text released since the last call."""
        if not self._released:
            return ""
        text = self._released[0] if len(self._released) == 1 else "".join(self._released)
        self._released.clear()
        return text

    def finish(self) -> None:
        """No more tokens: release what was held back, and U+FFFD for bytes that never became a character."""
        tail = self._decode(b"", True)
        self.offset += len(tail)
        if self._pending or tail:
            self._released.append(self._pending + tail)
            self._pending = ""

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """The stop string that is complete first, and where it begins; of those that end together, the longest.

        This is what a reader of single characters would find, so where the tokens' borders lie does not matter.
        """
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _held_back(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
