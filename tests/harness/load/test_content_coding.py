"""Compressed bodies, cut into reads anywhere: the same bytes, and an end for each read."""

from __future__ import annotations

import gzip
import random
import zlib
from array import array

import pytest

from harness.load.content_coding import decode_body
from harness.load.exchange import Exchange

TEXT = b"".join(b'data: {"choices": [{"text": "%d"}]}\n\n' % n for n in range(300))


def raw(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


def decoded(coding: str, sent: bytes, cuts: int = 0, seed: int = 0) -> Exchange:
    exchange = Exchange(0, t_ready=0)
    exchange.content_encoding, exchange.received = coding, bytearray(sent)
    places = sorted(random.Random(seed).randrange(len(sent) + 1) for _ in range(cuts))
    exchange.ends = array("q", [*places, len(sent)])
    decode_body(exchange)
    return exchange


SOUND = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "x-gzip": ("x-gzip", gzip.compress(TEXT)),
    "gzip, a member an event": ("gzip", b"".join(map(gzip.compress, TEXT.splitlines(keepends=True)))),
    "gzip, an empty member": ("gzip", gzip.compress(b"") + gzip.compress(TEXT)),
    "deflate": ("deflate", zlib.compress(TEXT)),
    "deflate without a header": ("deflate", raw(TEXT)),
}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("cuts", [0, 1, 40])
def test_every_read_keeps_its_end(name: str, cuts: int) -> None:
    coding, sent = SOUND[name]
    exchange = decoded(coding, sent, cuts, seed=cuts)
    assert exchange.failure is None
    assert exchange.body == TEXT
    assert len(exchange.ends) == cuts + 1
    assert list(exchange.ends) == sorted(exchange.ends)
    assert exchange.ends[-1] == len(TEXT)


def test_one_byte_a_read() -> None:
    coding, sent = SOUND["gzip, a member an event"]
    exchange = Exchange(0, t_ready=0)
    exchange.content_encoding, exchange.received = coding, bytearray(sent)
    exchange.ends = array("q", range(1, len(sent) + 1))
    decode_body(exchange)
    assert (exchange.failure, exchange.body) == (None, TEXT)


@pytest.mark.parametrize(
    ("coding", "sent", "error_class"),
    [
        ("gzip", TEXT, "malformed"),
        ("gzip", gzip.compress(TEXT)[:-9], "truncated"),
        ("gzip", gzip.compress(TEXT) + gzip.compress(TEXT)[:20], "truncated"),
        ("gzip", gzip.compress(TEXT) + b"and more", "malformed"),
        ("deflate", zlib.compress(TEXT) + b"and more", "malformed"),
        ("deflate", zlib.compress(TEXT)[:-3], "truncated"),
        ("gzip", b"", "truncated"),
        ("deflate", b"", "truncated"),
        ("br", b"x", "malformed"),
    ],
)
def test_what_cannot_be_undone_is_a_failure(coding: str, sent: bytes, error_class: str) -> None:
    exchange = decoded(coding, sent, cuts=3)
    assert exchange.failure is not None
    assert exchange.failure[0] == error_class
    assert len(exchange.ends) == 4 or coding == "br"


def test_a_bomb_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.load.content_coding.MAX_BODY_BYTES", 1000)
    for sent in (gzip.compress(bytes(10**7)), gzip.compress(bytes(900)) * 50):
        exchange = decoded("gzip", sent)
        assert exchange.failure == ("malformed", "the response is longer than 1000 bytes")
        assert len(exchange.body) == 1001
