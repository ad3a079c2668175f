"""PagedAttention's memory policy: block tables over a pool of blocks that are handed out on demand.

::

    two sequences with a common prefix, block size 4        a fork of n = 2 after a prompt of 6 tokens

    table A  [ 0 ][ 1 ][ 2 ]    blocks 0 and 1 have         table A  [ 0 ][ 1 ]    block 1 is half full and shared;
    table B  [ 0 ][ 1 ][ 3 ]    two references              table B  [ 0 ][ 1 ]    who writes first gets a copy,
                                                                                   the last one writes in place

    a sliding window of 6 tokens, 13 computed: the next query attends positions 8 .. 13, so blocks 0 and 1 are given up

    table    [ -1 ][ -1 ][ 5 ][ 9 ]    -1 = dropped; its positions are never read again
"""

from __future__ import annotations

from collections.abc import KeysView

from reference_engine.config import CacheConfig
from reference_engine.kv.block_pool import AuditError, BlockPool
from reference_engine.kv.contract import BlockTable, HostUsage, KVManager, blocks_for, slots_needed
from reference_engine.kv.ledger import LedgerSnapshot
from reference_engine.kv.paged_audit import audit_paged
from reference_engine.kv.prefix_cache import CachedBlock, ChainHash, PrefixCache, PrefixIndex, chain_hash
from reference_engine.kv.radix_cache import RadixCache
from reference_engine.kv.swap import SwapSpace
from reference_engine.plan import BlockCopy
from reference_engine.request import Request, RequestRejected, Sequence


class PagedKVManager(KVManager):
    """PagedAttention: blocks on demand, full blocks shared by content, partial ones copied on write after a fork."""

    preempts = True

    def __init__(self, config: CacheConfig, hash_block: ChainHash = chain_hash, max_chunk: int = 1 << 30) -> None:
        """``max_chunk``: most tokens of one sequence that a step computes; with a window it bounds what one can hold."""
        self.block_size = config.block_size
        self.prefix_caching = config.prefix_caching
        self.window = config.window
        self.cache: PrefixIndex = (
            RadixCache(config.block_size)
            if config.prefix_index == "radix"
            else PrefixCache(config.block_size, hash_block)
        )
        self.pool = BlockPool(config.num_blocks, on_evict=self._on_evict)
        self.swap = SwapSpace(config.num_host_blocks)
        self.deduplicated = 0  # blocks given up because an equal one was registered first
        self.resets = 0
        # Blocks that one sequence holds at most (a window and a chunk, wherever they begin), and at least.
        self._most_held = self._least_held = 1 << 60
        if self.window is not None:
            self._most_held = min(config.num_blocks, blocks_for(self.window - 1 + max_chunk, self.block_size) + 1)
            self._least_held = blocks_for(self.window, self.block_size) + 1
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
        if min(blocks_for(slots, self.block_size), self._least_held) > self.pool.num_blocks:
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
        host = self.swap.table(sequence.seq_id)
        dropped = self._num_behind(max(len(prefix) * self.block_size, host.num_tokens if host else 0))
        revived = sum(1 for entry in prefix[dropped:] if not self.pool.ref_count(entry.block))
        last = min(blocks_for(sequence.known, self.block_size), dropped + self._most_held)
        return last - max(dropped, len(prefix)) + revived + headroom <= self.pool.num_free

    def admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int) -> int:
        host = self.swap.table(sequence.seq_id)
        computed = max(len(prefix) * self.block_size, host.num_tokens if host else 0)
        dropped = self._num_behind(computed)
        blocks = [-1] * dropped + [entry.block for entry in prefix[dropped:]]
        for block in blocks[dropped:]:
            self.pool.acquire(block)
        table = BlockTable(sequence, blocks, registered=list(prefix), dropped=dropped)
        self._tables[sequence.seq_id] = table
        if host is not None and host.num_tokens == computed and len(blocks) < len(host.blocks):
            first = len(blocks)
            self._extend(table, len(host.blocks))
            self.swap.restore(sequence.seq_id, blocks, first)
        else:
            self.swap.drop(sequence.seq_id)
        return computed

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
        needed = blocks_for(end, self.block_size)
        if needed > len(blocks):
            self._extend(table, needed)

    def num_writable(self, sequence: Sequence) -> int:
        table = self._tables[sequence.seq_id]
        free = self.pool.num_free
        if self._writes_shared_block(table):
            if not free:
                return 0
            free -= 1
        return (len(table.blocks) + free) * self.block_size - sequence.computed

    def blocks_missing(self, sequence: Sequence) -> int:
        table = self._tables[sequence.seq_id]
        missing = blocks_for(sequence.known, self.block_size) - len(table.blocks)
        return min(missing, max(self._most_held - len(table.blocks) + table.dropped, 0))

    def blocks_exclusive(self, sequence: Sequence, besides: list[CachedBlock]) -> int:
        kept = {entry.block for entry in besides}
        table = self._tables[sequence.seq_id]
        return sum(
            1 for block in table.blocks[table.dropped :] if block not in kept and self.pool.ref_count(block) == 1
        )

    def fork(self, parent: Sequence, child: Sequence) -> None:
        source = self._tables[parent.seq_id]
        blocks = source.blocks[: blocks_for(parent.computed, self.block_size)]
        for block in blocks[source.dropped :]:
            self.pool.acquire(block)
        self._tables[child.seq_id] = BlockTable(child, blocks, list(source.registered), source.sharable, source.dropped)

    def commit(self, sequence: Sequence) -> None:
        table = self._tables[sequence.seq_id]
        full = sequence.computed // self.block_size
        while len(table.registered) < full and table.sharable and self.prefix_caching:
            self._share_next_block(table)
        if self.window is not None:
            self._drop_behind_window(table)

    def free(self, seq_id: int) -> None:
        self.swap.drop(seq_id)
        table = self._tables.pop(seq_id, None)
        if table is None:
            return
        for owner, copy in self._copies:
            if owner == seq_id:
                self.pool.release(copy.source)
        self._copies = [entry for entry in self._copies if entry[0] != seq_id]
        # Deepest first: a parent must not be evicted before its children, nobody could find those any more.
        for block in reversed(table.blocks[table.dropped :]):
            self.pool.release(block)

    def can_swap_out(self, sequence: Sequence) -> bool:
        if self.swap.is_coming_in(sequence.seq_id):
            return True
        count = blocks_for(sequence.computed, self.block_size) - self._tables[sequence.seq_id].dropped
        return 0 < count <= self.swap.num_free

    def swap_out(self, sequence: Sequence) -> None:
        table = self._tables[sequence.seq_id]
        for owner, copy in self._copies:
            if owner == sequence.seq_id:  # will not be carried out: go back to the block that was to be copied
                table.blocks[table.blocks.index(copy.target)] = copy.source
                self.pool.release(copy.target)
        self._copies = [entry for entry in self._copies if entry[0] != sequence.seq_id]
        count = blocks_for(sequence.computed, self.block_size)
        self.swap.store(sequence.seq_id, table.blocks[:count], sequence.computed)
        del self._tables[sequence.seq_id]
        for block in reversed(table.blocks[table.dropped :]):
            self.pool.release(block)

    def take_swaps(self) -> tuple[tuple[BlockCopy, ...], tuple[BlockCopy, ...]]:
        return self.swap.take()

    def host_usage(self) -> HostUsage:
        swap = self.swap
        return HostUsage(swap.num_blocks, swap.num_held, swap.blocks_out, swap.blocks_in)

    def loss(self, sequence: Sequence) -> tuple[int, int]:
        table = self._tables[sequence.seq_id]
        blocks = blocks_for(sequence.computed, self.block_size) - table.dropped
        kept = 0
        for entry in table.registered:
            if not entry.live or self.pool.ref_count(entry.block) < 2:
                break
            kept += self.block_size
        return blocks, sequence.computed - kept

    def reset_cache(self) -> int:
        blocks = self.cache.clear()
        for block in blocks:
            self.pool.forget(block)
        self.resets += 1
        return len(blocks)

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
            logical += computed - table.dropped * size
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
        audit_paged(self)

    def _num_behind(self, computed: int) -> int:
        """Leading blocks that no query can reach once ``computed`` tokens are in the cache."""
        return 0 if self.window is None else max(computed - self.window + 1, 0) // self.block_size

    def _drop_behind_window(self, table: BlockTable) -> None:
        for index in range(table.dropped, self._num_behind(table.sequence.computed)):
            self.pool.release(table.blocks[index])
            table.blocks[index] = -1
            table.dropped = index + 1
            table.frozen = None

    def _extend(self, table: BlockTable, count: int) -> None:
        """Take free blocks until the table has ``count``."""
        blocks = table.blocks
        while len(blocks) < count:
            blocks.append(self.pool.allocate(near=blocks[-1] + 1 if blocks else -1))
        table.frozen = None

    def _on_evict(self, block: int) -> None:
        orphans = self.cache.evict(block)
        if orphans and self.window is None:
            raise AuditError(f"block {block} is evicted before blocks {orphans}, which are only found through it")
        for orphan in orphans:
            self.pool.forget(orphan)

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
        if block < 0 or (index and not table.registered[-1].live):  # nobody could find it through its parent
            table.sharable = False
            return
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
