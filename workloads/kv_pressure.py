"""``kv-pressure``: loads made to fill a KV pool of known size, and to see what an engine does when it is full.

::

    scenario        live KV over time                      what it shows
    fill            ~~~~~~~~~ flat at percent of the pool   utilisation that the engine reaches, waste at that level
    oversubscribe   =======   wants 120, 150, 200 %         queueing, preemption, the cost of computing again
    sawtooth        /|/|/|    waves that fill and drain     whether freed memory is usable at once
    tails           #.#.#.    last blocks hold one token    the worst internal fragmentation: (B - 1) slots a sequence
    abort-storm     /x/x/x~   clients hang up at the top    whether memory comes back: the last wave needs the pool

A request holds its prompt from the start and its answer as it grows: half of it on average.  So many in flight hold
``percent`` of the pool on average::

    concurrency = percent x kv_tokens / (input + output / 2)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Literal

from workloads.chat import check_endpoint
from workloads.prompts import PromptMaker
from workloads.request import Load, RequestSpec, WorkloadError
from workloads.tokens import TokenCounter
from workloads.workload import Endpoint

Scenario = Literal["fill", "oversubscribe", "sawtooth", "tails", "abort-storm"]
DEFAULT_PERCENT: dict[str, tuple[int, ...]] = {
    "fill": (50, 80, 95),
    "oversubscribe": (120, 150, 200),
    "sawtooth": (95,),
    "tails": (80,),
    "abort-storm": (95,),
}
ROUNDS = 4  # requests for each place in a steady scenario
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class KvPressure:
    """Parameters of ``kv-pressure``.  ``kv_tokens`` is the pool; 0 takes what the engine tells (8192 without one)."""

    name: ClassVar[str] = "kv-pressure"

    scenario: Scenario = "fill"
    kv_tokens: int = 0  # token slots of the pool; pagedbench probe-memory measures them from outside
    percent: tuple[int, ...] = ()  # of the pool; each level is a cell.  Default: the scenario's own
    input: int = 256  # tokens
    output: int = 256
    block_size: int = 16  # slots; tails make the last block hold one token
    waves: int = 4  # sawtooth and abort-storm
    period_s: float = 20.0  # from one wave to the next
    hold_s: float = 5.0  # abort-storm: seconds after which a client hangs up
    temperature: float = 0.0
    endpoint: Endpoint = "completions"

    def __post_init__(self) -> None:
        if self.scenario not in DEFAULT_PERCENT:
            known = ", ".join(DEFAULT_PERCENT)
            raise WorkloadError(f"workload kv-pressure: scenario {self.scenario!r} is not one of {known}")
        if min(self.input, self.output, self.block_size, self.waves) < 1 or self.kv_tokens < 0:
            raise WorkloadError("workload kv-pressure: input, output, block_size and waves must be at least 1")
        if self.percent and min(self.percent) < 1:
            raise WorkloadError("workload kv-pressure: percent must be numbers of 1 or more, such as percent=80+120")
        if self.period_s <= 0 or self.hold_s <= 0:
            raise WorkloadError("workload kv-pressure: period_s and hold_s must be above 0 seconds")
        check_endpoint(self.name, self.endpoint)

    @property
    def pool(self) -> int:
        return self.kv_tokens or 8192

    @property
    def levels(self) -> tuple[int, ...]:
        return self.percent or DEFAULT_PERCENT[self.scenario]

    @property
    def comes_in_waves(self) -> bool:
        return self.scenario in ("sawtooth", "abort-storm")

    def concurrency_at(self, percent: int) -> int:
        """Requests in flight that hold ``percent`` of the pool: on average, or at the top of a wave."""
        held = self.input + self.output if self.comes_in_waves else self.input + self.output / 2
        return max(1, round(percent / 100 * self.pool / held))

    def loads(self) -> tuple[Load, ...]:
        if self.comes_in_waves:
            return (Load("trace"),)
        return tuple(Load("closed", concurrency=self.concurrency_at(percent)) for percent in self.levels)

    def default_count(self, load: Load) -> int:
        """Requests of a cell when the user names no number."""
        if self.comes_in_waves:
            extra = 1 if self.scenario == "abort-storm" else 0
            return (self.waves + extra) * self.concurrency_at(self.levels[0])
        return ROUNDS * (load.concurrency or 1)

    def requests(
        self, count: int, seed: int, counter: TokenCounter, max_model_len: int | None = None
    ) -> tuple[RequestSpec, ...]:
        random = Random(f"{self.name}/{self.scenario}/{seed}")
        maker = PromptMaker(self.name, self.endpoint, counter, random, max_model_len, self.temperature)
        if self.scenario == "tails":
            return tuple(self._tail(maker, index, random) for index in range(count))
        requests = [maker.make(index, self.input, self.output) for index in range(count)]
        if not self.comes_in_waves:
            return tuple(requests)
        size = self.concurrency_at(self.levels[0])
        last_wave = (count - 1) // size
        timed = []
        for request in requests:
            wave = request.index // size
            storms = self.scenario == "abort-storm" and wave < max(1, last_wave)
            at_ns = round(wave * self.period_s * NS_PER_S)
            timed.append(replace(request, at_ns=at_ns, cancel_after_s=self.hold_s if storms else None))
        return tuple(timed)

    def _tail(self, maker: PromptMaker, index: int, random: Random) -> RequestSpec:
        """Every second request is short; all end with one token in their last block."""
        block = self.block_size
        blocks = 1 if index % 2 else max(1, (self.input + self.output) // block)
        output = max(1, min(self.output, blocks * block // 2))
        # The KV of the last answer token is never written: prompt + output - 1 slots are used.
        return maker.make(index, blocks * block + 2 - output, output)
