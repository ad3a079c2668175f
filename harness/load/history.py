"""Later turns of a conversation carry what the engine really answered, not what was planned.

The planned words stand in a schedule so that it has a digest before the first byte is sent; where the earlier turn
failed, they are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace

from harness.load.exchange import Exchange
from harness.load.meaning import StreamMeaning
from harness.load.sse import SseParser
from workloads.request import Message, RequestSpec

SLICE_BYTES = 4096  # parsed between two looks at the network


def wanted_answers(requests: Iterable[RequestSpec]) -> frozenset[int]:
    """Indices of the requests whose answers appear in later prompts."""
    return frozenset(index for request in requests for _, index in request.answers)


def fill_answers(request: RequestSpec, answers: Mapping[int, str]) -> RequestSpec:
    """The request with every known answer in place of its planned words."""
    if request.messages is None or not request.answers:
        return request
    messages = list(request.messages)
    for position, index in request.answers:
        if answers.get(index):
            messages[position] = Message(role=messages[position]["role"], content=answers[index])
    return replace(request, messages=tuple(messages))


async def read_answer(exchange: Exchange) -> str | None:
    """The text of a streamed answer, or None where there is none.  The network is served between slices."""
    if exchange.status != 200 or exchange.failure is not None:
        return None
    body, parser, meaning = exchange.body, SseParser(), StreamMeaning()
    for start in range(0, len(body), SLICE_BYTES):
        for event in parser.feed(body[start : start + SLICE_BYTES]):
            meaning.take(event)
        await asyncio.sleep(0)
    return "".join(meaning.text) or None
