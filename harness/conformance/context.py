"""What a case has at hand: the engine, its features, prompts, the judge, and a place for evidence."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.conformance.answer import Answer, parting
from harness.conformance.api import Api
from harness.conformance.case import Case, Failed, Inconclusive
from harness.conformance.features import Features, read_metrics
from harness.conformance.judge import Judge, Report
from harness.conformance.limits import Limits
from harness.conformance.prompts import Ask, Prompt, Prompts
from harness.conformance.sentinel_asks import SentinelAsks

DRAIN_LIMIT_S = 20.0
POLL_S = 0.05


@dataclass(slots=True)
class Options:
    """How a suite is run.

    ``effort`` scales the sizes of samples (1 is the documented strength).  ``reference_url`` is a naive fp32 engine with
    the same model.  ``restart`` stops the engine and starts it again, returning its new URL; only where the suite owns it.
    """

    name: str = "engine"
    model: str | None = None
    api_key: str | None = None
    timeout_s: float = 60.0
    seed: int = 0
    effort: float = 1.0
    levels: tuple[str, ...] = ("MUST", "SHOULD", "INFO")
    soak: bool = False
    strict: bool = False
    structural_only: bool = False
    reference_url: str | None = None
    dtype: str | None = None
    kv_dtype: str | None = None
    soak_s: float = 1800.0
    restart: Callable[[], Awaitable[str]] | None = None
    pids: Callable[[], list[int]] | None = None
    known_probe: Any = None
    known_features: Features | None = None  # of an earlier run against the same server
    replay: str = ""  # the command up to the case id


@dataclass(slots=True)
class Context:
    """One run of one case."""

    case: Case
    api: Api
    features: Features
    prompts: Prompts
    limits: Limits
    options: Options
    reference: Api | None
    tokenizers: list[Api]
    sentinel: SentinelAsks | None
    rng: random.Random
    evidence: dict[str, Any] = field(default_factory=dict)
    rungs: list[str] = field(default_factory=list)
    judge: Judge = field(init=False)

    def __post_init__(self) -> None:
        self.judge = Judge(
            self.api,
            self.features,
            self.limits,
            reference=self.reference,
            tokenizers=self.tokenizers,
            on_rung=self.stand_on,
        )

    # --- findings ---

    def saw(self, **evidence: Any) -> None:
        """Keep evidence for the report, whatever the verdict."""
        self.evidence.update(evidence)

    def stand_on(self, rung: str) -> None:
        if rung not in self.rungs:
            self.rungs.append(rung)

    def require(self, holds: Any, reason: str, **evidence: Any) -> None:
        """Fail unless ``holds``."""
        if not holds:
            raise Failed(reason, **evidence)

    def need_evidence(self, holds: Any, reason: str, **evidence: Any) -> None:
        """Inconclusive unless ``holds``: the property was not exercised."""
        if not holds:
            raise Inconclusive(reason, **evidence)

    def size(self, full: int, least: int = 1) -> int:
        """A sample size scaled by the effort asked for."""
        return max(round(full * self.options.effort), least)

    # --- the engine's numbers ---

    @property
    def block(self) -> int:
        """Tokens in a KV block; 16 where the engine does not say."""
        return self.features.block_size or 16

    @property
    def context(self) -> int:
        """Longest prompt and output of a sequence; 1,024 where the engine does not say."""
        longest = self.features.max_model_len or 1024
        return min(longest, self.features.pool_tokens or longest)

    @property
    def places(self) -> int:
        """Sequences that may run at once; 16 where the engine does not say."""
        return min(self.features.max_num_seqs or 16, 64)

    # --- asking ---

    def ask(self, tokens: int, max_tokens: int, **fields: Any) -> Ask:
        """A fresh question of about ``tokens`` tokens: the sentinel's, whose answer is known, or random words."""
        if self.sentinel is not None:
            return self.sentinel.ask(self.rng, tokens, max_tokens, fields)
        return self.plain_ask(tokens, max_tokens, **fields)

    def plain_ask(self, tokens: int, max_tokens: int, **fields: Any) -> Ask:
        """A question whose answer is not known beforehand."""
        return Ask(self.prompts.make_prompt(self.rng, tokens), max_tokens, fields=dict(fields))

    def asks(self, count: int, tokens: tuple[int, int], max_tokens: int, **fields: Any) -> list[Ask]:
        """``count`` questions with lengths drawn from ``tokens`` (both ends included)."""
        found = []
        for number in range(count):
            ask = self.ask(self.rng.randint(*tokens), max_tokens, **fields)
            ask.label = f"prompt {number}"
            found.append(ask)
        return found

    def fields(self, max_tokens: int, **extra: Any) -> dict[str, Any]:
        """Fields of a judged completion: no early end, scores and ids where the engine offers them."""
        found: dict[str, Any] = {"max_tokens": max_tokens}
        if self.features.has("ignore_eos"):
            found["ignore_eos"] = True
        if self.features.has("logprobs"):
            found["logprobs"] = 5
        if self.features.has("return_ids"):
            found["return_token_ids"] = True
        return {**found, **extra}

    async def generate(self, prompt: Prompt, max_tokens: int, **fields: Any) -> Answer:
        """A greedy answer through whichever endpoint the engine has."""
        if self.features.has("completions"):
            return await self.api.complete(prompt, **self.fields(max_tokens, **fields))
        return await self.api.chat(str(prompt), max_tokens=max_tokens, **fields)

    async def send(self, ask: Ask, *, stream: bool = False, **extra: Any) -> Answer:
        """Ask ``ask``.  Raises Failed when the engine gives no good answer."""
        fields = {**ask.fields, **extra}
        if stream and self.features.has("completions", "stream"):
            return (await self.api.stream_complete(ask.prompt, **self.fields(ask.max_tokens, **fields))).answer()
        return await self.generate(ask.prompt, ask.max_tokens, **fields)

    async def together(
        self, asks: Sequence[Ask], *, at_once: int = 64, stream: bool = False, **extra: Any
    ) -> list[Answer]:
        """Ask all, at most ``at_once`` in flight.  Raises the first Failed after all have ended."""
        gate = asyncio.Semaphore(at_once)

        async def one(ask: Ask) -> Answer:
            async with gate:
                return await self.send(ask, stream=stream, **extra)

        outcomes = await asyncio.gather(*(one(ask) for ask in asks), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, Answer)]

    async def judged(
        self, asks: Sequence[Ask], answers: Sequence[Answer], *, what: str = "answers", **options: Any
    ) -> Report:
        """Judge by the strongest rung and keep what it stood on as evidence."""
        report = await self.judge.check(asks, answers, what=what, **options)
        self.saw(**report.evidence())
        return report

    def part_at_a_tie(self, one: Answer, other: Answer) -> bool:
        """Whether two greedy answers part where the best two tokens were too near each other to be told apart."""
        scores = parting(one, other)
        return scores is not None and (scores[0].gap or 0.0) <= self.limits.regret

    async def baselines(self, asks: Sequence[Ask]) -> list[Answer] | None:
        """Answers given alone, where the judge needs them; ask for them before the load."""
        return await self.judge.baselines(asks, self.send)

    def several(self, n: int) -> dict[str, Any]:
        """Fields that ask for ``n`` choices of the greedy answer, as near to greedy as the engine allows."""
        return {"n": n} if self.features.has("n_greedy") else {"n": n, "temperature": 0.01}

    def afford(self, count: int, tokens_each: int, seconds: float, least: int = 1) -> int:
        """At most ``count`` answers of ``tokens_each``: as many as this engine makes in ``seconds``, batched."""
        return max(min(self.size(count, least), int(self.features.tokens_per_s * 4 * seconds / tokens_each)), least)

    # --- the engine's state ---

    async def metrics(self) -> dict[str, float]:
        return await read_metrics(self.api)

    async def drained(self, limit_s: float = DRAIN_LIMIT_S) -> dict[str, float]:
        """Metrics once nothing runs or waits, or when the time is over."""
        deadline = time.monotonic() + limit_s
        while True:
            values = await self.metrics()
            busy = values.get("requests_running", 0) + values.get("requests_waiting", 0)
            if not busy or time.monotonic() > deadline:
                return values
            await asyncio.sleep(POLL_S)
