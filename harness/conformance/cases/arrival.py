"""STR, continued: the pieces of a stream come as they are made, the first one first."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Awaitable, Callable

from harness.conformance.answer import Streamed
from harness.conformance.case import Failed, Inconclusive, case
from harness.conformance.context import Context

BUFFERED_TRIES = 5
BETWEEN_TRIES_S = 0.5
LONG_ENOUGH_S = 5.0  # of one answer; a longer one tells no more


@case(
    "STR-10",
    "SHOULD",
    "an answer really streams",
    source="own; without it ITL and TTFT of this engine mean nothing",
    needs="stream completions",
    kills="F65",
    evidence="an answer of many tokens that took measurable time",
    structural=True,
)
async def really_streams(ctx: Context) -> None:
    async def call(tokens: int) -> Streamed:
        return await ctx.api.stream_complete(ctx.prompts.make_prompt(ctx.rng, 16), **ctx.fields(tokens))

    await check_streaming(ctx, call, tokens=128)


@case(
    "STR-12",
    "SHOULD",
    "chat streams really stream, also several at once",
    source="own; second killer of F65",
    needs="stream chat",
    kills="F65",
    evidence="an answer of many tokens that took measurable time",
    structural=True,
)
async def chat_streams(ctx: Context) -> None:
    body = {
        "messages": [{"role": "user", "content": "Tell a long story about the sea and a ship."}],
        **({"ignore_eos": True} if ctx.features.has("ignore_eos") else {}),
    }

    async def call(tokens: int) -> Streamed:
        return await ctx.api.stream("/v1/chat/completions", {**body, "max_tokens": tokens})

    await check_streaming(ctx, call, tokens=96, at_once=2)


async def check_streaming(
    ctx: Context, call: Callable[[int], Awaitable[Streamed]], *, tokens: int, at_once: int = 1
) -> None:
    """Fails if a stream looks buffered each time, the longer ones, too.

    On a machine that others take, one that is not may look so: for as long as the pause, where a buffered one of any
    length comes at its end.
    """
    most = max((ctx.features.max_model_len or 1024) // 2, tokens)
    for attempt in range(BUFFERED_TRIES):
        streams = await asyncio.gather(*(call(tokens) for _ in range(at_once)))
        try:
            for streamed in streams:
                check_pieces(ctx, streamed)
            return
        except Buffered:
            if attempt == BUFFERED_TRIES - 1:
                raise
        if max(streamed.exchange.seconds for streamed in streams) < LONG_ENOUGH_S:
            tokens = min(2 * tokens, most)
        await asyncio.sleep(BETWEEN_TRIES_S)


class Buffered(Failed):
    """All pieces of a stream came at its end."""


def check_pieces(ctx: Context, streamed: Streamed) -> None:
    """Raises Buffered, or Inconclusive where the answer was too short or too fast to tell."""
    streamed.answer()
    times = streamed.content_times()
    total = streamed.exchange.seconds
    if len(times) < 16:
        pieces = len({round(now, 4) for now in times})
        if len(times) <= 2 and (streamed.answer().completion_tokens or 0) >= 32:
            raise Buffered(f"{streamed.answer().completion_tokens} tokens came in {len(times)} pieces")
        raise Inconclusive(f"only {pieces} pieces came")
    gaps = [b - a for a, b in itertools.pairwise(times)]
    # Reads come in bursts on a busy client; a buffered stream comes in one.
    spread = times[-1] - times[0]
    ctx.saw(
        pieces=len(times),
        seconds=round(total, 4),
        first=round(times[0], 4),
        median_gap=round(statistics.median(gaps), 6),
    )
    ctx.need_evidence(total > 0.02, "the answer came too fast to tell")
    if times[0] >= 0.5 * total and spread <= 0.25 * total:
        raise Buffered(
            f"the first of {len(times)} pieces came after {times[0]:.3f} of {total:.3f} s: the stream is buffered"
        )


@case(
    "STR-11",
    "MUST",
    "the first streamed token is the first of the answer",
    source="MLPerf inference TEST06",
    needs="stream completions",
    kills="E11",
    structural=True,
)
async def first_token(ctx: Context) -> None:
    compared = 0
    for number in range(ctx.size(16, 8)):
        ask = ctx.plain_ask(6 + 5 * number, 6)
        whole = await ctx.send(ask)
        streamed = await ctx.api.stream_complete(ask.prompt, **ctx.fields(6))
        pieces = [streamed.piece(delta) for _, delta in streamed.deltas() if streamed.piece(delta)]
        if not pieces or not whole.text:
            continue
        answer = streamed.answer()
        if ctx.part_at_a_tie(whole, answer):
            continue
        compared += 1
        ctx.require(
            whole.text.startswith(pieces[0]),
            f"the stream begins with {pieces[0]!r}, the answer with {whole.text[:20]!r}",
        )
        ids = whole.first.ids, answer.first.ids
        ctx.require(
            ids[0] is None or ids[1] is None or ids[0][:1] == ids[1][:1],
            f"the first token id is {ids[1]} streamed and {ids[0]} otherwise",
        )
    ctx.saw(compared=compared)
    ctx.need_evidence(compared >= 3, f"only {compared} answers could be compared")
