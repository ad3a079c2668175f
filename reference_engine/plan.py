"""The immutable plan of one engine step: everything the runner needs, nothing it could change.

A plan can be printed, logged as one JSON line (``to_json``) and replayed (``from_json``) against a fresh runner: it holds the
token ids, the positions and the physical blocks, so replaying a log rebuilds the same K/V.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, dataclass, replace

DRAWN = -1  # stands for the token that the step before draws, in a plan made ahead of it


@dataclass(frozen=True, slots=True)
class ScheduledSeq:
    """The share of one sequence in a step: tokens at positions ``start .. start + len(tokens) - 1``."""

    seq_id: int
    start: int  # context_len
    tokens: tuple[int, ...]  # query_len of them
    block_table: tuple[int, ...]  # physical block of position p is block_table[p // block_size]
    # Draws from the last row's logits: 0 unless this step reaches the last known token; n when a request's n continuations
    # fork off its prompt, else 1.
    num_samples: int
    prompt_logprobs: bool = False  # logits of every row of this slice are needed

    @property
    def query_len(self) -> int:
        return len(self.tokens)

    @property
    def seq_len(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy all K/V of physical block ``source`` to ``target`` (copy-on-write), before the step computes."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step.  ``seqs`` is in batch order: decodes and prefill chunks mixed under one token budget."""

    step: int
    seqs: tuple[ScheduledSeq, ...]
    copies: tuple[BlockCopy, ...] = ()
    preempted: tuple[int, ...] = ()  # seq_ids that lost their blocks while this plan was made
    # Before anything else, in this order; ids of host blocks are numbers of their own.
    swap_out: tuple[BlockCopy, ...] = ()  # device block -> host block
    swap_in: tuple[BlockCopy, ...] = ()  # host block -> device block

    @property
    def num_tokens(self) -> int:
        return sum(s.query_len for s in self.seqs)

    @property
    def is_empty(self) -> bool:
        return not self.seqs

    def with_drawn(self, drawn: Mapping[int, SequenceOf[int]]) -> StepPlan:
        """This plan with every ``DRAWN`` replaced by the token that its sequence drew.  Raises KeyError for one that drew
        none.
        """
        parts = tuple(replace(s, tokens=(drawn[s.seq_id][0],)) if s.tokens == (DRAWN,) else s for s in self.seqs)
        return replace(self, seqs=parts)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> StepPlan:
        raw = json.loads(line)
        return cls(
            step=raw["step"],
            seqs=tuple(
                ScheduledSeq(
                    seq_id=s["seq_id"],
                    start=s["start"],
                    tokens=tuple(s["tokens"]),
                    block_table=tuple(s["block_table"]),
                    num_samples=s["num_samples"],
                    prompt_logprobs=s["prompt_logprobs"],
                )
                for s in raw["seqs"]
            ),
            copies=tuple(BlockCopy(c["source"], c["target"]) for c in raw["copies"]),
            preempted=tuple(raw["preempted"]),
            swap_out=tuple(BlockCopy(c["source"], c["target"]) for c in raw.get("swap_out", ())),
            swap_in=tuple(BlockCopy(c["source"], c["target"]) for c in raw.get("swap_in", ())),
        )
