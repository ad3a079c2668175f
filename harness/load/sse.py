"""Server-sent events, decoded from bytes that may be cut anywhere.

WHATWG HTML, section 9.2.6: lines end in LF, CR or CRLF; ``data`` lines of one event are joined by LF; a line that
begins with a colon is a comment; an empty line dispatches the event; a field without a colon has an empty value; an
event that the end of the stream cuts short is not dispatched.  Linear in the bytes fed, however they are cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One dispatched event.  ``mark`` is the mark of the read that completed its last data line."""

    data: bytes
    event: bytes | None
    mark: int


class SseParser:
    """Feed it reads in order; it returns the events that each one completes."""

    def __init__(self) -> None:
        self._partial: list[bytes] = []  # the line that has not ended yet, in pieces (joined once: linear)
        self._after_cr = False  # the last read ended in CR: a LF that follows belongs to it
        self._at_start = True
        self._data: list[bytes] = []
        self._event: bytes | None = None
        self._mark = 0
        self.comments = 0

    def feed(self, read: bytes, mark: int = 0) -> list[SseEvent]:
        """Events completed by ``read``.  ``mark`` names the read; an event carries that of its last data line."""
        events: list[SseEvent] = []
        start = 0
        if self._after_cr and read:
            self._after_cr = False
            if read[0] == 0x0A:
                start = 1
        for match in _LINE_END.finditer(read, start):
            end = match.start()
            if self._partial:
                self._partial.append(read[start:end])
                line = b"".join(self._partial)
                self._partial.clear()
            else:
                line = read[start:end]
            start = match.end()
            self._line(line, mark, events)
        if start < len(read):
            self._partial.append(read[start:])
        elif start and read[-1] == 0x0D:
            self._after_cr = True
        return events

    @property
    def has_partial_event(self) -> bool:
        """Whether the bytes so far end inside a line or an event that an end of stream would lose."""
        return bool(self._partial or self._data)

    def _line(self, line: bytes, mark: int, events: list[SseEvent]) -> None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                events.append(SseEvent(data, self._event, self._mark))
                self._data.clear()
            self._event = None
        elif line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            self._mark = mark
        elif line[0] == 0x3A:
            self.comments += 1
        else:
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(b"")
                self._mark = mark
            elif field == b"event":
                self._event = value.removeprefix(b" ")


def whole_events(body: bytes, ends: Sequence[int], parser: SseParser) -> Iterator[SseEvent]:
    """The events of a whole body whose read ``i`` came up to ``ends[i]``; the same as feeding ``parser`` read by read.

    Nearly every event of nearly every server is one ``data: `` line and an empty one: those are cut out directly, and
    the parser sees the rest, so that it knows at the end what was left over.
    """
    if b"\r" in body or body.startswith(_BOM):
        yield from _feed(body, 0, len(body), ends, 0, parser)
        return
    start = mark = 0
    find = body.find
    while (end := find(b"\n\n", start)) >= 0:
        if body.startswith(b"data: ", start) and find(b"\n", start, end) < 0:
            while ends[mark] <= end:
                mark += 1
            yield SseEvent(body[start + 6 : end], None, mark)
        else:
            while ends[mark] <= start:  # here, so that no later event begins its search at the first read again
                mark += 1
            yield from _feed(body, start, end + 2, ends, mark, parser)
        start = end + 2
    yield from _feed(body, start, len(body), ends, mark, parser)


def _feed(body: bytes, start: int, stop: int, ends: Sequence[int], mark: int, parser: SseParser) -> Iterator[SseEvent]:
    """Feed ``body[start:stop]`` read by read, from read ``mark`` on."""
    while start < stop:
        while ends[mark] <= start:
            mark += 1
        end = min(stop, ends[mark])
        yield from parser.feed(body[start:end], mark)
        start = end
