"""The HTTP of one response: llhttp (through ``httptools``) takes the framing off as bytes come; nothing is interpreted."""

from __future__ import annotations

import httptools

from harness.load.exchange import Exchange

MAX_BODY_BYTES = 256 << 20
MAX_HEADER_BYTES = 64 << 10
_SWITCHING = 101


class ResponseReader:
    """Fills one exchange from the reads of its connection.

    ``feed`` every read; ``end`` when the connection ended.  ``is_over`` says that nothing more belongs to the exchange:
    its response is whole, or it failed.
    """

    __slots__ = (
        "_has_length",
        "_header_bytes",
        "_parser",
        "_surplus",
        "exchange",
        "has_headers",
        "is_over",
        "keep_alive",
    )

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.is_over = False
        self.has_headers = False
        self.keep_alive = False
        self._surplus = False
        self._has_length = False
        self._header_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    @property
    def is_reusable(self) -> bool:
        """Whether the connection may carry another request."""
        return self.is_over and self.keep_alive and not self._surplus and self.exchange.failure is None

    def feed(self, data: bytes, t: int) -> None:
        """Take in a read that arrived at ``t``."""
        exchange = self.exchange
        exchange.stamps.append(t)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._surplus = self.is_over = True
        except httptools.HttpParserError as error:
            if self.is_over:
                self._surplus = True  # the response was whole before these bytes
            else:
                self._fail(f"the response is not valid HTTP: {error}")
        size = len(exchange.received)
        exchange.ends.append(size)
        if size > MAX_BODY_BYTES:
            self._fail(f"the response is longer than {MAX_BODY_BYTES} bytes")
        elif not self.has_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._fail(f"the response has more than {MAX_HEADER_BYTES} bytes of headers")

    def end(self, reason: str | None) -> None:
        """The connection ended; ``reason`` when it did so with an error.  Once over, nothing changes."""
        if self.is_over:
            return
        self.is_over = True
        exchange = self.exchange
        if self.has_headers and reason is None and not self._has_length:
            return  # such a body has no other end than that of its connection
        where = "inside the response" if exchange.stamps else "before a response began"
        exchange.fail("truncated", f"the connection ended {where}" + (f": {reason}" if reason else ""))

    def _fail(self, sentence: str) -> None:
        self.exchange.fail("malformed", sentence)
        self.is_over = True

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self.is_over:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_over:
            return
        key = name.lower()
        if key == b"content-type":
            self.exchange.content_type = value.partition(b";")[0].strip().lower().decode("latin-1")
        elif key == b"content-encoding":
            self.exchange.content_encoding = value.strip().lower().decode("latin-1")
        elif key in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.is_over or is_interim(status):
            return
        self.exchange.status = status
        self.has_headers = True
        self.keep_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if not self.is_over:
            self.exchange.received += body

    def on_message_complete(self) -> None:
        if self.has_headers:
            self.is_over = True


def is_interim(status: int) -> bool:
    """Whether a response with this status only announces another (100, 103)."""
    return 100 <= status < 200 and status != _SWITCHING
