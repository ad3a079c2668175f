"""Memory policies on the same scheduler and runner.

``paged``        PagedAttention: blocks on demand (``reference_engine.kv.manager.PagedKVManager``).
``contiguous``   what systems before it did: every sequence reserves room for ``max_model_len`` tokens in one contiguous
                 run when it is admitted.  No sharing, and no preemption because nothing can run out.
"""

from __future__ import annotations

from collections.abc import KeysView
from dataclasses import dataclass, field

from reference_engine.config import CacheConfig, ConfigError, SchedulerConfig
from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.contract import BlockTable, KVManager, blocks_for
from reference_engine.kv.ledger import LedgerSnapshot
from reference_engine.kv.manager import PagedKVManager
from reference_engine.kv.prefix_cache import CachedBlock
from reference_engine.plan import BlockCopy
from reference_engine.request import Request, RequestRejected, Sequence


def make_manager(scheduler: SchedulerConfig, cache: CacheConfig) -> KVManager:
    """The manager of ``scheduler.policy``.  Raises ConfigError if the pool is too small for the policy."""
    if scheduler.policy == "contiguous":
        return ContiguousKVManager(cache, scheduler.max_model_len)
    return PagedKVManager(cache)


@dataclass(slots=True, eq=False)
class Reservation:
    """One sequence's run of blocks, and the runs kept for the continuations that will fork off it."""

    run: int
    table: BlockTable
    spare_runs: list[int] = field(default_factory=list)


class ContiguousKVManager(KVManager):
    """Reserve ``max_model_len`` slots for every sequence at admission.

    ::

        pool   [ run 0 .......... ][ run 1 .......... ] ... [ rest: too small for a run = external ]
        run    [ filled | asked for, not filled = reserved | never asked for + block rounding = internal ]

    All reservations have the same size, so the pool is cut into equal runs of blocks once.
    """

    preempts = False

    def __init__(self, config: CacheConfig, max_model_len: int) -> None:
        self.block_size = config.block_size
        self.num_blocks = config.num_blocks
        self.run_blocks = blocks_for(max_model_len, config.block_size)
        self.num_runs = config.num_blocks // self.run_blocks
        if not self.num_runs:
            raise ConfigError(
                f"policy contiguous reserves {max_model_len} tokens ({self.run_blocks} blocks of {config.block_size}) "
                f"for each sequence, but the KV pool has {config.num_blocks} blocks; raise --kv-memory or lower "
                "--max-model-len"
            )
        self._free_runs = list(range(self.num_runs - 1, -1, -1))  # a stack, lowest run on top
        self._reservations: dict[int, Reservation] = {}
        self._copies: list[tuple[int, BlockCopy]] = []

    @property
    def num_free_blocks(self) -> int:
        return len(self._free_runs) * self.run_blocks

    @property
    def holders(self) -> KeysView[int]:
        return self._reservations.keys()

    def check_fits(self, request: Request) -> None:
        if request.params.n > self.num_runs:
            raise RequestRejected(
                f"n={request.params.n} needs {request.params.n} reservations, but the KV pool holds {self.num_runs}; "
                "ask for a smaller n",
                param="n",
            )

    def find_prefix(self, sequence: Sequence, limit: int) -> list[CachedBlock]:
        return []

    def can_admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int, headroom: int) -> bool:
        return continuations <= len(self._free_runs)

    def admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int) -> None:
        run = self._free_runs.pop()
        spare = [self._free_runs.pop() for _ in range(continuations - 1)]
        self._reservations[sequence.seq_id] = Reservation(run, BlockTable(sequence, []), spare)

    def can_allocate(self, sequence: Sequence, end: int) -> bool:
        return end <= self.run_blocks * self.block_size

    def allocate(self, sequence: Sequence, end: int) -> None:
        reservation = self._reservations[sequence.seq_id]
        table = reservation.table
        first = reservation.run * self.run_blocks
        needed = blocks_for(end, self.block_size)
        if needed > len(table.blocks):
            table.blocks.extend(range(first + len(table.blocks), first + needed))
            table.frozen = None

    def num_writable(self, sequence: Sequence) -> int:
        return self.run_blocks * self.block_size - sequence.computed

    def blocks_missing(self, sequence: Sequence) -> int:
        return 0

    def blocks_exclusive(self, sequence: Sequence, besides: list[CachedBlock]) -> int:
        return self.run_blocks

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """The child takes one of the parent's spare runs; the parent's K/V is copied into it before the next step."""
        source = self._reservations[parent.seq_id]
        self._reservations[child.seq_id] = Reservation(source.spare_runs.pop(), BlockTable(child, []))
        self.allocate(child, child.computed)
        for pair in zip(source.table.blocks, self._reservations[child.seq_id].table.blocks, strict=True):
            self._copies.append((child.seq_id, BlockCopy(*pair)))

    def commit(self, sequence: Sequence) -> None:
        """Nothing is shared, so nothing becomes visible."""

    def free(self, seq_id: int) -> None:
        reservation = self._reservations.pop(seq_id, None)
        if reservation is None:
            return
        self._copies = [entry for entry in self._copies if entry[0] != seq_id]
        self._free_runs.extend(reversed(reservation.spare_runs))
        self._free_runs.append(reservation.run)

    def block_table(self, seq_id: int) -> tuple[int, ...]:
        return self._reservations[seq_id].table.as_tuple()

    def take_copies(self) -> tuple[BlockCopy, ...]:
        copies = tuple(copy for _, copy in self._copies)
        self._copies = []
        return copies

    def ledger(self) -> LedgerSnapshot:
        live = reserved = internal = 0
        run_slots = self.run_blocks * self.block_size
        for reservation in self._reservations.values():
            sequence = reservation.table.sequence
            asked = len(sequence.request.prompt) + sequence.request.params.max_tokens
            runs = 1 + len(reservation.spare_runs)
            live += sequence.computed
            reserved += runs * asked - sequence.computed
            internal += runs * (run_slots - asked)
        free = len(self._free_runs) * run_slots
        return LedgerSnapshot(
            total=self.num_blocks * self.block_size,
            token_states=live,
            reserved=reserved,
            internal=internal,
            external=(self.num_blocks - self.num_runs * self.run_blocks) * self.block_size,
            cached=0,
            free=free,
            logical=live,
        )

    def audit(self) -> None:
        owned = list(self._free_runs)
        for seq_id, reservation in self._reservations.items():
            owned += [reservation.run, *reservation.spare_runs]
            table, sequence = reservation.table, reservation.table.sequence
            first = reservation.run * self.run_blocks
            if table.blocks != list(range(first, first + len(table.blocks))) or len(table.blocks) > self.run_blocks:
                raise AuditError(f"sequence {seq_id} uses blocks {table.blocks} outside its run at block {first}")
            if table.frozen is not None and table.frozen != tuple(table.blocks):
                raise AuditError(f"sequence {seq_id}: the table handed to the runner is stale")
            if len(table.blocks) < blocks_for(sequence.computed + sequence.scheduled, self.block_size):
                raise AuditError(
                    f"sequence {seq_id} has too few blocks for {sequence.computed + sequence.scheduled} tokens"
                )
        if sorted(owned) != list(range(self.num_runs)):
            raise AuditError(f"runs are not owned exactly once: {sorted(owned)} of {self.num_runs}")
        self.ledger().check()
