"""A transport that writes straight to its socket.

uvloop collects writes until the end of a loop iteration; when two hundred chunks leave together, the first would
otherwise go tens of milliseconds after its stamp.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any


class DirectTransport:
    """A plain TCP transport whose writes go to the socket now; what the socket does not take goes the usual way."""

    def __init__(self, transport: asyncio.Transport, descriptor: int) -> None:
        self._transport = transport
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._transport.get_write_buffer_size() or self._transport.is_closing():
            self._transport.write(data)
            return
        try:
            sent = os.write(self._descriptor, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The transport reports a broken connection the way that aiohttp expects.
            sent = 0
        if sent < len(data):
            self._transport.write(memoryview(data)[sent:])

    def writelines(self, chunks: Iterable[bytes]) -> None:
        self.write(b"".join(chunks))
