"""What all policies share that reserve one contiguous run of blocks for a sequence when it is admitted.

::

    run    [ filled = token_states | asked for, not filled = reserved | never asked for + rounding = internal ]
            0 ........... computed   ........... prompt + max_tokens    ........................... end of run
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, KeysView
from dataclasses import dataclass, field
from typing import NamedTuple

from reference_engine.config import CacheConfig
from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.contract import BlockTable, KVManager, blocks_for
from reference_engine.kv.ledger import LedgerSnapshot
from reference_engine.kv.prefix_cache import CachedBlock
from reference_engine.plan import BlockCopy
from reference_engine.request import Request, Sequence


class Run(NamedTuple):
    """Physical blocks ``start .. start + length - 1``."""

    start: int
    length: int


@dataclass(slots=True, eq=False)
class Reservation:
    """One sequence's run of blocks, and the runs kept for the continuations that will fork off it."""

    run: Run
    table: BlockTable
    spare_runs: list[Run] = field(default_factory=list)

    @property
    def runs(self) -> tuple[Run, ...]:
        return (self.run, *self.spare_runs)


class ReservingKVManager(KVManager):
    """Every sequence has its whole run from ``admit`` to ``free``.  Subclasses say how long it is and where it lies."""

    preempts = False

    def __init__(self, config: CacheConfig) -> None:
        self.block_size = config.block_size
        self.num_blocks = config.num_blocks
        self._reservations: dict[int, Reservation] = {}
        self._copies: list[tuple[int, BlockCopy]] = []

    # ---------------------------------------------------------------- what a policy decides

    @abstractmethod
    def _length(self, request: Request) -> int:
        """Blocks of the run of one of the request's continuations."""

    @abstractmethod
    def _has_room(self, length: int, count: int) -> bool:
        """Whether ``count`` runs of ``length`` blocks are free."""

    @abstractmethod
    def _take(self, length: int) -> Run:
        """A free run of ``length`` blocks.  Only after ``_has_room``."""

    @abstractmethod
    def _give(self, run: Run) -> None:
        """A run is free again."""

    @abstractmethod
    def _free_parts(self) -> Iterable[Run]:
        """All blocks that no reservation covers, usable or not, each in exactly one part."""

    @abstractmethod
    def _external_blocks(self) -> int:
        """Blocks outside of reservations that are of no use to whom they are denied."""

    def _idle_runs(self) -> Iterable[Run]:
        """Runs that are kept though their sequence has ended."""
        return ()

    # ---------------------------------------------------------------- the contract

    @property
    def holders(self) -> KeysView[int]:
        return self._reservations.keys()

    def find_prefix(self, sequence: Sequence, limit: int) -> list[CachedBlock]:
        return []

    def can_admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int, headroom: int) -> bool:
        return self._has_room(self._length(sequence.request), continuations)

    def admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int) -> int:
        length = self._length(sequence.request)
        run, *spare = [self._take(length) for _ in range(continuations)]
        self._reservations[sequence.seq_id] = Reservation(run, BlockTable(sequence, []), spare)
        return 0

    def can_allocate(self, sequence: Sequence, end: int) -> bool:
        return end <= self._reservations[sequence.seq_id].run.length * self.block_size

    def allocate(self, sequence: Sequence, end: int) -> None:
        reservation = self._reservations[sequence.seq_id]
        table, first = reservation.table, reservation.run.start
        needed = blocks_for(end, self.block_size)
        if needed > len(table.blocks):
            table.blocks.extend(range(first + len(table.blocks), first + needed))
            table.frozen = None

    def num_writable(self, sequence: Sequence) -> int:
        return self._reservations[sequence.seq_id].run.length * self.block_size - sequence.computed

    def blocks_missing(self, sequence: Sequence) -> int:
        return 0

    def blocks_exclusive(self, sequence: Sequence, besides: list[CachedBlock]) -> int:
        return self._reservations[sequence.seq_id].run.length

    def can_fork(self, parent: Sequence) -> bool:
        return self._with_spare_run(parent.request) is not None

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """The child takes a spare run of its request; the parent's K/V is copied into it before the next step."""
        source, giver = self._reservations[parent.seq_id], self._with_spare_run(parent.request)
        assert giver is not None
        self._reservations[child.seq_id] = Reservation(giver.spare_runs.pop(), BlockTable(child, []))
        self.allocate(child, child.computed)
        for pair in zip(source.table.blocks, self._reservations[child.seq_id].table.blocks, strict=True):
            self._copies.append((child.seq_id, BlockCopy(*pair)))

    def _with_spare_run(self, request: Request) -> Reservation | None:
        """A reservation of the request that has a run to spare."""
        held = self._reservations.values()
        return next((r for r in held if r.spare_runs and r.table.sequence.request is request), None)

    def commit(self, sequence: Sequence) -> None:
        """Nothing is shared, so nothing becomes visible."""

    def free(self, seq_id: int) -> None:
        reservation = self._reservations.pop(seq_id, None)
        if reservation is None:
            return
        self._copies = [entry for entry in self._copies if entry[0] != seq_id]
        request = reservation.table.sequence.request
        heir = next((r for r in self._reservations.values() if r.table.sequence.request is request), None)
        if heir is not None and request.params.beam_width:  # a hypothesis was dropped: another one will fork
            heir.spare_runs += reservation.runs
            return
        for run in reversed(reservation.runs):
            self._give(run)

    def block_table(self, seq_id: int) -> tuple[int, ...]:
        return self._reservations[seq_id].table.as_tuple()

    def reserved_blocks(self, seq_id: int) -> tuple[int, ...]:
        reservation = self._reservations[seq_id]
        rest = range(reservation.run.start + len(reservation.table.blocks), sum(reservation.run))
        return (*rest, *(block for run in reservation.spare_runs for block in range(run.start, sum(run))))

    def take_copies(self) -> tuple[BlockCopy, ...]:
        copies = tuple(copy for _, copy in self._copies)
        self._copies = []
        return copies

    def ledger(self) -> LedgerSnapshot:
        live = reserved = internal = 0
        for reservation in self._reservations.values():
            sequence = reservation.table.sequence
            run_slots = reservation.run.length * self.block_size
            asked = min(len(sequence.request.prompt) + sequence.request.params.max_tokens, run_slots)
            runs = 1 + len(reservation.spare_runs)
            live += sequence.computed
            reserved += runs * asked - sequence.computed
            internal += runs * (run_slots - asked)
        internal += sum(run.length for run in self._idle_runs()) * self.block_size
        total = self.num_blocks * self.block_size
        external = self._external_blocks() * self.block_size
        return LedgerSnapshot(
            total=total,
            token_states=live,
            reserved=reserved,
            internal=internal,
            external=external,
            cached=0,
            free=total - live - reserved - internal - external,
            logical=live,
        )

    def audit(self) -> None:
        parts = [*self._free_parts(), *self._idle_runs()]
        for seq_id, reservation in self._reservations.items():
            parts += reservation.runs
            run, table, sequence = reservation.run, reservation.table, reservation.table.sequence
            if table.blocks != list(range(run.start, run.start + len(table.blocks))) or len(table.blocks) > run.length:
                raise AuditError(f"sequence {seq_id} uses blocks {table.blocks} outside its run at block {run.start}")
            if table.frozen is not None and table.frozen != tuple(table.blocks):
                raise AuditError(f"sequence {seq_id}: the table handed to the runner is stale")
            if len(table.blocks) < blocks_for(sequence.computed + sequence.scheduled, self.block_size):
                raise AuditError(
                    f"sequence {seq_id} has too few blocks for {sequence.computed + sequence.scheduled} tokens"
                )
        end = 0
        for part in sorted(parts):
            if part.start != end:
                raise AuditError(f"block {min(part.start, end)} is not owned exactly once: {sorted(parts)}")
            end = sum(part)
        if end != self.num_blocks:
            raise AuditError(f"blocks from {end} on have no owner: {sorted(parts)} of {self.num_blocks}")
        self.ledger().check()
