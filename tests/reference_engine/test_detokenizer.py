"""Incremental text: whole characters, stop strings across token borders, and the same text as decoding at once."""

from __future__ import annotations

import random
import secrets

import pytest

from reference_engine.detokenizer import Detokenizer


@pytest.fixture
def rng() -> random.Random:
    seed = secrets.randbits(32)
    print("seed", seed)
    return random.Random(seed)


def split(data: bytes, rng: random.Random) -> list[bytes]:
    """``data`` cut at random places, empty pieces included."""
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, len(data) + 2)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def make(pieces: list[bytes], **options: object) -> Detokenizer:
    return Detokenizer(pieces.__getitem__, **options)  # type: ignore[arg-type]


def first_stop(text: str, stops: tuple[str, ...]) -> tuple[str, str] | None:
    """Text before, and the stop string: reading single characters, the longest stop that is complete first."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return None


TEXTS = ["plain ascii", "naïve café — 東京 🗼👩‍👩‍👧 ok", "\x00\x7f tabs\tand\nlines", "мир 𝔘𝔫𝔦 ﷽"]


def test_any_split_gives_the_text_and_no_delta_holds_half_a_character(rng: random.Random) -> None:
    for _ in range(300):
        text = rng.choice(TEXTS)
        pieces = split(text.encode(), rng)
        detokenizer = make(pieces)
        deltas = []
        for token in range(len(pieces)):
            detokenizer.push(token)
            deltas.append(detokenizer.take())
        assert "".join(deltas) == text
        assert not any("�" in delta for delta in deltas)
        detokenizer.finish()
        assert detokenizer.take() == ""


def test_bytes_that_are_not_utf8_decode_as_python_decodes_them(rng: random.Random) -> None:
    for _ in range(500):
        data = bytes(rng.choice([0x41, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xFF, 0xC3]) for _ in range(9))
        pieces = split(data, rng)
        detokenizer = make(pieces)
        for token in range(len(pieces)):
            detokenizer.push(token)
        detokenizer.finish()
        assert detokenizer.take() == data.decode(errors="replace")


def test_offsets_count_characters_before_each_token() -> None:
    pieces = ["añ".encode(), "€".encode()[:1], "€".encode()[1:], b"z"]
    detokenizer = make(pieces)
    offsets = []
    for token in range(len(pieces)):
        offsets.append(detokenizer.offset)
        detokenizer.push(token)
    assert offsets == [0, 2, 2, 3]


@pytest.mark.parametrize("include", [False, True])
def test_stop_strings_are_found_wherever_the_token_borders_lie(include: bool, rng: random.Random) -> None:
    stopped = 0
    for _ in range(3000):
        alphabet = rng.choice(["ab", "abc", "aé"])
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 14)))
        stops = tuple("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 3)))
        pieces = split(text.encode(), rng)
        detokenizer = make(pieces, stop=stops, include_stop=include)
        out, matched = "", None
        for token in range(len(pieces)):
            matched = detokenizer.push(token)
            out += detokenizer.take()
            expected = first_stop(text, stops)
            limit = expected[0] if expected else text
            assert (limit + (expected[1] if expected and include else "")).startswith(out)
            if matched:
                break
        if matched is None:
            detokenizer.finish()
            out += detokenizer.take()
        expected = first_stop(text, stops)
        assert matched == (expected[1] if expected else None)
        assert out == (expected[0] + (expected[1] if include else "") if expected else text)
        stopped += matched is not None
    assert 300 < stopped < 2900  # both outcomes were exercised


def test_text_that_cannot_be_a_stop_string_is_not_held_back() -> None:
    detokenizer = make([b"hello ", b"wor", b"x", b"wo"], stop=("world",))
    deltas = []
    for token in range(4):
        detokenizer.push(token)
        deltas.append(detokenizer.take())
    assert deltas == ["hello ", "", "worx", ""]
    detokenizer.finish()
    assert detokenizer.take() == "wo"


def test_unchecked_text_never_becomes_part_of_a_stop_string() -> None:
    detokenizer = make([b"a", b"b", b"ab"], stop=("ab",))
    assert detokenizer.push(0, check_stop=False) is None
    assert detokenizer.take() == "a"
    assert detokenizer.push(1) is None
    assert detokenizer.take() == "b"
    assert detokenizer.push(2) == "ab"
    assert detokenizer.take() == ""


def test_work_per_token_does_not_grow_with_the_text() -> None:
    seen = 0

    def token_bytes(token: int) -> bytes:
        nonlocal seen
        seen += 1
        return b"ab "

    detokenizer = Detokenizer(token_bytes, stop=("abc", "ba"))
    for token in range(5000):
        detokenizer.push(token)
        assert len(detokenizer.take()) <= 6  # nothing is kept but a possible start of a stop string
    assert seen == 5000
