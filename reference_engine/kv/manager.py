"""PagedAttention's memory policy: block tables over a pool of blocks that are handed out on demand.

::

    two sequences with a common prefix, block size 4        a fork of n = 2 after a prompt of 6 tokens

    table A  [ 0 ][ 1 ][ 2 ]    blocks 0 and 1 have         table A  [ 0 ][ 1 ]    block 1 is half full and shared;
    table B  [ 0 ][ 1 ][ 3 ]    two references              table B  [ 0 ][ 1 ]    who writes first gets a copy,
                                                                                   the last one writes in place
"""

from __future__ import annotations

from collections import Counter
from collections.abc import KeysView

from reference_engine.config import CacheConfig
from reference_engine.kv.block_pool import AuditError, BlockPool
from reference_engine.kv.contract import BlockTable, KVManager, blocks_for, slots_needed
from reference_engine.kv.ledger import LedgerSnapshot
from reference_engine.kv.prefix_cache import CachedBlock, ChainHash, PrefixCache, chain_hash
from reference_engine.plan import BlockCopy
from reference_engine.request import Request, RequestRejected, Sequence


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
        # Digests of the sequence looked up last; it is the same one step after step while it waits for room.
        self._digests_of = -1
        self._digests: list[bytes] = []
        # Copies of the plan being made, by owner.  Each keeps a reference to its source ("pin"), so that the source
        # cannot become the target of another copy of the same plan.
        self._copies: list[tuple[int, BlockCopy]] = []

    @property
    def num_free_blocks(self) -> int:
        return self.pool.num_free

    @property
    def holders(self) -> KeysView[int]:
        return self._tables.keys()

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
        if self._digests_of != sequence.seq_id:
            self._digests_of, self._digests = sequence.seq_id, []
        return self.cache.find(sequence.tokens, sequence.request.cache_salt, limit, self._digests)

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
