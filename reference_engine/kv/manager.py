"""Block tables: which physical block holds which positions of which sequence.

::

    positions          0 ............ computed ........ computed + scheduled
    block table        [ b0 ][ b1 ][ b2 ][ b3 ]
                       cached | own, full | own, being filled
    slot of position   table[position // block_size] * block_size + position % block_size    (the only source of a slot)

``KVManager`` is the contract between the scheduler and a memory policy; ``PagedKVManager`` is PagedAttention's.
Other policies live in ``reference_engine.policies``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from reference_engine.config import CacheConfig
from reference_engine.kv.block_pool import AuditError, BlockPool
from reference_engine.kv.ledger import LedgerSnapshot
from reference_engine.kv.prefix_cache import CachedBlock, ChainHash, PrefixCache, chain_hash
from reference_engine.plan import BlockCopy
from reference_engine.request import Request, RequestRejected, Sequence


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold positions ``0 .. num_tokens - 1``."""
    return -(-num_tokens // block_size)


def slot_of(table: tuple[int, ...], position: int, block_size: int) -> int:
    """The slot of a position."""
    return table[position // block_size] * block_size + position % block_size


def slots_needed(request: Request) -> int:
    """Most K/V slots one continuation can fill: the last generated token is returned but never computed."""
    return len(request.prompt) + request.params.max_tokens - 1


@dataclass(slots=True, eq=False)
class BlockTable:
    """Blocks of one admitted sequence."""

    sequence: Sequence
    blocks: list[int]
    registered: list[CachedBlock] = field(default_factory=list)  # entries of the leading blocks the prefix cache knows
    sharable: bool = True  # False once a digest collision ended the chain
    frozen: tuple[int, ...] | None = None  # `blocks` as the plan wants it, until it changes

    def as_tuple(self) -> tuple[int, ...]:
        if self.frozen is None:
            self.frozen = tuple(self.blocks)
        return self.frozen


class KVManager(ABC):
    """Memory policy of one KV pool.

    Life of a sequence: ``find_prefix`` -> ``can_admit`` / ``admit`` -> (``can_allocate`` / ``allocate`` ->
    ``commit``)* -> ``free``.  A sequence between ``admit`` and ``free`` has a block table.  The scheduler alone
    changes ``Sequence.computed``; the manager reads it.
    """

    preempts: ClassVar[bool]  # whether running sequences may be evicted to let others grow

    @property
    @abstractmethod
    def num_free_blocks(self) -> int:
        """Blocks that could be handed out now, evictable ones included."""

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
    def admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int) -> None:
        """Give the sequence a table that starts with (and holds) ``prefix``.  Only after ``can_admit``."""

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

    @abstractmethod
    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Give ``child`` a table with the parent's computed K/V; ``child.computed == parent.computed``."""

    @abstractmethod
    def commit(self, sequence: Sequence) -> None:
        """``computed`` has advanced: blocks that became full may be shared from now on."""

    @abstractmethod
    def free(self, seq_id: int) -> None:
        """Release everything the sequence holds.  The only release path; a second call does nothing."""

    @abstractmethod
    def block_table(self, seq_id: int) -> tuple[int, ...]:
        """Physical blocks in position order."""

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


class PagedKVManager(KVManager):
    """PagedAttention: blocks on demand, full blocks shared by content, partial ones copied on write after a fork."""

    preempts = True

    def __init__(self, config: CacheConfig, hash_block: ChainHash = chain_hash) -> None:
        self.block_size = config.block_size
        self.prefix_caching = config.prefix_caching
        self.cache = PrefixCache(config.block_size, hash_block)
        self.pool = BlockPool(config.num_blocks, on_evict=self.cache.evict)
        self.deduplicated = 0  # blocks given up because an equal one was registered first
        self._tables: dict[int, BlockTable] = {}
        # Copies of the plan being made, by owner.  Each keeps a reference to its source ("pin"), so that the source
        # cannot become the target of another copy of the same plan.
        self._copies: list[tuple[int, BlockCopy]] = []

    @property
    def num_free_blocks(self) -> int:
        return self.pool.num_free

    def check_fits(self, request: Request) -> None:
        slots = slots_needed(request)
        total = self.pool.num_blocks * self.block_size
        if slots > total:
            raise RequestRejected(
                f"prompt ({len(request.prompt)} tokens) + max_tokens ({request.params.max_tokens}) needs {slots} "
                f"KV slots, but the whole pool has {total}; ask for fewer tokens",
                param="max_tokens",
            )

    def find_prefix(self, sequence: Sequence, limit: int) -> list[CachedBlock]:
        if not self.prefix_caching:
            return []
        return self.cache.find(sequence.tokens, sequence.request.cache_salt, limit)

    def can_admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int, headroom: int) -> bool:
        revived = sum(1 for entry in prefix if not self.pool.ref_count(entry.block))
        new = blocks_for(sequence.known, self.block_size) - len(prefix)
        return new + revived + headroom <= self.pool.num_free

    def admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int) -> None:
        for entry in prefix:
            self.pool.acquire(entry.block)
        self._tables[sequence.seq_id] = BlockTable(sequence, [e.block for e in prefix], registered=list(prefix))

    def can_allocate(self, sequence: Sequence, end: int) -> bool:
        table = self._tables[sequence.seq_id]
        missing = blocks_for(end, self.block_size) - len(table.blocks)
        if self._writes_shared_block(table):
            missing += 1
        return missing <= self.pool.num_free

    def allocate(self, sequence: Sequence, end: int) -> None:
        table = self._tables[sequence.seq_id]
        blocks = table.blocks
        if self._writes_shared_block(table):
            self._copy_on_write(table)
        for _ in range(blocks_for(end, self.block_size) - len(blocks)):
            blocks.append(self.pool.allocate(near=blocks[-1] + 1 if blocks else -1))
            table.frozen = None

    def num_writable(self, sequence: Sequence) -> int:
        table = self._tables[sequence.seq_id]
        free = self.pool.num_free
        if self._writes_shared_block(table):
            if not free:
                return 0
            free -= 1
        return (len(table.blocks) + free) * self.block_size - sequence.computed

    def blocks_missing(self, sequence: Sequence) -> int:
        return blocks_for(sequence.known, self.block_size) - len(self._tables[sequence.seq_id].blocks)

    def blocks_exclusive(self, sequence: Sequence, besides: list[CachedBlock]) -> int:
        kept = {entry.block for entry in besides}
        blocks = self._tables[sequence.seq_id].blocks
        return sum(1 for block in blocks if block not in kept and self.pool.ref_count(block) == 1)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        source = self._tables[parent.seq_id]
        blocks = source.blocks[: blocks_for(parent.computed, self.block_size)]
        for block in blocks:
            self.pool.acquire(block)
        self._tables[child.seq_id] = BlockTable(child, blocks, list(source.registered), source.sharable)

    def commit(self, sequence: Sequence) -> None:
        table = self._tables[sequence.seq_id]
        full = sequence.computed // self.block_size
        while len(table.registered) < full and table.sharable and self.prefix_caching:
            self._share_next_block(table)

    def free(self, seq_id: int) -> None:
        table = self._tables.pop(seq_id, None)
        if table is None:
            return
        for owner, copy in self._copies:
            if owner == seq_id:
                self.pool.release(copy.source)
        self._copies = [entry for entry in self._copies if entry[0] != seq_id]
        # Deepest first: a parent must not be evicted before its children, nobody could find those any more.
        for block in reversed(table.blocks):
            self.pool.release(block)

    def block_table(self, seq_id: int) -> tuple[int, ...]:
        return self._tables[seq_id].as_tuple()

    def take_copies(self) -> tuple[BlockCopy, ...]:
        if not self._copies:
            return ()
        copies = tuple(copy for _, copy in self._copies)
        self._copies = []
        for copy in copies:
            self.pool.release(copy.source)
        return copies

    def ledger(self) -> LedgerSnapshot:
        size, pool = self.block_size, self.pool
        logical = unfilled = shared_unfilled = 0
        shared_partial: set[int] = set()
        for table in self._tables.values():
            computed = table.sequence.computed
            logical += computed
            unfilled += len(table.blocks) * size - computed
            filled = computed % size
            if filled and pool.ref_count(block := table.blocks[computed // size]) > 1:
                if block in shared_partial:
                    shared_unfilled += size - filled
                shared_partial.add(block)
        # A block with k references was counted k times above; all but the partial ones are full.
        recounted = (pool.num_refs - pool.num_held) * size - shared_unfilled
        return LedgerSnapshot(
            total=pool.num_blocks * size,
            token_states=logical - recounted,
            reserved=0,
            internal=unfilled - shared_unfilled,
            external=0,
            cached=pool.num_evictable * size,
            free=(pool.num_free - pool.num_evictable) * size,
            logical=logical,
        )

    def audit(self) -> None:
        self.pool.audit()
        self.cache.audit()
        if self._copies:
            raise AuditError(f"{len(self._copies)} block copies were planned and never handed out")
        holders: Counter[int] = Counter()
        for table in self._tables.values():
            self._audit_table(table)
            holders.update(table.blocks)
        for block in range(self.pool.num_blocks):
            refs = self.pool.ref_count(block)
            if refs != holders[block]:
                raise AuditError(f"block {block} has {refs} references but stands in {holders[block]} tables")
            entry = self.cache.entry(block)
            if (entry is not None) != self.pool.is_cached(block):
                raise AuditError(f"pool and prefix cache disagree on whether block {block} is cached")
            if entry is not None and entry.parent is not None and self.pool.ref_count(entry.parent.block) < refs:
                raise AuditError(f"block {block} has more holders than its parent block {entry.parent.block}")
        self._audit_live()
        self.ledger().check()

    def _audit_table(self, table: BlockTable) -> None:
        sequence, size, blocks = table.sequence, self.block_size, table.blocks
        name = f"sequence {sequence.seq_id}"
        if len(set(blocks)) != len(blocks):
            raise AuditError(f"{name} has a block twice in its table {blocks}")
        if table.frozen is not None and table.frozen != tuple(blocks):
            raise AuditError(f"{name}: the table handed to the runner is stale")
        if len(blocks) < blocks_for(sequence.computed + sequence.scheduled, size):
            raise AuditError(f"{name} has {len(blocks)} blocks for {sequence.computed + sequence.scheduled} tokens")
        if len(table.registered) * size > sequence.computed:
            raise AuditError(f"{name} has registered tokens that are not computed")
        for index, entry in enumerate(table.registered):
            content = tuple(sequence.tokens[index * size : (index + 1) * size])
            parent = table.registered[index - 1] if index else None
            if self.cache.entry(blocks[index]) is not entry or not entry.holds(
                content, parent, sequence.request.cache_salt
            ):
                raise AuditError(
                    f"{name}: block {blocks[index]} does not hold the tokens of its table position {index}"
                )
        if sequence.scheduled:
            end = sequence.computed + sequence.scheduled
            for block in blocks[sequence.computed // size : blocks_for(end, size)]:
                if self.pool.ref_count(block) != 1 or self.pool.is_cached(block):
                    raise AuditError(f"{name} is about to write block {block}, which others can read")

    def _audit_live(self) -> None:
        """Count live slots and holders slot by slot, independently of the ledger's arithmetic."""
        fill: dict[int, int] = {}
        for table in self._tables.values():
            computed = table.sequence.computed
            for index, block in enumerate(table.blocks):
                filled = min(self.block_size, max(0, computed - index * self.block_size))
                if fill.setdefault(block, filled) != filled:
                    raise AuditError(f"holders of block {block} disagree on how many tokens it holds")
        if sum(fill.values()) != self.ledger().token_states:
            raise AuditError(f"{sum(fill.values())} slots are live, the ledger says {self.ledger().token_states}")

    def _writes_shared_block(self, table: BlockTable) -> bool:
        """Whether the next token goes into an existing block that another table holds as well."""
        index = table.sequence.computed // self.block_size
        if index >= len(table.blocks):
            return False
        refs = self.pool.ref_count(block := table.blocks[index])
        return refs > 1 and refs - sum(1 for _, copy in self._copies if copy.source == block) > 1

    def _copy_on_write(self, table: BlockTable) -> None:
        index = table.sequence.computed // self.block_size
        source = table.blocks[index]
        target = self.pool.allocate(near=table.blocks[index - 1] + 1 if index else -1)
        # The table's reference to the source becomes the copy's pin.
        self._copies.append((table.sequence.seq_id, BlockCopy(source, target)))
        table.blocks[index] = target
        table.frozen = None

    def _share_next_block(self, table: BlockTable) -> None:
        """Register the first full block that is not yet shared; adopt an equal block if one was registered before."""
        index, size, sequence = len(table.registered), self.block_size, table.sequence
        block = table.blocks[index]
        entry = self.cache.register(
            block,
            tuple(sequence.tokens[index * size : (index + 1) * size]),
            table.registered[-1] if table.registered else None,
            sequence.request.cache_salt,
        )
        if entry is None:
            table.sharable = False
            return
        table.registered.append(entry)
        if entry.block == block:
            self.pool.mark_cached(block)
            return
        self.pool.acquire(entry.block)
        table.blocks[index] = entry.block
        table.frozen = None
        self.pool.release(block)
        self.deduplicated += 1
