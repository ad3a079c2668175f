"""Five bugs that engines really had, written back into the reference engine from their reports.

They share nothing with the fault registry: each is the mistake itself, as a patch of the function that has it right.
``python -m tests.harness.conformance.historical_bugs NAME [server options]`` serves with one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any


def stale_hash_entry() -> None:
    """nano-vllm#163, vllm#5364: a block is handed out again and its old hash still leads to it."""
    from reference_engine.kv.block_pool import BlockPool

    right = BlockPool.allocate

    def allocate(self: BlockPool, near: int = -1) -> int:
        forget, self._on_evict = self._on_evict, lambda block: None
        try:
            return right(self, near)
        finally:
            self._on_evict = forget

    BlockPool.allocate = allocate  # type: ignore[method-assign]


def decode_position() -> None:
    """nano-vllm#67: the position of a decoded token is the length of the sequence, one too many."""
    from reference_engine import runner

    right = runner.build

    def build(plan: Any, *rest: Any, **named: Any) -> Any:
        step = right(plan, *rest, **named)
        if all(part.query_len == 1 for part in plan.seqs):
            return replace(step, positions=step.positions + 1)
        return step

    runner.build = build


def stop_string_over_tokens() -> None:
    """vllm#3574: a stop string is looked for in what is new, after everything else was sent."""
    from reference_engine.detokenizer import Detokenizer

    Detokenizer._held_back = lambda self, text: 0  # type: ignore[method-assign]


def token_lost_at_resume() -> None:
    """vllm#16832: the token sampled when a preempted request resumes is kept and never sent."""
    from reference_engine.engine import Engine

    right = Engine._accept
    told: dict[int, int] = {}

    def accept(self: Engine, job: Any, sequence: Any, *rest: Any) -> Any:
        output = right(self, job, sequence, *rest)
        if told.get(sequence.seq_id, 0) != sequence.preemptions:
            told[sequence.seq_id] = sequence.preemptions
            output.text = ""
        return output

    Engine._accept = accept  # type: ignore[method-assign]


def oversized_request_waits() -> None:
    """inference-sim#373: nothing refuses a request that the pool can never hold; it waits for ever."""
    from reference_engine.request import RequestRejected
    from reference_engine.server.loop import EngineLoop, _accept

    def admit(self: EngineLoop, ticket: Any) -> None:
        try:
            for request in ticket.requests:
                self._engine.add(request, show_special_tokens=ticket.show_special_tokens)
        except RequestRejected:
            return
        self._post(_accept, ticket)

    EngineLoop._admit = admit  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    patch.__name__: patch
    for patch in (
        stale_hash_entry,
        decode_position,
        stop_string_over_tokens,
        token_lost_at_resume,
        oversized_request_waits,
    )
}


def main() -> int:
    BUGS[sys.argv.pop(1)]()
    from reference_engine.server.__main__ import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
