"""A call read from pieces of text, wherever they are cut."""

from __future__ import annotations

import itertools

import pytest

from reference_engine.server.tool_calls import CallReader

ONE, SEVERAL = ("f",), ("f", "weather")
ARGUMENTS = '{"city":"R}o","n":[1]}'
WRAPPED = '{"name":"weather","arguments":' + ARGUMENTS + "}"


def read(tools: tuple[str, ...], pieces: list[str], *, is_complete: bool = True) -> tuple[str | None, str]:
    """The name and the arguments that a client puts together."""
    reader = CallReader(tools)
    entries = [
        entry
        for number, piece in enumerate(pieces)
        for entry in reader.push(piece, is_last=number == len(pieces) - 1, is_complete=is_complete)
    ]
    assert [entry["index"] for entry in entries] == [0] * len(entries)
    assert [entry.get("id") for entry in entries] == [reader.id] * bool(entries) + [None] * (len(entries) - 1)
    names = [name for entry in entries if (name := entry["function"].get("name"))]
    return names[0] if names else None, "".join(entry["function"]["arguments"] for entry in entries)


@pytest.mark.parametrize(("tools", "text", "name"), [(ONE, ARGUMENTS, "f"), (SEVERAL, WRAPPED, "weather")])
def test_however_the_text_is_cut_the_call_is_the_same(tools: tuple[str, ...], text: str, name: str) -> None:
    for first, second in itertools.combinations(range(len(text) + 1), 2):
        pieces = [text[:first], text[first:second], text[second:], ""]
        assert read(tools, pieces) == (name, ARGUMENTS)
    assert read(tools, list(text)) == (name, ARGUMENTS)
    (whole,) = CallReader(tools).whole(text, is_complete=True)
    assert whole["function"] == {"name": name, "arguments": ARGUMENTS}
    assert set(whole) == {"id", "type", "function"}


@pytest.mark.parametrize("length", range(len(WRAPPED)))
def test_a_call_that_is_cut_off_keeps_what_there_is(length: int) -> None:
    start = WRAPPED.index(ARGUMENTS)
    expected = ("weather", WRAPPED[start:length]) if length >= start else (None, "")
    assert read(SEVERAL, list(WRAPPED[:length]), is_complete=False) == expected
