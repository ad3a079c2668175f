"""``trace``: requests at the times, and with the lengths, that a real service saw.

Prompts that the trace does not hold are made: words of the exact length; where the trace says which parts of prompts
were equal (Mooncake's ``hash_ids``), equal parts have equal words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import ClassVar, Literal

from workloads.chat import check_endpoint
from workloads.prompts import PromptMaker
from workloads.request import Load, RequestSpec, WorkloadError
from workloads.tokens import WORDS, TokenCounter, WordCounter
from workloads.trace_files import FORMATS, TraceRow, read_trace
from workloads.workload import Endpoint

MOONCAKE_BLOCK = 512  # tokens for one hash id


@dataclass(frozen=True, slots=True)
class Trace:
    """Parameters of ``trace``."""

    name: ClassVar[str] = "trace"

    file: str = ""  # path of the trace
    format: Literal["auto", "mooncake", "burstgpt", "azure", "jsonl"] = "auto"
    limit: int = 0  # rows to take from the start; 0: all
    speed: float = 1.0  # times are divided by this; another speed than 1 is another load, and recorded as such
    scale: float = 1.0  # lengths are multiplied by this, for small machines
    concurrency: int = 0  # above 0: a closed loop that ignores the times
    temperature: float = 0.0
    endpoint: Endpoint = "completions"

    def __post_init__(self) -> None:
        if self.format != "auto" and self.format not in FORMATS:
            raise WorkloadError(f"workload trace: format {self.format!r} is not one of auto, {', '.join(FORMATS)}")
        if self.speed <= 0 or self.scale <= 0:
            raise WorkloadError("workload trace: speed and scale must be above 0")
        if self.limit < 0 or self.concurrency < 0:
            raise WorkloadError("workload trace: limit and concurrency must be 0 or more")
        check_endpoint(self.name, self.endpoint)

    def rows(self) -> list[TraceRow]:
        if not self.file:
            raise WorkloadError("workload trace needs a file: trace:file=PATH")
        return read_trace(Path(self.file).expanduser(), self.format, self.limit or None)

    def loads(self) -> tuple[Load, ...]:
        return (Load("closed", concurrency=self.concurrency) if self.concurrency else Load("trace"),)

    def default_count(self, load: Load) -> int:
        """All rows."""
        return len(self.rows())

    def requests(
        self, count: int, seed: int, counter: TokenCounter, max_model_len: int | None = None
    ) -> tuple[RequestSpec, ...]:
        """The first ``count`` rows by time; a trace that is shorter gives what it has."""
        rows = sorted(self.rows(), key=lambda row: row.t_ns or 0)[:count]
        maker = PromptMaker(
            self.name, self.endpoint, counter, Random(f"{self.name}/{seed}"), max_model_len, self.temperature
        )
        prefixes = _Prefixes(seed, counter)
        origin = rows[0].t_ns or 0
        requests = []
        for index, row in enumerate(rows):
            request = self._request(index, row, maker, prefixes)
            if row.t_ns is not None:
                request = replace(request, at_ns=round((row.t_ns - origin) / self.speed))
            requests.append(request)
        return tuple(requests)

    def _request(self, index: int, row: TraceRow, maker: PromptMaker, prefixes: _Prefixes) -> RequestSpec:
        output = max(1, round(row.output_tokens * self.scale))
        if row.messages is not None or row.prompt is not None:
            return self._given(index, row, output, maker)
        tokens = max(1, round(row.input_tokens * self.scale))
        block = max(1, round(MOONCAKE_BLOCK * self.scale))
        # The last id covers the rest of the prompt, which is made as the request's own words.
        ids = row.hash_ids[: max(0, (tokens - 1) // block)]
        if maker.limit is not None:
            ids = ids[: max(0, (maker.limit - 16) // (2 * block))]
        shared = prefixes.shared(ids) * block
        return maker.make(index, tokens, output, prefix=prefixes.text(ids, block), shared=shared)

    def _given(self, index: int, row: TraceRow, output: int, maker: PromptMaker) -> RequestSpec:
        """A prompt that the trace holds, sent as it is."""
        if row.messages is not None:
            tokens = maker.counter.count_messages(row.messages)
        else:
            assert row.prompt is not None
            tokens = maker.counter.count_prompt(row.prompt)
        if maker.limit is not None and tokens >= maker.limit:
            raise WorkloadError(
                f"workload trace: prompt {index} has {tokens} tokens, the engine takes {maker.limit} with the answer; "
                "raise its max_model_len or take that row out"
            )
        room = output if maker.limit is None else min(output, maker.limit - tokens)
        made = maker.of_text(index, "", tokens, room, tokens)
        exact = not isinstance(maker.counter, WordCounter)
        return replace(made, messages=row.messages, prompt=row.prompt, exact=exact)


class _Prefixes:
    """Words for hash ids: the same id in the same place always gives the same words."""

    def __init__(self, seed: int, counter: TokenCounter) -> None:
        self._seed = seed
        self._counter = counter
        self._texts: dict[int, str] = {}
        self._seen: set[tuple[int, ...]] = set()

    def text(self, ids: tuple[int, ...], block: int) -> str:
        return " ".join(self._block(one, block) for one in ids)

    def shared(self, ids: tuple[int, ...]) -> int:
        """How many leading ids an earlier request began with, too."""
        known = max((n for n in range(1, len(ids) + 1) if ids[:n] in self._seen), default=0)
        self._seen.update(ids[:n] for n in range(1, len(ids) + 1))
        return known

    def _block(self, one: int, block: int) -> str:
        if one not in self._texts:
            words = Random(f"trace/{self._seed}/{one}").choices(WORDS, k=block)
            while len(words) > 1 and (over := self._counter.count_prompt(" ".join(words)) - block) > 0:
                words = words[: max(1, len(words) - over)]
            self._texts[one] = " ".join(words)
        return self._texts[one]
