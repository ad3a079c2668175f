"""Small engines in simulated time, whose capacity is known: paged with preemption, reserving, limited by slots."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from harness.capacity.estimate import Round
from harness.capacity.streams import Stream

STEP_NS = 20_000_000


@dataclass
class Running:
    stream: Stream
    prompt: int
    output: int
    generated: int = 0


@dataclass
class SimulatedEngine:
    """Serves one round.  ``reserve``: admit only when prompt + output fit; else grow block by block and preempt."""

    capacity: int  # tokens
    block: int = 16
    slots: int = 10**6
    reserve: bool = False
    rng: random.Random = field(default_factory=random.Random)

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.block)

    def serve(self, n: int, prompt: int, output: int, *, stop_after: int = 3, jitter: float = 0.2) -> Round:
        lengths = [prompt + 37 * i % 101 for i in range(n)]
        waiting = [Running(Stream(length, 0), length, output) for length in lengths]
        everything = [one.stream for one in waiting]
        running: list[Running] = []
        now, preemptions, finished = 1, 0, 0
        pool = self.capacity // self.block
        left = 20  # steps that are still watched after the last event
        while (waiting or running) and left:
            left -= preemptions >= stop_after or finished >= 2
            now += STEP_NS
            running, lost = self.grow(running, pool)
            preemptions += len(lost)
            waiting = lost + waiting
            while not lost and waiting and len(running) < self.slots and self.admits(running, waiting[0], pool):
                running.append(waiting.pop(0))
            for one in list(running):
                one.generated += 1
                one.stream.tokens.append(now + self.rng.randrange(1, max(2, int(jitter * STEP_NS))))
                if one.generated == one.output:
                    one.stream.finished, one.stream.t_end = True, one.stream.tokens[-1] + 1000
                    running.remove(one)
                    finished += 1
        return Round(prompt, output, tuple(everything), now + STEP_NS)

    def admits(self, running: list[Running], new: Running, pool: int) -> bool:
        if self.reserve:
            return sum(self.blocks(r.prompt + r.output) for r in [*running, new]) <= pool
        return (
            sum(self.blocks(r.prompt + r.generated) for r in running) + self.blocks(new.prompt + new.generated) <= pool
        )

    def grow(self, running: list[Running], pool: int) -> tuple[list[Running], list[Running]]:
        """Give each sequence the slot for its next token; the last admitted gives way when there is none."""
        lost: list[Running] = []
        if not self.reserve:
            while sum(self.blocks(r.prompt + r.generated) for r in running) > pool:
                lost.insert(0, running.pop())
        return running, lost
