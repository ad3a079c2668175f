"""Bodies that came compressed although we asked for none: undone read by read, so that every byte keeps its stamp."""

from __future__ import annotations

import zlib
from array import array

from harness.load.exchange import Exchange
from harness.load.http_reader import MAX_BODY_BYTES

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def decode_body(exchange: Exchange) -> None:
    """Turn what was received into the body, and the ends of its reads into those of the decoded ones.

    A coding that cannot be undone is a failure.
    """
    coding, received = exchange.content_encoding, exchange.received
    exchange.received = bytearray()
    if coding in ("", "identity"):
        exchange.body = bytes(received)
        return
    bits = _WINDOW_BITS.get(coding)
    if bits is None:
        exchange.fail("malformed", f"the body is coded as {coding!r}, which was not asked for")
        return
    decoder = zlib.decompressobj(bits)
    body, start = bytearray(), 0
    ends = array("q")
    try:
        for end in exchange.ends:
            body += decoder.decompress(received[start:end], MAX_BODY_BYTES - len(body) + 1)
            start = end
            ends.append(len(body))
            if len(body) > MAX_BODY_BYTES:
                exchange.fail("malformed", f"the response is longer than {MAX_BODY_BYTES} bytes")
                break
    except zlib.error as error:
        exchange.fail("malformed", f"the body is not {coding}: {error}")
        ends.extend([len(body)] * (len(exchange.ends) - len(ends)))
    else:
        if not decoder.eof:
            exchange.fail("truncated", f"the {coding} body ended early")
    ends.extend([len(body)] * (len(exchange.ends) - len(ends)))
    exchange.body, exchange.ends = bytes(body), ends
