"""Virtual time: the real scheduler and memory policy, a clock that a profile moves, no tensors.

::

    arrivals --> scheduler.add --> schedule -> plan --> clock += profile.step_seconds(plan) --> commit --+
                                      ^                                                                  |
                                      +------------------------ finish at the traced length <------------+
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.kv.manager import PagedKVManager
from reference_engine.request import FinishReason, Request, RequestRejected, SamplingParams
from reference_engine.scheduler import Scheduler
from reference_engine.simulate.profile import Profile
from reference_engine.simulate.trace import TracedRequest

WORDS = ("token_states", "reserved", "internal", "external", "cached", "free")
_TOKEN = 0  # what every simulated token is; nothing looks at it


@dataclass(slots=True)
class Outcome:
    """What one simulated run gave.  Latencies in seconds, one a finished request, in order of arrival."""

    policy: str
    seconds: float = 0.0  # virtual, from the first arrival's clock zero to the last token
    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    refused: int = 0
    # Means over the window, weighted by time.
    running: float = 0.0
    ledger: dict[str, float] = field(default_factory=dict)  # shares of the pool
    sharing_saved: float = 0.0  # share of blocks saved: 1 - held / summed over tables (paged only)
    e2e: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    normalised: list[float] = field(default_factory=list)  # e2e / output tokens
    timeline: list[tuple[float, dict[str, int]]] = field(default_factory=list)  # (clock, ledger in slots)

    @property
    def normalised_latency(self) -> float:
        """Mean of end-to-end latency / output length: the paper's measure [s/token]."""
        return sum(self.normalised) / len(self.normalised) if self.normalised else float("nan")

    @property
    def waste(self) -> float:
        """Share of the slots in use (neither cached nor free) that hold no token."""
        in_use = 1 - self.ledger["cached"] - self.ledger["free"]
        return 1 - self.ledger["token_states"] / in_use if in_use else 0.0


def simulate(
    trace: Iterable[TracedRequest],
    profile: Profile,
    *,
    policy: str = "paged",
    block_size: int = 16,
    kv_slots: int | None = None,
    n: int = 1,
    prefix_caching: bool = False,
    max_num_seqs: int | None = None,
    window: tuple[float, float] | None = None,
    until: float | None = None,
    timeline_every: float | None = None,
) -> Outcome:
    """Run ``trace`` to its end, or to ``until`` seconds of virtual time.

    ``window``: seconds over which the means are taken, default all.  ``timeline_every``: keep the ledger that often [s].
    Raises ConfigError if the pool is too small for the policy.
    """
    # A simulated token has no text, so equal prompts would be found in the cache: it is off unless asked for.
    cache = CacheConfig((kv_slots or profile.kv_slots) // block_size, block_size, prefix_caching=prefix_caching)
    config = SchedulerConfig(
        max_model_len=profile.max_model_len,
        max_num_seqs=max_num_seqs or profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        policy=policy,  # type: ignore[arg-type]
        max_waiting=1 << 60,
    )
    scheduler = Scheduler(config, cache)
    run = _Run(scheduler, profile, Outcome(policy), block_size, window or (0.0, float("inf")), timeline_every)
    run.drive(list(trace), n, float("inf") if until is None else until)
    return run.outcome


@dataclass(slots=True)
class _Run:
    """One simulation in progress."""

    scheduler: Scheduler
    profile: Profile
    outcome: Outcome
    block_size: int
    window: tuple[float, float]
    timeline_every: float | None
    clock: float = 0.0
    weight: float = 0.0  # seconds inside the window so far
    next_point: float = 0.0

    def drive(self, trace: list[TracedRequest], n: int, until: float) -> None:
        scheduler, outcome = self.scheduler, self.outcome
        arrivals = [request.arrival for request in trace]
        open_: dict[str, int] = {}  # continuations not ended
        sums = dict.fromkeys((*WORDS, "running", "held", "refs"), 0.0)
        prompts: dict[int, tuple[int, ...]] = {}
        index, total = 0, len(trace)
        while (index < total or scheduler.has_work) and self.clock < until:
            if not scheduler.has_work and arrivals[index] > self.clock:
                self.clock = arrivals[index]
            while index < total and arrivals[index] <= self.clock:
                _, prompt, output = trace[index]
                tokens = prompts.setdefault(prompt, (_TOKEN,) * prompt)
                params = SamplingParams(max_tokens=output, ignore_eos=True, n=n)
                try:
                    scheduler.add(Request(str(index), tokens, params))
                    open_[str(index)] = n
                except RequestRejected:
                    outcome.refused += 1
                index += 1
            if scheduler.has_work:
                self._step(trace, open_, sums)
        self._close(sums)

    def _step(self, trace: list[TracedRequest], open_: dict[str, int], sums: dict[str, float]) -> None:
        scheduler, outcome = self.scheduler, self.outcome
        plan = scheduler.schedule()
        seconds = self.profile.step_seconds(plan, self.block_size)
        began, self.clock = self.clock, self.clock + seconds
        sampled = {part.seq_id: (_TOKEN,) * part.num_samples for part in plan.seqs if part.num_samples}
        committed = scheduler.commit(plan, sampled)
        self._observe(began, len(plan.seqs), sums)
        clock = self.clock
        for sequence, _, _ in committed:
            request = sequence.request
            generated = len(sequence.tokens) - len(request.prompt)
            if generated == 1 and sequence.index == 0:
                outcome.ttft.append(clock - trace[int(request.request_id)].arrival)
            if generated >= request.params.max_tokens:
                scheduler.finish(sequence, FinishReason.LENGTH)
                open_[request.request_id] -= 1
                if not open_[request.request_id]:
                    del open_[request.request_id]
                    latency = clock - trace[int(request.request_id)].arrival
                    outcome.e2e.append(latency)
                    outcome.normalised.append(latency / generated)

    def _observe(self, began: float, running: int, sums: dict[str, float]) -> None:
        low, high = self.window
        weight = min(self.clock, high) - max(began, low)
        if weight <= 0:
            return
        ledger = self.scheduler.ledger_totals.last
        assert ledger is not None
        self.weight += weight
        for word in WORDS:
            sums[word] += weight * getattr(ledger, word)
        sums["running"] += weight * running
        if isinstance(kv := self.scheduler.kv, PagedKVManager):
            sums["held"] += weight * kv.pool.num_held
            sums["refs"] += weight * kv.pool.num_refs
        if self.timeline_every is not None and began >= self.next_point:
            self.outcome.timeline.append((began, {word: getattr(ledger, word) for word in WORDS}))
            self.next_point = began + self.timeline_every

    def _close(self, sums: dict[str, float]) -> None:
        outcome, counters = self.outcome, self.scheduler.stats()
        weight, slots = self.weight or 1.0, self.scheduler.ledger().total
        outcome.seconds = self.clock
        outcome.steps = counters.steps
        outcome.prompt_tokens = counters.prompt_tokens
        outcome.output_tokens = counters.generation_tokens
        outcome.preemptions = counters.preemptions
        outcome.recomputed_tokens = counters.recomputed_tokens
        outcome.running = sums["running"] / weight
        outcome.ledger = {word: sums[word] / weight / slots for word in WORDS}
        outcome.sharing_saved = 1 - sums["held"] / sums["refs"] if sums["refs"] else 0.0
