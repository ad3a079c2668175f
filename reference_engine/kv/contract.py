"""The contract between the scheduler and a memory policy, and the block table they share.

::

    positions          0 ............ computed ........ computed + scheduled
    block table        [ b0 ][ b1 ][ b2 ][ b3 ]
                       cached | own, full | own, being filled
    slot of position   table[position // block_size] * block_size + position % block_size    (the only source of a slot)

``KVManager`` is what the scheduler asks of a memory policy: ``reference_engine.kv.manager`` is PagedAttention's, the
others are in ``reference_engine.policies``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import KeysView
from dataclasses import dataclass, field
from typing import ClassVar

from reference_engine.kv.ledger import LedgerSnapshot
from reference_engine.kv.prefix_cache import CachedBlock
from reference_engine.plan import BlockCopy
from reference_engine.request import Request, Sequence


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold positions ``0 .. num_tokens - 1``."""
    return -(-num_tokens // block_size)


def slots_needed(request: Request) -> int:
    """Most K/V slots one continuation can fill: the last generated token is returned but never computed."""
    return len(request.prompt) + request.params.max_tokens - 1


@dataclass(slots=True, eq=False)
class BlockTable:
    """Blocks of one admitted sequence."""

    sequence: Sequence
    blocks: list[int]
    registered: list[CachedBlock] = field(default_factory=list)  # entries of the leading blocks the prefix cache knows
    sharable: bool = True  # False once a collision, an eviction behind the window or a reset ended the chain
    dropped: int = 0  # leading blocks given up because they are behind the sliding window; -1 in `blocks`
    frozen: tuple[int, ...] | None = None  # `blocks` as the plan wants it, until it changes

    def as_tuple(self) -> tuple[int, ...]:
        if self.frozen is None:
            self.frozen = tuple(self.blocks)
        return self.frozen


@dataclass(frozen=True, slots=True)
class HostUsage:
    """Blocks of the host pool, and blocks copied to and from it."""

    total: int = 0
    used: int = 0
    blocks_out: int = 0
    blocks_in: int = 0


class KVManager(ABC):
    """Memory policy of one KV pool.

    Life of a sequence: ``find_prefix`` -> ``can_admit`` / ``admit`` -> (``can_allocate`` / ``allocate`` ->
    ``commit``)* -> ``free``.  A sequence between ``admit`` and ``free`` has a block table.  The scheduler alone
    changes ``Sequence.computed``; the manager reads it.
    """

    preempts: ClassVar[bool]  # whether running sequences may be evicted to let others grow
    block_size: int

    @property
    @abstractmethod
    def num_free_blocks(self) -> int:
        """Blocks that could be handed out now, evictable ones included."""

    @property
    @abstractmethod
    def holders(self) -> KeysView[int]:
        """seq_ids of the sequences that hold memory."""

    @abstractmethod
    def check_fits(self, request: Request) -> None:
        """Raise RequestRejected (400) if the request could not run even in an empty pool."""

    @abstractmethod
    def find_prefix(self, sequence: Sequence, limit: int) -> list[CachedBlock]:
        """Shareable full blocks that hold the sequence's first tokens, at most ``limit`` of them.

        Nothing is held yet: call ``admit`` before any other allocation, or ask again.
        """

    @abstractmethod
    def can_admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int, headroom: int) -> bool:
        """Whether all known tokens would fit beside ``headroom`` other blocks, and the policy allows one more sequence.

        ``continuations`` > 1: the sequence stands for that many, which fork once its prompt is computed.
        """

    @abstractmethod
    def admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int) -> int:
        """Give the sequence a table that starts with (and holds) ``prefix``.  Only after ``can_admit``.

        Returns how many of its tokens are in place: those of the prefix, or all that were swapped out.
        """

    @abstractmethod
    def can_allocate(self, sequence: Sequence, end: int) -> bool:
        """Whether ``allocate`` would succeed."""

    @abstractmethod
    def allocate(self, sequence: Sequence, end: int) -> None:
        """Make positions ``computed .. end - 1`` writable by this sequence alone.  Only after ``can_allocate``."""

    @abstractmethod
    def num_writable(self, sequence: Sequence) -> int:
        """Tokens from ``computed`` on for which ``allocate`` would succeed now."""

    @abstractmethod
    def blocks_missing(self, sequence: Sequence) -> int:
        """Blocks that the known tokens of an admitted sequence will still take from the free ones."""

    @abstractmethod
    def blocks_exclusive(self, sequence: Sequence, besides: list[CachedBlock]) -> int:
        """Blocks that ``free`` would return to the pool for certain, not counting those of the prefix ``besides``."""

    def can_fork(self, parent: Sequence) -> bool:
        """Whether ``fork`` would succeed."""
        return True

    @abstractmethod
    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Give ``child`` a table with the parent's computed K/V; ``child.computed == parent.computed``."""

    @abstractmethod
    def commit(self, sequence: Sequence) -> None:
        """``computed`` has advanced: blocks that became full may be shared from now on."""

    @abstractmethod
    def free(self, seq_id: int) -> None:
        """Release everything the sequence holds, on the host too.  The only release path; a second call does nothing."""

    def can_swap_out(self, sequence: Sequence) -> bool:
        """Whether ``swap_out`` would succeed."""
        return False

    def swap_out(self, sequence: Sequence) -> None:
        """Move the computed K/V of an admitted sequence to host blocks and give up its table.  Only after
        ``can_swap_out``.  ``admit`` brings it back.
        """
        raise NotImplementedError

    def take_swaps(self) -> tuple[tuple[BlockCopy, ...], tuple[BlockCopy, ...]]:
        """Swaps out and in that must run, in this order, before the copies; each is handed out once."""
        return (), ()

    def host_usage(self) -> HostUsage:
        """The host pool now, and what has been copied since the start."""
        return HostUsage()

    def loss(self, sequence: Sequence) -> tuple[int, int]:
        """What a preemption would cost: blocks to swap, and tokens to recompute because nobody else keeps them cached."""
        return blocks_for(sequence.computed, self.block_size), sequence.computed

    def reset_cache(self) -> int:
        """Forget all cached content, also what running sequences hold (they keep their blocks); blocks forgotten."""
        return 0

    @abstractmethod
    def block_table(self, seq_id: int) -> tuple[int, ...]:
        """Physical blocks in position order."""

    def reserved_blocks(self, seq_id: int) -> tuple[int, ...]:
        """Blocks kept for the sequence that are not in its table yet."""
        return ()

    @abstractmethod
    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Copies that must run before the next step computes; each is handed out once.

        No block is the source of one and the target of another, so their order does not matter.
        """

    @abstractmethod
    def ledger(self) -> LedgerSnapshot:
        """What every slot is used for; O(admitted sequences)."""

    @abstractmethod
    def audit(self) -> None:
        """Check every invariant of the policy.  Raises AuditError.  Not to be called while a plan is being made."""
