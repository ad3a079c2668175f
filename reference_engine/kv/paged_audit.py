"""Every invariant of the paged policy, checked the slow way.  Raises AuditError; O(pool + tokens held)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.contract import BlockTable, blocks_for

if TYPE_CHECKING:
    from reference_engine.kv.manager import PagedKVManager


def audit_paged(manager: PagedKVManager) -> None:
    """Pool, prefix cache, tables, host pool and ledger against each other."""
    pool, cache, tables = manager.pool, manager.cache, manager._tables
    pool.audit()
    cache.audit()
    manager.swap.audit()
    if manager._copies:
        raise AuditError(f"{len(manager._copies)} block copies were planned and never handed out")
    holders: Counter[int] = Counter()
    for table in tables.values():
        _audit_table(manager, table)
        holders.update(table.blocks[table.dropped :])
        if manager.swap.table(table.sequence.seq_id) is not None:
            raise AuditError(f"sequence {table.sequence.seq_id} holds device and host blocks")
    for block in range(pool.num_blocks):
        refs = pool.ref_count(block)
        if refs != holders[block]:
            raise AuditError(f"block {block} has {refs} references but stands in {holders[block]} tables")
        entry = cache.entry(block)
        if (entry is not None) != pool.is_cached(block):
            raise AuditError(f"pool and prefix cache disagree on whether block {block} is cached")
        if manager.window is not None or entry is None or entry.parent is None:
            continue
        if pool.ref_count(entry.parent.block) < refs:
            raise AuditError(f"block {block} has more holders than its parent block {entry.parent.block}")
    _audit_live(manager)
    manager.ledger().check()


def _audit_table(manager: PagedKVManager, table: BlockTable) -> None:
    sequence, size, blocks = table.sequence, manager.block_size, table.blocks
    name, held = f"sequence {sequence.seq_id}", table.blocks[table.dropped :]
    if len(set(held)) != len(held):
        raise AuditError(f"{name} has a block twice in its table {blocks}")
    if blocks[: table.dropped] != [-1] * table.dropped or -1 in held:
        raise AuditError(f"{name} has dropped {table.dropped} blocks, but its table is {blocks}")
    behind = 0 if manager.window is None else max(sequence.computed - manager.window + 1, 0) // size
    if table.dropped != behind:
        raise AuditError(f"{name} has dropped {table.dropped} blocks, {behind} are behind the window")
    if table.frozen is not None and table.frozen != tuple(blocks):
        raise AuditError(f"{name}: the table handed to the runner is stale")
    if len(blocks) < blocks_for(sequence.computed + sequence.scheduled, size):
        raise AuditError(f"{name} has {len(blocks)} blocks for {sequence.computed + sequence.scheduled} tokens")
    if len(table.registered) * size > sequence.computed:
        raise AuditError(f"{name} has registered tokens that are not computed")
    for index, entry in enumerate(table.registered):
        content = tuple(sequence.tokens[index * size : (index + 1) * size])
        parent = table.registered[index - 1] if index else None
        if not entry.holds(content, parent, sequence.request.cache_salt):
            raise AuditError(f"{name}: block {blocks[index]} does not hold the tokens of its table position {index}")
        if entry.live:
            misplaced = index >= table.dropped and manager.cache.entry(blocks[index]) is not entry
        else:
            misplaced = manager.window is None and not manager.resets
        if misplaced:
            raise AuditError(f"{name}: the prefix cache has another block than table position {index}")
    if sequence.scheduled:
        end = sequence.computed + sequence.scheduled
        for block in blocks[sequence.computed // size : blocks_for(end, size)]:
            if manager.pool.ref_count(block) != 1 or manager.pool.is_cached(block):
                raise AuditError(f"{name} is about to write block {block}, which others can read")


def _audit_live(manager: PagedKVManager) -> None:
    """Count live slots and holders slot by slot, independently of the ledger's arithmetic."""
    fill: dict[int, int] = {}
    for table in manager._tables.values():
        computed = table.sequence.computed
        for index, block in enumerate(table.blocks):
            filled = min(manager.block_size, max(0, computed - index * manager.block_size))
            if block >= 0 and fill.setdefault(block, filled) != filled:
                raise AuditError(f"holders of block {block} disagree on how many tokens it holds")
    live = manager.ledger().token_states
    if sum(fill.values()) != live:
        raise AuditError(f"{sum(fill.values())} slots are live, the ledger says {live}")
