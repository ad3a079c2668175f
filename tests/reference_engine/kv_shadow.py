"""A shadow of the KV cache, and a driver that throws random operations at a scheduler.

The shadow has no tensors: a slot holds ``(token, position, chain)``, where ``chain`` identifies the cache domain and
all tokens up to that position.  It executes step plans like a runner (copies, then stores, then reads) and raises
``ShadowError`` when a sequence would read anything but its own history, when a slot is written twice, or when the
order of copies would matter.  It shares no code with the manager: it knows plans and sequences only.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reference_engine import waiting
from reference_engine.config import CacheConfig, PreemptionCost, SchedulerConfig
from reference_engine.plan import StepPlan
from reference_engine.request import FinishReason, Request, RequestRejected, SamplingParams
from reference_engine.request import Sequence as EngineSequence
from reference_engine.scheduler import Scheduler

Slot = tuple[int, int, int]
RESERVING = ("contiguous", "static", "orca-max", "orca-pow2", "orca-oracle")


class ShadowError(AssertionError):
    """The plan would make a sequence read or write wrong K/V."""


class ShadowCache:
    """What every slot of the pool would hold."""

    def __init__(self, num_blocks: int, block_size: int, num_host_blocks: int = 0, window: int | None = None) -> None:
        self.block_size = block_size
        self.window = window
        self.host: list[Slot | None] = [None] * (num_host_blocks * block_size)
        self.slots: list[Slot | None] = [None] * (num_blocks * block_size)
        self._history: dict[int, list[Slot]] = {}

    def history(self, sequence: EngineSequence) -> list[Slot]:
        """What a sequence must find at its positions."""
        history = self._history.setdefault(sequence.seq_id, [])
        for position in range(len(history), sequence.known):
            token = sequence.tokens[position]
            before: object = history[-1][2] if history else ("domain", sequence.request.cache_salt)
            history.append((token, position, hash((before, token))))
        return history

    def run(self, plan: StepPlan, sequences: Sequence[EngineSequence]) -> None:
        """Execute a plan; ``sequences[i]`` is the one of ``plan.seqs[i]``."""
        self._swap(plan)
        self._copy(plan)
        size = self.block_size
        written: set[int] = set()
        for part, sequence in zip(plan.seqs, sequences, strict=True):
            if not part.tokens:
                raise ShadowError(f"sequence {part.seq_id} computes no token")
            if len(part.block_table) * size < part.seq_len:
                raise ShadowError(f"sequence {part.seq_id} has too short a table")
            history = self.history(sequence)
            for position in range(part.start, part.seq_len):
                slot = part.block_table[position // size] * size + position % size
                if slot in written:
                    raise ShadowError(f"slot {slot} is written twice in step {plan.step}")
                if part.tokens[position - part.start] != sequence.tokens[position]:
                    raise ShadowError(f"sequence {part.seq_id} computes a foreign token at position {position}")
                written.add(slot)
                self.slots[slot] = history[position]
        for part, sequence in zip(plan.seqs, sequences, strict=True):
            self.check_read(part.block_table, part.seq_len, sequence, query_len=part.query_len)

    def check_read(self, table: Sequence[int], length: int, sequence: EngineSequence, query_len: int = 0) -> None:
        """Whether positions ``0 .. length - 1``, read through ``table``, are the sequence's own history.

        With a window: those that the last ``query_len`` positions can reach, or the next one if that is 0.
        """
        size, found = self.block_size, []
        first = 0 if self.window is None else max(length - query_len - self.window + 1, 0)
        for block in table[: -(-length // size)]:
            found += self.slots[block * size : (block + 1) * size] if block >= 0 else [None] * size
        expected = self.history(sequence)[:length]
        if found[first:length] != expected[first:]:
            wrong = next(p for p in range(first, length) if found[p] != expected[p])
            raise ShadowError(
                f"sequence {sequence.seq_id} reads {found[wrong]} at position {wrong}, not {expected[wrong]}"
            )

    def _swap(self, plan: StepPlan) -> None:
        """Blocks to the host first, then blocks from it: what comes in may land where something just left."""
        for name, copies in (("out", plan.swap_out), ("in", plan.swap_in)):
            if len({copy.target for copy in copies}) != len(copies):
                raise ShadowError(f"two swaps {name} of step {plan.step} have the same target: {copies}")
        if {copy.target for copy in plan.swap_out} & {copy.source for copy in plan.swap_in}:
            raise ShadowError(f"step {plan.step} overwrites a host block before it is read")
        size = self.block_size
        for copies, source, target in (
            (plan.swap_out, self.slots, self.host),
            (plan.swap_in, self.host, self.slots),
        ):
            for copy in copies:
                target[copy.target * size : (copy.target + 1) * size] = source[
                    copy.source * size : (copy.source + 1) * size
                ]

    def _copy(self, plan: StepPlan) -> None:
        sources = {copy.source for copy in plan.copies}
        targets = {copy.target for copy in plan.copies}
        if sources & targets or len(targets) != len(plan.copies):
            raise ShadowError(f"the order of copies in step {plan.step} matters: {plan.copies}")
        size = self.block_size
        for copy in plan.copies:
            self.slots[copy.target * size : (copy.target + 1) * size] = self.slots[
                copy.source * size : (copy.source + 1) * size
            ]


@dataclass
class Mix:
    """What the driver does how often, and how large requests are.  Weights need not add up to 1."""

    add: float = 0.3
    step: float = 1.0
    abort: float = 0.03
    abort_in_flight: float = 0.03
    finish_early: float = 0.02
    reset_cache: float = 0.01
    max_prompt: int = 40
    max_output: int = 24
    vocabulary: int = 2  # small, so that equal blocks and equal continuations are common
    prefixes: int = 3  # prompts start with a piece of one of so many fixed texts
    backlog: int = 24  # no more requests are added while so many sequences are unfinished


class Driver:
    """Random operations on one scheduler; audit, ledger and shadow after each of them."""

    def __init__(self, seed: int, config: SchedulerConfig, cache: CacheConfig, mix: Mix | None = None) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(config, cache)
        self.config = config
        self.mix = mix or Mix()
        self.audited = True
        self.cache = cache
        self.shadow = ShadowCache(cache.num_blocks, cache.block_size, cache.num_host_blocks, cache.window)
        self.unfinished: dict[str, Request] = {}  # in order of arrival
        self.seen: Counter[str] = Counter()  # what happened, to prove that a run exercised it
        self._generated: Counter[tuple[str, int]] = Counter()
        self._scored: dict[str, set[int]] = {}
        self._texts = [
            tuple(self.random.randrange(self.mix.vocabulary) for _ in range(self.mix.max_prompt))
            for _ in range(self.mix.prefixes)
        ]

    @property
    def operations(self) -> int:
        return self.seen["operations"]

    def run(self, operations: int) -> None:
        """Random operations, then everything that is left runs to its end."""
        goal, mix = self.operations + operations, self.mix
        while self.operations < goal:
            action = self.random.choices(
                (self.add_random, self.step_random, self.abort_random, self.finish_random, self.reset_cache),
                (mix.add, mix.step, mix.abort, mix.finish_early, mix.reset_cache),
            )[0]
            action()
        self.drain()

    # ------------------------------------------------------------ random choices

    def add_random(self) -> None:
        if self.scheduler.num_unfinished >= self.mix.backlog:
            self.step_random()
            return
        r, mix = self.random, self.mix
        text = r.choice(self._texts)
        prompt = text[: r.randrange(len(text) + 1)]
        prompt += tuple(r.randrange(mix.vocabulary) for _ in range(r.randint(0 if prompt else 1, 6)))
        self.add(
            prompt,
            max_tokens=r.randint(1, mix.max_output),
            n=r.choice((1, 1, 1, 2, 3, 5)),
            prompt_logprobs=r.choice((None, None, None, None, 0)),
            priority=r.randrange(-1, 3),
            cache_salt=r.choice(("", "", "", "other")),
            beam_width=r.choice((0, 0, 0, 1, 2, 4)),
        )

    def step_random(self) -> None:
        victim = None
        if self.unfinished and self.random.random() < self.mix.abort_in_flight:
            victim = self.random.choice(list(self.unfinished))
        self.step(abort_in_flight=victim)

    def abort_random(self) -> None:
        self.abort(self.random.choice([*self.unfinished, "no such request"]))

    def finish_random(self) -> None:
        """A stop rule ends a sequence that has generated something."""
        ready = [s for s in self.scheduler.sequences.values() if s.num_generated and not s.request.params.beam_width]
        if ready:
            self.finish(self.random.choice(ready), FinishReason.STOP)

    # ------------------------------------------------------------ operations

    def add(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        n: int = 1,
        prompt_logprobs: int | None = None,
        priority: int = 0,
        cache_salt: str = "",
        beam_width: int = 0,
    ) -> None:
        n = min(n, beam_width) or n
        params = SamplingParams(max_tokens=max_tokens, n=n, prompt_logprobs=prompt_logprobs, beam_width=beam_width)
        request = Request(f"r{self.seen['requests']}", prompt, params, priority=priority, cache_salt=cache_salt)
        self.seen["requests"] += 1
        try:
            self.scheduler.add(request)
        except RequestRejected as refusal:
            self.seen[f"rejected {refusal.status}"] += 1
        else:
            self.unfinished[request.request_id] = request
            self._scored[request.request_id] = set()
        self.check()

    def reset_cache(self) -> None:
        """Forget all cached prefixes."""
        self.seen["forgotten"] += self.scheduler.reset_cache()
        assert self.scheduler.ledger().cached == 0
        self.check()

    def abort(self, name: str) -> None:
        sequences = self.scheduler.abort(name)
        assert bool(sequences) == (name in self.unfinished)
        assert all(s.finish_reason is FinishReason.ABORT for s in sequences)
        assert self.scheduler.abort(name) == ()
        self.unfinished.pop(name, None)
        self.seen["aborted"] += len(sequences)
        self.check()

    def finish(self, sequence: EngineSequence, reason: FinishReason) -> None:
        self.scheduler.finish(sequence, reason)
        self.scheduler.finish(sequence, FinishReason.ABORT)
        assert sequence.finish_reason is reason, "finishing twice changed the reason"
        self.seen["finished"] += 1
        name = sequence.request.request_id
        if not any(s.request.request_id == name for s in self.scheduler.sequences.values()):
            del self.unfinished[name]
        self.check()

    def step(self, abort_in_flight: str | None = None) -> None:
        """Schedule, execute on the shadow, commit."""
        scheduler = self.scheduler
        first_in_line = self._first_in_line()
        plan = scheduler.schedule()
        self.check()
        self._check_plan(plan, first_in_line)
        sequences = [scheduler.sequences[p.seq_id] for p in plan.seqs]
        self.shadow.run(plan, sequences)
        for part, sequence in zip(plan.seqs, sequences, strict=True):
            if part.prompt_logprobs:
                self._scored[sequence.request.request_id].update(range(part.start, part.seq_len))
        if abort_in_flight is not None:
            self.abort(abort_in_flight)
        draws = {
            p.seq_id: [self.random.randrange(self.mix.vocabulary) for _ in range(p.num_samples)]
            for p, sequence in zip(plan.seqs, sequences, strict=True)
            if p.num_samples and not sequence.request.params.beam_width
        }
        for committed in scheduler.commit(plan, draws):
            assert committed.sequence.tokens[-1] == committed.token
            self._book(committed.sequence)
        self.check()
        for request in [request for request in self.unfinished.values() if request.params.beam_width]:
            self._branch(request)
        if self.config.policy == "paged":  # contiguous forks are copied at the start of the next step
            for sequence in scheduler.sequences.values():
                self.shadow.check_read(scheduler.block_table(sequence.seq_id), sequence.computed, sequence)

    def _branch(self, request: Request) -> None:
        """Once all hypotheses of a beam have been computed: children of random parents, or the end."""
        beams = [s for s in self.scheduler.sequences.values() if s.request is request]
        if not all(self.scheduler._entries[s.seq_id].parked for s in beams):
            return
        if beams[0].num_generated == request.params.max_tokens - 1:
            self.seen["beams ended"] += 1
            self.abort(request.request_id)
            return
        r = self.random
        parents = r.choices([s.seq_id for s in beams], k=r.randint(1, request.params.beam_width))
        choices = [(seq_id, r.randrange(self.mix.vocabulary)) for seq_id in parents]
        texts = {s.seq_id: list(s.tokens) for s in beams}
        children = self.scheduler.branch(request.request_id, choices)
        for child, (parent, token) in zip(children, choices, strict=True):
            assert child.tokens == [*texts[parent], token]
        assert len({child.index for child in children}) == len(children)
        self.seen["branched"] += len(parents) - len(set(parents))
        self.seen["branched off anew"] += sum(not child.computed for child in children)
        self.seen["dropped"] += len(beams) - len(set(parents))
        self.check()

    def drain(self) -> None:
        """Everything ends within a bound that follows from the scheduler's rules, and nothing is left behind.

        Under FCFS every step either advances the oldest sequence, whose work is never lost, or spends the whole budget
        on tokens that are kept.  With priorities the first in line can change: by a promotion, or by a preemption.
        """
        work = sum(self._most_work(r) for r in self.unfinished.values())
        sequences = sum(r.params.num_sequences for r in self.unfinished.values())
        changes = 0 if self.config.order == "fcfs" else sequences * (1 + waiting.PREEMPTION_LIMIT)
        steps = 0
        while self.scheduler.has_work:
            self.step()
            steps += 1
            assert steps <= 2 * work * (1 + changes), f"{self.scheduler.num_unfinished} unfinished after {steps} steps"
        assert not self.unfinished
        ledger = self.scheduler.ledger()
        assert ledger.allocated == ledger.logical == 0
        assert ledger.cached + ledger.free + ledger.external == ledger.total
        assert self.scheduler.num_running == self.scheduler.num_waiting == self.scheduler.num_unfinished == 0
        assert self.scheduler.kv.host_usage().used == 0
        self.seen["preempted"] = self.scheduler.stats().preemptions
        self.seen["swapped"] = self.scheduler.stats().swaps
        self.seen["swapped in"] = self.scheduler.kv.host_usage().blocks_in
        self.seen["prefix hits"] = self.scheduler.stats().prefix_hits

    def check(self) -> None:
        """What must hold after every operation."""
        self.seen["operations"] += 1
        if not self.audited:
            return
        self.scheduler.audit()
        ledger = self.scheduler.ledger()
        ledger.check()
        assert ledger.logical == sum(self._reachable(s) for s in self.scheduler.sequences.values())

    @staticmethod
    def _most_work(request: Request) -> int:
        """Tokens computed for one request at most.  A beam's hypotheses may have to start over for every token."""
        length, params = len(request.prompt) + request.params.max_tokens, request.params
        return len(request.prompt) + params.num_sequences * length * (params.max_tokens if params.beam_width else 1)

    # ------------------------------------------------------------ expectations

    def _reachable(self, sequence: EngineSequence) -> int:
        """Computed tokens whose block the sequence still needs."""
        if self.cache.window is None:
            return sequence.computed
        size = self.cache.block_size
        return sequence.computed - max(sequence.computed - self.cache.window + 1, 0) // size * size

    def _first_in_line(self) -> int | None:
        """Under FCFS the oldest unfinished sequence is never short of memory nor overtaken, so it must be planned."""
        if self.config.order != "fcfs" or not self.scheduler.has_work:
            return None
        oldest = next(iter(self.unfinished))
        if self.unfinished[oldest].params.beam_width:  # its first hypothesis may have to wait for the others
            return None
        return min(
            (s for s in self.scheduler.sequences.values() if s.request.request_id == oldest), key=lambda s: s.index
        ).seq_id

    def _check_plan(self, plan: StepPlan, first_in_line: int | None) -> None:
        scheduler = self.scheduler
        assert plan.is_empty == (not scheduler.has_work)
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        assert scheduler.num_running <= self.config.max_num_seqs
        assert len({p.seq_id for p in plan.seqs}) == len(plan.seqs)
        if first_in_line is not None and plan.num_tokens < self.config.max_num_batched_tokens:
            assert first_in_line in {p.seq_id for p in plan.seqs}, f"sequence {first_in_line} does not advance"
        assert StepPlan.from_json(plan.to_json()) == plan
        for part in plan.seqs:
            sequence = scheduler.sequences[part.seq_id]
            forks = sequence.index == 0 and sequence.num_generated == 0
            samples = sequence.request.params.n if forks and not sequence.request.params.beam_width else 1
            assert part.num_samples == (samples if part.seq_len == sequence.known else 0), (part, sequence)
            self.seen["forked"] += part.num_samples > 1
            self.seen["chunks"] += part.num_samples == 0
            self.seen["decodes"] += part.query_len == 1
        self.seen["copies"] += len(plan.copies)
        self.seen["promoted"] += sum(entry.promoted for entry in scheduler._entries.values())

    def _book(self, sequence: EngineSequence) -> None:
        request = sequence.request
        self._generated[request.request_id, sequence.index] += 1
        assert sequence.num_generated == self._generated[request.request_id, sequence.index], (
            "a token was lost or invented"
        )
        assert tuple(sequence.tokens[: sequence.prompt_len]) == request.prompt
        assert sequence.cached < sequence.prompt_len
        if request.params.prompt_logprobs is not None:
            assert self._scored[request.request_id] >= set(range(sequence.prompt_len - 1)), "prompt rows are missing"
            assert sequence.cached == 0
        if sequence.num_generated == request.params.max_tokens:
            self.finish(sequence, FinishReason.LENGTH)


def random_driver(seed: int, policy: str | None = None) -> Driver:
    """A driver with random limits: every block size, pools from one sequence's need up, budgets from 1 token."""
    r = random.Random(f"case {seed}")
    size = r.choice((1, 2, 3, 4, 5, 7, 8, 16, 16, 32, 64, 128, 256))
    scale = max(1, min(size, 96) // 8)
    mix = Mix(max_prompt=r.choice((10, 40)) * scale, max_output=r.choice((6, 24, 60)), vocabulary=r.choice((2, 2, 50)))
    longest = mix.max_prompt + 6 + mix.max_output
    needed = -(-longest // size)
    policy = policy or r.choice(("paged", "paged", "paged", r.choice(RESERVING)))
    config = SchedulerConfig(
        max_model_len=longest,
        max_num_seqs=r.choice((2, 5, 8, 16)),
        max_num_batched_tokens=r.choice((1, 3, 8 * scale, 32 * scale, 256 * scale)),
        policy=policy,
        order=r.choice(("fcfs", "priority")),
        max_waiting=r.choice((2, 100, 100)),
        watermark=r.choice((0.0, 0.01, 0.1)),
        preemption=r.choice(("recompute", "swap", "swap", "auto")),
        preemption_cost=r.choice((None, PreemptionCost(1.0, size * r.random()))),
    )
    pool = 2 * needed * r.randint(5, 8) if policy in RESERVING else r.randint(needed, 2 * needed)
    cache = CacheConfig(
        pool,
        size,
        prefix_caching=r.random() < 0.8,
        num_host_blocks=r.choice((0, 2, needed, 3 * needed)),
        prefix_index=r.choice(("hash", "radix")),
        window=r.choice((None, None, r.randint(1, longest))) if policy == "paged" else None,
    )
    return Driver(seed, config, cache, mix)


def pressed_driver(seed: int) -> Driver:
    """A driver where whoever is short of blocks swaps, in the steps that also copy on write and bring others back."""
    r = random.Random(f"pressed {seed}")
    mix = Mix(add=0.5, max_prompt=14, max_output=12, vocabulary=50, reset_cache=0.0)
    size = r.choice((2, 3, 4))
    needed = -(-(mix.max_prompt + 6 + mix.max_output) // size)
    config = SchedulerConfig(
        max_model_len=mix.max_prompt + 6 + mix.max_output,
        max_num_seqs=16,
        max_num_batched_tokens=r.choice((12, 24)),
        order=r.choice(("fcfs", "priority", "priority")),
        watermark=0.0,
        preemption="swap",
    )
    cache = CacheConfig(2 * needed + 2, size, prefix_caching=r.random() < 0.3, num_host_blocks=r.choice((needed, 60)))
    return Driver(seed, config, cache, mix)
