"""A choice's text read as the call of a function, piece by piece as it comes.

::

    one function     {"city":"Rome"}                                          all of it is the arguments
    several          {"name":"weather","arguments":{"city":"Rome"}}           the middle is; the last brace is held back
"""

from __future__ import annotations

import re
import uuid
from typing import Any

_OPENING = re.compile(r'\{"name":"([^"]*)","arguments":')


class CallReader:
    """Reads one call.  ``tools``: the functions that may be called, at least one."""

    def __init__(self, tools: tuple[str, ...]) -> None:
        self.id = f"call_{uuid.uuid4().hex[:24]}"
        self._is_wrapped = len(tools) > 1
        self._name = None if self._is_wrapped else tools[0]
        self._is_announced = False
        self._pending = ""

    def push(self, text: str, *, is_last: bool, is_complete: bool) -> list[dict[str, Any]]:
        """What a stream tells after ``text``: entries of ``delta.tool_calls``, the first one with id and name.

        ``is_last``: the answer ends here; ``is_complete``: as its grammar wants it, not cut off.
        """
        arguments = self._arguments(text, is_last=is_last, is_complete=is_complete)
        if self._name is None or (self._is_announced and not arguments):
            return []
        entry: dict[str, Any] = {"index": 0, "function": {"arguments": arguments}}
        if not self._is_announced:
            self._is_announced = True
            function = {"name": self._name, "arguments": arguments}
            entry = {"index": 0, "id": self.id, "type": "function", "function": function}
        return [entry]

    def whole(self, text: str, *, is_complete: bool) -> list[dict[str, Any]]:
        """The entries of ``message.tool_calls`` of an answer's whole text; none if it ends before the name."""
        entries = self.push(text, is_last=True, is_complete=is_complete)
        return [{key: value for key, value in entry.items() if key != "index"} for entry in entries]

    def _arguments(self, text: str, *, is_last: bool, is_complete: bool) -> str:
        """The part of the arguments that became certain."""
        if not self._is_wrapped:
            return text
        self._pending += text
        if self._name is None:
            opening = _OPENING.match(self._pending)
            if opening is None:
                return ""
            self._name = opening[1]
            self._pending = self._pending[opening.end() :]
        held = "" if is_last and not is_complete else self._pending[-1:]
        arguments = self._pending.removesuffix(held) if held else self._pending
        self._pending = held
        return arguments
