"""Beam search's use of blocks, without a model: hypotheses fork and die at random over the real block manager.

Every step each of the ``width`` hypotheses dies with probability ``death`` and is replaced by a fork of another one, as
when all of its extensions score below the other hypotheses'.  One number describes the text, the manager does the rest.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from reference_engine.config import CacheConfig
from reference_engine.kv.manager import PagedKVManager
from reference_engine.request import Request, SamplingParams, Sequence
from reference_engine.simulate.trace import TracedRequest


def beam_blocks_saved(
    trace: Iterable[TracedRequest], *, width: int, death: float, seed: int, block_size: int = 16
) -> float:
    """Share of blocks saved by sharing, over all steps: 1 - blocks held / blocks summed over hypotheses."""
    r = random.Random(seed)
    held = refs = 0
    for request in trace:
        blocks = width * (-(-(request.prompt + request.output) // block_size) + 1)
        kv = PagedKVManager(CacheConfig(blocks, block_size, prefix_caching=False))
        beam = _Beam(kv, request, width)
        for _ in range(request.output - 1):
            beam.replace(r, death)
            beam.advance()
            held += kv.pool.num_held
            refs += kv.pool.num_refs
    return 1 - held / refs if refs else 0.0


class _Beam:
    """The hypotheses of one request, all of the same length."""

    def __init__(self, kv: PagedKVManager, traced: TracedRequest, width: int) -> None:
        self._kv = kv
        prompt = (0,) * traced.prompt
        self._request = Request("beam", prompt, SamplingParams(max_tokens=traced.output))
        root = Sequence(0, self._request, tokens=list(prompt))
        self._next_id = 1
        kv.admit(root, [], 1)
        kv.allocate(root, traced.prompt)
        root.computed = traced.prompt
        self._hypotheses = [root]
        for _ in range(width - 1):
            self._hypotheses.append(self._fork(root))

    def replace(self, r: random.Random, death: float) -> None:
        """Some hypotheses die, others fork in their place."""
        hypotheses = self._hypotheses
        for index in range(len(hypotheses)):
            if len(hypotheses) > 1 and r.random() < death:
                parent = hypotheses[(index + r.randrange(1, len(hypotheses))) % len(hypotheses)]
                self._kv.free(hypotheses[index].seq_id)
                hypotheses[index] = self._fork(parent)

    def advance(self) -> None:
        """Every hypothesis computes one token."""
        for sequence in self._hypotheses:
            sequence.tokens.append(0)
            self._kv.allocate(sequence, sequence.computed + 1)
        self._kv.take_copies()
        for sequence in self._hypotheses:
            sequence.computed += 1

    def _fork(self, parent: Sequence) -> Sequence:
        child = Sequence(self._next_id, self._request, tokens=list(parent.tokens), computed=parent.computed)
        self._next_id += 1
        self._kv.fork(parent, child)
        return child
