"""Driving rounds of simultaneous requests against a server, until the pool has shown itself or time is up."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import aiohttp

from harness.capacity.estimate import Capacity, Limit, Round, estimate, look_at
from harness.capacity.streams import Stream
from harness.load.dialect import Dialect, prepare
from harness.load.meaning import StreamMeaning
from harness.load.sse import SseParser
from workloads.prompts import PromptMaker
from workloads.request import RequestSpec
from workloads.tokens import TokenCounter

monotonic_ns = time.monotonic_ns

LOOK_PERIOD_S = 0.25
ENOUGH_PREEMPTED = 2  # streams, before a round has shown the pool's size
AFTER_S = 1.0  # watched after that, so that the last stall shows
FIRST_N = 4
OVERSUBSCRIBE = 1.5  # prompts of a round, as a multiple of what the pool is thought to hold
SPREAD = 101  # prompts differ in length by up to so many tokens, so that their last blocks are filled differently
SHARES = (0.75, 0.4, 0.15)  # of the context that the prompt takes; smaller: more and shorter sequences
LEAST_GROWTH = 64  # tokens that an answer may have at least


@dataclass(frozen=True, slots=True)
class Target:
    """The server under probe."""

    url: str
    dialect: Dialect
    counter: TokenCounter
    context: int  # longest prompt + answer, tokens
    api_key: str | None = None


@dataclass(slots=True)
class MemoryProbe:
    """Finds the KV capacity of ``target`` within ``budget_s`` seconds.  ``await run()`` once."""

    target: Target
    budget_s: float = 300.0
    max_requests: int = 256  # in one round
    note: Callable[[str], None] = lambda sentence: None
    rounds: list[Round] = field(default_factory=list)
    ends_at: float = 0.0

    async def run(self) -> Capacity:
        """Grow the number of long requests until they no longer fit; then look again with more, shorter ones."""
        self.ends_at = time.monotonic() + self.budget_s
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        headers = {"Authorization": f"Bearer {self.target.api_key}"} if self.target.api_key else {}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            self.target.url, timeout=timeout, connector=connector, headers=headers, trust_env=False
        ) as session:
            n = FIRST_N
            found = await self._round(session, n, SHARES[0])
            while found.limit == "none" and n < self.max_requests and self._left() > 0:
                n = min(2 * n, self.max_requests)
                found = await self._round(session, n, SHARES[0])
            for share in SHARES[1:]:
                if found.limit == "none" or self._left() <= 0:
                    break
                tokens = found.tokens or found.low
                n = round(OVERSUBSCRIBE * tokens / (share * self.target.context))
                found = await self._round(session, max(FIRST_N, min(n, self.max_requests)), share)
        return found

    def _left(self) -> float:
        return self.ends_at - time.monotonic()

    async def _round(self, session: aiohttp.ClientSession, n: int, share: float) -> Capacity:
        prompt = max(8, min(round(self.target.context * share), self.target.context - LEAST_GROWTH - SPREAD))
        output = self.target.context - prompt - SPREAD
        if share < SHARES[0]:
            output = min(output, max(LEAST_GROWTH, prompt))
        specs = await asyncio.to_thread(self._requests, n, prompt, output)
        streams = [Stream(spec.prompt_tokens, 0) for spec in specs]
        tasks = [
            asyncio.create_task(self._stream(session, spec, stream))
            for spec, stream in zip(specs, streams, strict=True)
        ]
        try:
            await self._watch(tasks, Round(prompt, output, tuple(streams), 0))
        finally:
            now = monotonic_ns()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        round_ = Round(prompt, output, tuple(streams), now)
        self.rounds.append(round_)
        seen = look_at(round_)
        found = estimate(self.rounds)
        self.note(
            f"{n} requests of {prompt} + {output} tokens: {seen.at_once} at once, {seen.preempted} preempted, "
            f"{seen.waited} had to wait, {seen.held[1]} tokens held at most"
        )
        return found

    def _requests(self, n: int, prompt: int, output: int) -> list[RequestSpec]:
        """Prompts that share nothing with each other or with an earlier probe."""
        random = Random(secrets.randbits(62))
        maker = PromptMaker("probe-memory", "completions", self.target.counter, random, self.target.context)
        return [maker.make(index, prompt + 37 * index % SPREAD, output) for index in range(n)]

    async def _watch(self, tasks: list[asyncio.Task[None]], round_: Round) -> None:
        """Return when all requests ended, when the pool has shown itself, or when the time is up."""
        while self._left() > 0:
            done, pending = await asyncio.wait(tasks, timeout=LOOK_PERIOD_S)
            if not pending:
                return
            seen = look_at(Round(round_.prompt, round_.output, round_.streams, monotonic_ns()))
            if seen.preempted >= ENOUGH_PREEMPTED or (seen.waited and done):
                await asyncio.sleep(min(AFTER_S, max(0.0, self._left())))
                return

    async def _stream(self, session: aiohttp.ClientSession, spec: RequestSpec, stream: Stream) -> None:
        """One request, its tokens stamped as they come."""
        prepared = prepare(spec, self.target.dialect)
        parser, meaning = SseParser(), StreamMeaning()
        stream.t_send = monotonic_ns()
        try:
            async with session.post(
                f"/{prepared.path}", data=prepared.body, headers={"Content-Type": "application/json"}
            ) as response:
                if response.status != 200:
                    stream.failure = f"HTTP {response.status}"
                    return
                async for data in response.content.iter_any():
                    now, before = monotonic_ns(), len(meaning.chunks)
                    for event in parser.feed(data):
                        meaning.take(event)
                    stream.tokens += [now] * sum(chunk.tokens or 1 for chunk in meaning.chunks[before:])
            stream.failure = meaning.in_band
            stream.finished = meaning.finish_reason is not None and meaning.in_band is None
            if not stream.finished and stream.failure is None:
                stream.failure = "the stream ended early"
        except (aiohttp.ClientError, OSError) as error:
            stream.failure = str(error) or type(error).__name__
        finally:
            if stream.finished or stream.failure is not None:
                stream.t_end = monotonic_ns()


WORDS: dict[Limit, str] = {
    "preemption": "the engine ran until its pool was full and then preempted",
    "reservation": "the engine keeps room for whole requests and lets the others wait",
    "slots": "the number of sequences at once is limited, whatever their size; the pool was not filled",
    "none": "nothing showed that the pool was full",
}
