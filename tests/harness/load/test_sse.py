"""The event-stream parser: however the bytes are cut, the same events come out, in linear time."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.load.sse import SseEvent, SseParser, whole_events

# Machines that run these tests are busy: no judgement by time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def parse(stream: bytes, cuts: list[int] | None = None) -> list[tuple[bytes, bytes | None]]:
    parser, events, start = SseParser(), [], 0
    for cut in [*sorted(cuts or []), len(stream)]:
        events += parser.feed(stream[start:cut], cut)
        start = cut
    return [(event.data, event.event) for event in events]


def oracle(stream: bytes) -> list[tuple[bytes, bytes | None]]:
    """The specification, line by line, on the whole stream at once."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, data, name = [], [], None
    for line in text.split(b"\n")[:-1]:
        if not line:
            if data:
                events.append((b"\n".join(data), name))
            data, name = [], None
            continue
        field, colon, value = line.partition(b":")
        if not field and colon:
            continue
        value = value[1:] if value[:1] == b" " else value
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return events


PIECES = [
    b"data: a",
    b"data:b",
    b"data",
    b"data: ",
    b": ping",
    b"event: error",
    b"id: 3",
    b"x",
    b'data: {"t":"\xe2\x80\xa8"}',
]
ENDS = [b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\r\r"]


@patient
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(ENDS)), max_size=12), st.booleans(), st.data())
def test_any_cut_gives_the_events_of_the_specification(
    lines: list[tuple[bytes, bytes]], bom: bool, data: st.DataObject
) -> None:
    stream = (b"\xef\xbb\xbf" if bom else b"") + b"".join(piece + end for piece, end in lines)
    cuts = data.draw(st.lists(st.integers(3 if bom else 0, len(stream) or 3), max_size=len(stream)))
    assert parse(stream, [cut for cut in cuts if cut <= len(stream)]) == oracle(stream)


@patient
@given(st.binary(max_size=200), st.lists(st.integers(3, 200), max_size=20))
def test_any_bytes_never_raise_and_cuts_do_not_matter(stream: bytes, cuts: list[int]) -> None:
    assert parse(stream, [cut for cut in cuts if cut <= len(stream)]) == oracle(stream)


def test_an_event_carries_the_read_of_its_last_data_line() -> None:
    parser = SseParser()
    assert parser.feed(b"data: 1\n\ndata: 2\n", 7) == [SseEvent(b"1", None, 7)]
    assert parser.has_partial_event
    assert parser.feed(b"\ndata: 3", 8) == [SseEvent(b"2", None, 7)]
    assert parser.feed(b"\n", 9) == []
    assert parser.feed(b"\n", 10) == [SseEvent(b"3", None, 9)]
    assert not parser.has_partial_event


def test_a_long_line_costs_linear_work() -> None:
    """Bytes handled inside the parser, not time: a quadratic join would handle 500 times as many."""
    parser = SseParser()
    piece = b"x" * 10_000
    parser.feed(b"data: ")
    for _ in range(1000):
        parser.feed(piece)
    assert sum(len(part) for part in parser._partial) == 10_000_006
    assert len(parser._partial) == 1001  # kept in pieces: nothing was copied yet
    (event,) = parser.feed(b"\n\n")
    assert len(event.data) == 10_000_000


def test_many_events_in_one_read_and_many_reads_for_one_event() -> None:
    n = random.randrange(500, 1000)
    stream = b"".join(b"data: %d\n\n" % i for i in range(n))
    assert [int(data) for data, _ in parse(stream)] == list(range(n))
    assert [int(data) for data, _ in parse(stream, list(range(len(stream))))] == list(range(n))


@patient
@given(
    st.lists(
        st.tuples(st.sampled_from(PIECES), st.sampled_from([*ENDS, b"\n\n", b"\n\n", b"\n\n\n"])),
        min_size=1,
        max_size=15,
    ),
    st.booleans(),
    st.data(),
)
def test_a_whole_body_gives_the_same_events_and_reads_as_feeding_it(
    lines: list[tuple[bytes, bytes]], bom: bool, data: st.DataObject
) -> None:
    body = (b"\xef\xbb\xbf" if bom else b"") + b"".join(piece + end for piece, end in lines)
    ends = sorted(data.draw(st.lists(st.integers(3 if bom else 0, len(body)), max_size=20)))
    ends.append(len(body))
    fed, whole = SseParser(), SseParser()
    by_read: list[SseEvent] = []
    start = 0
    for mark, end in enumerate(ends):
        by_read += fed.feed(body[start:end], mark)
        start = end
    assert list(whole_events(body, ends, whole)) == by_read
    assert whole.has_partial_event == fed.has_partial_event
    assert whole.comments == fed.comments
