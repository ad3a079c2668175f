"""Bodies that came compressed although we asked for none: undone read by read, so that every byte keeps its stamp."""

from __future__ import annotations

import zlib
from array import array

from harness.load.exchange import Exchange
from harness.load.http_reader import MAX_BODY_BYTES

_GZIP, _ZLIB, _RAW = 31, 15, -15  # window bits as zlib takes them


class Inflater:
    """Undoes ``gzip`` or ``deflate`` piece by piece.

    A gzip body may be several members, one after the other (RFC 1952, 2.2); ``deflate`` comes with zlib's header, as
    RFC 9110 has it, or without, as some servers send it.
    """

    def __init__(self, coding: str) -> None:
        self._gzip = coding != "deflate"
        self._decoder = zlib.decompressobj(_GZIP) if self._gzip else None

    def feed(self, data: bytes, most: int) -> bytes:
        """What ``data`` decodes to, ``most`` bytes at the most.  Raises zlib.error."""
        made = bytearray()
        while data and len(made) < most:
            if self._decoder is None:
                # Zlib's header begins with its method, 8; a raw block does not begin so with any usual encoder.
                self._decoder = zlib.decompressobj(_ZLIB if data[0] & 0x0F == 8 else _RAW)
            elif self._decoder.eof:
                if not self._gzip:
                    raise zlib.error("bytes after its end")
                self._decoder = zlib.decompressobj(_GZIP)
            made += self._decoder.decompress(data, most - len(made))
            data = self._decoder.unused_data if self._decoder.eof else b""
        return bytes(made)

    @property
    def ended(self) -> bool:
        return self._decoder is not None and self._decoder.eof


def decode_body(exchange: Exchange) -> None:
    """Turn what was received into the body, and the ends of its reads into those of the decoded ones.

    A coding that cannot be undone is a failure.
    """
    coding, received = exchange.content_encoding, exchange.received
    exchange.received = bytearray()
    if coding in ("", "identity"):
        exchange.body = bytes(received)
        return
    if coding not in ("gzip", "x-gzip", "deflate"):
        exchange.fail("malformed", f"the body is coded as {coding!r}, which was not asked for")
        return
    inflater = Inflater(coding)
    body, start = bytearray(), 0
    ends = array("q")
    try:
        for end in exchange.ends:
            body += inflater.feed(bytes(received[start:end]), MAX_BODY_BYTES - len(body) + 1)
            start = end
            ends.append(len(body))
            if len(body) > MAX_BODY_BYTES:
                exchange.fail("malformed", f"the response is longer than {MAX_BODY_BYTES} bytes")
                break
    except zlib.error as error:
        exchange.fail("malformed", f"the body is not {coding}: {error}")
    else:
        if not inflater.ended:
            exchange.fail("truncated", f"the {coding} body ended early")
    ends.extend([len(body)] * (len(exchange.ends) - len(ends)))
    exchange.body, exchange.ends = bytes(body), ends
