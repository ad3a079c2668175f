"""Host blocks that keep the K/V of preempted sequences, with block tables of their own.

::

    swap out   device blocks of a victim  -- copied to -->  host blocks; the device blocks are free at once
    swap in    host blocks                -- copied to -->  fresh device blocks; the host blocks are free once the plan
                                                            that copies them has been handed out

    order within a step   all swaps out, then all swaps in, then copies on write, then the step computes

So a device block may be read by a swap out and written by anything later in the same step.  A host block that a
swap in reads stays taken until the plan is complete: otherwise a swap out of the same step would overwrite it first.
"""

from __future__ import annotations

from dataclasses import dataclass

from reference_engine.kv.block_pool import AuditError
from reference_engine.plan import BlockCopy


@dataclass(frozen=True, slots=True)
class HostTable:
    """Where a swapped-out sequence's positions ``0 .. num_tokens - 1`` are: host block of each table position.

    Position i is -1 where the device table had dropped its block already (sliding window).
    """

    blocks: tuple[int, ...]
    num_tokens: int

    @property
    def num_held(self) -> int:
        return sum(1 for block in self.blocks if block >= 0)


class SwapSpace:
    """The host pool.  Knows sequences by seq_id and device blocks by number, nothing else."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.blocks_out = 0  # copied to the host since the start
        self.blocks_in = 0
        self._free = list(range(num_blocks - 1, -1, -1))
        self._tables: dict[int, HostTable] = {}
        self._out: list[BlockCopy] = []
        self._in: dict[int, tuple[HostTable, list[BlockCopy]]] = {}  # of the plan being made, by owner

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_held(self) -> int:
        return self.num_blocks - len(self._free)

    def table(self, seq_id: int) -> HostTable | None:
        """Where a swapped-out sequence is; None if it is not here."""
        return self._tables.get(seq_id)

    def store(self, seq_id: int, device_blocks: list[int], num_tokens: int) -> None:
        """Plan the copies that take a sequence's blocks to the host; needs as many free host blocks."""
        pending = self._in.pop(seq_id, None)
        if pending is not None:  # its way in has not happened yet, so the host still holds all that is computed
            self._tables[seq_id] = pending[0]
            return
        host = [self._free.pop() if block >= 0 else -1 for block in device_blocks]
        self._out += [BlockCopy(block, at) for block, at in zip(device_blocks, host, strict=True) if block >= 0]
        self._tables[seq_id] = HostTable(tuple(host), num_tokens)

    def restore(self, seq_id: int, device_blocks: list[int], first: int) -> None:
        """Plan the copies into ``device_blocks``, the sequence's table, from table position ``first`` on."""
        table = self._tables.pop(seq_id)
        pairs = zip(table.blocks[first:], device_blocks[first : len(table.blocks)], strict=True)
        self._in[seq_id] = table, [BlockCopy(host, block) for host, block in pairs if host >= 0]

    def is_coming_in(self, seq_id: int) -> bool:
        """Whether the plan being made swaps the sequence in."""
        return seq_id in self._in

    def drop(self, seq_id: int) -> None:
        """Forget a sequence; nothing happens if it is not here."""
        table = self._tables.pop(seq_id, None)
        if table is None and seq_id in self._in:
            table, _ = self._in.pop(seq_id)
        if table is not None:
            self._release(table)

    def take(self) -> tuple[tuple[BlockCopy, ...], tuple[BlockCopy, ...]]:
        """Swaps out and swaps in of the plan that is complete; each is handed out once."""
        if not self._out and not self._in:
            return (), ()
        out, into = tuple(self._out), tuple(copy for _, copies in self._in.values() for copy in copies)
        for table, _ in self._in.values():
            self._release(table)
        self._out, self._in = [], {}
        self.blocks_out += len(out)
        self.blocks_in += len(into)
        return out, into

    def audit(self) -> None:
        """Every host block is free or stands in exactly one table.  Raises AuditError."""
        if self._out or self._in:
            raise AuditError("swaps were planned and never handed out")
        held = [block for table in self._tables.values() for block in table.blocks if block >= 0]
        if sorted(held + self._free) != list(range(self.num_blocks)):
            raise AuditError(f"host blocks are not owned exactly once: held {sorted(held)}, free {sorted(self._free)}")

    def _release(self, table: HostTable) -> None:
        self._free += [block for block in table.blocks if block >= 0]
