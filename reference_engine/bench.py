"""A batch of requests through the engine without a server, measured: the same runner under many configurations.

All engines of a comparison run on one runner, one after the other: the same weights at the same addresses, the same
pool, the same threads.  What differs between two runs is then the configuration and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from reference_engine.engine import Engine
from reference_engine.kv.manager import PagedKVManager
from reference_engine.request import Request, SamplingParams
from reference_engine.server.build import Serving, build
from reference_engine.server.options import ServerOptions

FIRST_WORD = 1000  # ids below are special tokens and single characters


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: token ids and how to go on."""

    prompt: tuple[int, ...]
    params: SamplingParams


@dataclass(slots=True)
class Measured:
    """One drained batch of requests.  Means are over time, while requests wait if any do (saturation)."""

    seconds: float = 0.0
    output_tokens: int = 0
    at_once: float = 0.0  # sequences that run
    waste: float = 0.0  # share of the allocated slots that hold no token
    blocks_saved: float = 0.0  # 1 - blocks held / blocks summed over tables (paged only), over the whole run
    ttft_s: list[float] = field(default_factory=list)
    preemptions: int = 0
    swaps: int = 0
    recomputed_tokens: int = 0
    swapped_out_blocks: int = 0
    prefix_hits: int = 0

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.seconds


class Bench:
    """One loaded model with the largest pool that the benchmark needs."""

    def __init__(self, options: ServerOptions) -> None:
        self._serving: Serving = build(options)
        self.settings = dict(self._serving.model.settings)
        self.vocab_size = self._serving.engine.limits.vocab_size

    def engine(self, *, cache: dict[str, Any] | None = None, scheduler: dict[str, Any] | None = None) -> Engine:
        """A fresh engine over the same runner; the arguments replace fields of CacheConfig and SchedulerConfig.

        The engine must not outlive the start of the next one: they share the pool's memory.
        """
        base = self._serving.engine
        return Engine(
            base.runner,
            base.limits,
            replace(base.scheduler_config, **scheduler or {}),
            replace(base.cache_config, **cache or {}),
            self._serving.tokens,
        )

    def words(self, rng: np.random.Generator, count: int) -> tuple[int, ...]:
        """So many random ids of ordinary tokens."""
        return tuple(rng.integers(FIRST_WORD, self.vocab_size, count).tolist())


def drive(engine: Engine, asks: Sequence[Ask]) -> Measured:
    """Offer everything at once and run until all have ended.  Raises RuntimeError if a request fails."""
    found = Measured()
    before = engine.scheduler.stats()
    began = last = time.perf_counter()
    for number, ask in enumerate(asks):
        engine.add(Request(str(number), ask.prompt, ask.params))
    first: dict[str, float] = {}
    sums, whole = _Sums(), _Sums()
    while engine.has_work:
        plan = engine.plan()
        waits, running = engine.scheduler.num_waiting > 0, len(plan.seqs)
        outputs = engine.run(plan)
        now = time.perf_counter()
        whole.add(now - last, running, engine)
        if waits:
            sums.add(now - last, running, engine)
        last = now
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(f"request {output.request_id}: {output.error}")
            first.setdefault(output.request_id, now - began)
            found.output_tokens += 1
    found.seconds = last - began
    means = sums if sums.seconds else whole
    found.at_once, found.waste = means.running / means.seconds, 1 - means.live / means.allocated
    found.blocks_saved = 1 - whole.held / whole.refs if whole.refs else 0.0
    found.ttft_s = list(first.values())
    after, host = engine.scheduler.stats(), engine.scheduler.kv.host_usage()
    found.preemptions = after.preemptions - before.preemptions
    found.swaps = after.swaps - before.swaps
    found.recomputed_tokens = after.recomputed_tokens - before.recomputed_tokens
    found.prefix_hits = after.prefix_hits - before.prefix_hits
    found.swapped_out_blocks = host.blocks_out
    return found


@dataclass(slots=True)
class _Sums:
    """Integrals over time."""

    seconds: float = 0.0
    running: float = 0.0
    live: float = 0.0
    allocated: float = 0.0
    held: float = 0.0
    refs: float = 0.0

    def add(self, seconds: float, running: int, engine: Engine) -> None:
        """What the step that took ``seconds`` left behind (its ledger is taken before ended requests are freed)."""
        ledger = engine.scheduler.ledger_totals.last
        assert ledger is not None
        self.seconds += seconds
        self.running += seconds * running
        self.live += seconds * ledger.live
        self.allocated += seconds * ledger.allocated
        if isinstance(kv := engine.scheduler.kv, PagedKVManager):
            self.held += seconds * kv.pool.num_held
            self.refs += seconds * kv.pool.num_refs


def interleaved(names: Sequence[str], repeats: int) -> list[tuple[int, str]]:
    """(repeat, name) with the order rotated from repeat to repeat, so that a drift of the machine favours nobody."""
    turns = [number % len(names) for number in range(repeats)]
    return [(number, name) for number, turn in enumerate(turns) for name in [*names[turn:], *names[:turn]]]
