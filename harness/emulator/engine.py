"""The emulated engine: a queue, a pool of KV blocks, and clocks.  It computes nothing and keeps its times.

With pacing ``streams`` every answer follows its own clock; chunk ``k`` is due at a fixed offset from the request's
arrival, however late the last one was.  With ``steps`` all running sequences get their tokens at the end of a step, as
in a real engine: a step lasts ``itl_ms`` plus ``itl_per_seq_ms`` for each of them, and a step that takes in prompts
lasts ``ttft_ms`` longer.

When the pool has no block for the next token, the sequence that was admitted last gives all its blocks back, waits in
front of the queue and, once it is admitted again, needs its time to the first chunk again: preemption by recompute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from harness.emulator.answers import Answer
from harness.emulator.options import MIDWAY_FAULTS, EmulatorOptions, Fault

NS_PER_S = 1e9


class Listener(Protocol):
    """Who gets the tokens of one sequence."""

    def tokens(self, first: int, count: int, is_last: bool) -> None: ...

    def fault(self, kind: Fault) -> None: ...


class Clock(Protocol):
    """Where the engine gets its wake-ups (``harness.load.alarms.Alarms``)."""

    def call_at(self, t_ns: int, callback: Callable[[], object]) -> Any: ...


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine.  With ``n`` answers to one prompt, ``generated`` counts each of them."""

    prompt_tokens: int
    output_tokens: int
    answer: Answer
    listener: Listener
    t_received: int
    n: int = 1
    generated: int = 0
    blocks: int = 0
    due: int = 0
    preemptions: int = 0
    stalled: bool = False

    @property
    def live(self) -> int:
        """Tokens whose KV it holds, the prompt once."""
        return self.prompt_tokens + self.n * self.generated

    @property
    def logical(self) -> int:
        return self.n * (self.prompt_tokens + self.generated)

    @property
    def fault_at(self) -> int:
        """Tokens after which a fault in the middle of the answer strikes."""
        after = self.answer.fault_after_tokens
        return self.output_tokens // 2 if after is None else after


@dataclass(slots=True)
class Counts:
    """What the engine has done since it began, and the peaks of what it held."""

    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    peak_live: int = 0
    peak_blocks: int = 0
    peak_running: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {"length": 0, "stop": 0, "abort": 0})


class EmulatedEngine:
    """``add`` sequences; their listeners get tokens when they are due; ``abort`` takes one out."""

    def __init__(self, options: EmulatorOptions, clock: Clock, now: Callable[[], int]) -> None:
        self._options = options
        self._clock = clock
        self._now = now
        self._block_size = options.block_size
        self.capacity = None if options.kv_tokens is None else options.kv_tokens // options.block_size  # blocks
        self.held = 0  # blocks
        self.live = 0  # tokens
        self.running: dict[Sequence, None] = {}  # in the order of admission
        self.waiting: deque[Sequence] = deque()
        self.counts = Counts()
        self._in_step = False

    def fits(self, prompt_tokens: int, output_tokens: int, n: int) -> bool:
        """Whether the pool could hold such a request alone."""
        return self.capacity is None or self._blocks_for(prompt_tokens, output_tokens, n) <= self.capacity

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)
        if self._options.pacing == "streams":
            self._admit(sequence.t_received)
        elif not self._in_step:
            self._begin_step(self._now())

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence whose client went away.  Idempotent."""
        if sequence in self.running:
            self._release(sequence, "abort")
            if self._options.pacing == "streams":
                self._admit(self._now())
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            self.counts.finished["abort"] += 1

    def _blocks_for(self, prompt: int, generated: int, n: int) -> int:
        """Blocks of a prompt and ``n`` answers of ``generated`` tokens; full blocks of the prompt are shared."""
        size = self._block_size
        if n == 1:
            return -(-(prompt + generated) // size)
        shared, rest = divmod(prompt, size)
        return shared + n * -(-(rest + generated) // size)

    def _admit(self, now: int) -> list[Sequence]:
        """Take in what waits, in order, as long as there is room."""
        admitted = []
        while self.waiting and len(self.running) < self._options.max_num_seqs:
            sequence = self.waiting[0]
            blocks = self._blocks_for(sequence.prompt_tokens, sequence.generated + 1, sequence.n)
            if self.capacity is not None and self.held + blocks > self.capacity:
                break
            self.waiting.popleft()
            self.running[sequence] = None
            self._hold(sequence, self._blocks_for(sequence.prompt_tokens, sequence.generated, sequence.n))
            self.live += sequence.live
            self._note_peaks()
            if not sequence.preemptions:
                self.counts.prompt_tokens += sequence.prompt_tokens
            admitted.append(sequence)
            if self._options.pacing == "streams":
                gap = next(sequence.answer.gaps) if not sequence.generated else sequence.answer.ttft_ns
                sequence.due = now + gap + self._prefill_ns(sequence)
                self._clock.call_at(sequence.due, partial(self._tick, sequence, sequence.due))
        return admitted

    def _prefill_ns(self, sequence: Sequence) -> int:
        rate = self._options.prefill_tokens_per_s
        return 0 if rate is None else round(sequence.live / rate * self._options.slowdown * NS_PER_S)

    def _hold(self, sequence: Sequence, blocks: int) -> None:
        self.held += blocks - sequence.blocks
        sequence.blocks = blocks

    def _note_peaks(self) -> None:
        counts = self.counts
        counts.peak_live = max(counts.peak_live, self.live)
        counts.peak_blocks = max(counts.peak_blocks, self.held)
        counts.peak_running = max(counts.peak_running, len(self.running))

    def _release(self, sequence: Sequence, reason: str) -> None:
        del self.running[sequence]
        self.live -= sequence.live
        self._hold(sequence, 0)
        self.counts.finished[reason] += 1

    def _preempt(self, victim: Sequence) -> None:
        del self.running[victim]
        self.live -= victim.live
        self._hold(victim, 0)
        victim.preemptions += 1
        self.counts.preemptions += 1
        self.waiting.appendleft(victim)

    def _tick(self, sequence: Sequence, due: int) -> None:
        """One chunk of one stream is due."""
        if sequence not in self.running or sequence.due != due:
            return  # aborted, or preempted since
        if self._emit(sequence):
            sequence.due = due + next(sequence.answer.gaps)
            self._clock.call_at(sequence.due, partial(self._tick, sequence, sequence.due))
        elif self.waiting:
            self._admit(self._now())

    def _emit(self, sequence: Sequence) -> bool:
        """Give one chunk.  Returns whether the sequence goes on running."""
        answer = sequence.answer
        if answer.fault in MIDWAY_FAULTS and sequence.generated >= sequence.fault_at:
            if answer.fault == "stall":
                sequence.stalled = True  # holds what it has until its client leaves
            else:
                self._release(sequence, "abort")
            sequence.listener.fault(answer.fault)
            return False
        count = min(answer.tokens_per_chunk, sequence.output_tokens - sequence.generated)
        if not self._make_room(sequence, count):
            return False
        first = sequence.generated
        sequence.generated += count
        self.live += count * sequence.n
        self.counts.generation_tokens += count * sequence.n
        self._note_peaks()
        is_last = sequence.generated >= sequence.output_tokens
        if is_last:
            self._release(sequence, "length")
        sequence.listener.tokens(first, count, is_last)
        return not is_last and sequence in self.running

    def _make_room(self, sequence: Sequence, count: int) -> bool:
        """Blocks for ``count`` more tokens, by preemption if need be; False when it was the victim itself."""
        blocks = self._blocks_for(sequence.prompt_tokens, sequence.generated + count, sequence.n)
        while self.capacity is not None and self.held - sequence.blocks + blocks > self.capacity:
            victim = next(reversed(self.running))
            self._preempt(victim)
            if victim is sequence:
                return False
        self._hold(sequence, blocks)
        return True

    def _begin_step(self, t: int) -> None:
        admitted = self._admit(t)
        if not self.running:
            self._in_step = False
            return
        self._in_step = True
        options = self._options
        step_ms = options.itl_ms + options.itl_per_seq_ms * len(self.running) + (options.ttft_ms if admitted else 0.0)
        end = t + round(step_ms * options.slowdown * 1e6) + sum(map(self._prefill_ns, admitted))
        self._clock.call_at(end, partial(self._end_step, end))

    def _end_step(self, end: int) -> None:
        for sequence in tuple(self.running):
            if sequence in self.running and not sequence.stalled:
                self._emit(sequence)
        self._begin_step(end)
