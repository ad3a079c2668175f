"""Physical blocks of the KV pool: who holds them, which one is taken next.

::

    reference count > 0   held: that many tables point to the block
    reference count = 0   free, and a member of the free list:

    head -> [ uncached blocks ........ ][ cached blocks, least recently used first ] <- tail
             nothing worth keeping       content may still be found by the prefix cache

Blocks are taken from the head.  A released block goes to the head when its content is worthless and to the tail when
the prefix cache knows it, so the cached part is an LRU queue.  The list is doubly linked through two arrays (index =
block id, one sentinel), so taking, releasing and reviving a block from the middle are O(1) and allocate no objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator


class AuditError(RuntimeError):
    """An invariant of the KV memory does not hold.  The message names the invariant, the block and the sequence."""


class PoolExhaustedError(RuntimeError):
    """``allocate`` was called on a pool without a free block; callers ask ``num_free`` first."""


class BlockPool:
    """Reference counts and the free list of blocks ``0 .. num_blocks - 1``.

    ``on_evict(block)`` is called when a cached block is taken for new content, before it is handed out.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None]) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks  # reference count 0, cached ones included
        self.num_evictable = 0  # reference count 0 and cached
        self.num_refs = 0  # sum of all reference counts
        self.evictions = 0
        self._on_evict = on_evict
        self._refs = [0] * num_blocks
        self._cached = bytearray(num_blocks)
        sentinel = num_blocks
        self._next = [*range(1, num_blocks + 1), 0]
        self._prev = [sentinel, *range(num_blocks)]

    @property
    def num_held(self) -> int:
        """Blocks that at least one table points to."""
        return self.num_blocks - self.num_free

    def ref_count(self, block: int) -> int:
        return self._refs[block]

    def is_cached(self, block: int) -> bool:
        return bool(self._cached[block])

    def allocate(self, near: int = -1) -> int:
        """Take one free block with reference count 1.

        ``near`` is the block that would make the caller's run of physical ids contiguous; it is taken if it is free and
        uncached (among uncached blocks the order carries no information), else the head of the list is.
        Raises PoolExhaustedError if no block is free.
        """
        if 0 <= near < self.num_blocks and not self._refs[near] and not self._cached[near]:
            block = near
        else:
            block = self._next[self.num_blocks]
            if block == self.num_blocks:
                raise PoolExhaustedError(f"all {self.num_blocks} blocks are held")
        self._unlink(block)
        if self._cached[block]:
            self._cached[block] = 0
            self.num_evictable -= 1
            self.evictions += 1
            self._on_evict(block)
        self._refs[block] = 1
        self.num_refs += 1
        self.num_free -= 1
        return block

    def acquire(self, block: int) -> None:
        """Add one reference.  A free block leaves the free list; it must be cached, else nothing could name it."""
        if not self._refs[block]:
            if not self._cached[block]:
                raise AuditError(f"block {block} is free and uncached, so nothing may point to it")
            self._unlink(block)
            self.num_free -= 1
            self.num_evictable -= 1
        self._refs[block] += 1
        self.num_refs += 1

    def release(self, block: int) -> None:
        """Drop one reference; the last one puts the block into the free list.  Raises AuditError on a double free."""
        if not self._refs[block]:
            raise AuditError(f"block {block} is released once more than it was acquired")
        self._refs[block] -= 1
        self.num_refs -= 1
        if self._refs[block]:
            return
        self.num_free += 1
        if self._cached[block]:
            self.num_evictable += 1
            self._link_after(self._prev[self.num_blocks], block)
        else:
            self._link_after(self.num_blocks, block)

    def mark_cached(self, block: int) -> None:
        """The prefix cache can now find this held block, until it is evicted or forgotten."""
        if not self._refs[block]:
            raise AuditError(f"block {block} is free and cannot be registered in the prefix cache")
        self._cached[block] = 1

    def forget(self, block: int) -> None:
        """The prefix cache cannot find this block any more, though nobody has taken it."""
        if not self._cached[block]:
            raise AuditError(f"block {block} is not cached and cannot be forgotten")
        self._cached[block] = 0
        if not self._refs[block]:
            self.num_evictable -= 1
            self._unlink(block)
            self._link_after(self.num_blocks, block)

    def free_blocks(self) -> Iterator[int]:
        """Free blocks in the order in which they would be taken."""
        block = self._next[self.num_blocks]
        while block != self.num_blocks:
            yield block
            block = self._next[block]

    def audit(self) -> None:
        """Check every invariant of the pool; O(num_blocks).  Raises AuditError."""
        seen = bytearray(self.num_blocks)
        count = evictable = 0
        previous = self.num_blocks
        for block in self.free_blocks():
            if seen[block]:
                raise AuditError(f"block {block} appears twice in the free list")
            seen[block] = 1
            count += 1
            if self._prev[block] != previous:
                raise AuditError(f"free list is torn before block {block}")
            if self._refs[block]:
                raise AuditError(f"block {block} is in the free list with {self._refs[block]} references")
            if self._cached[block]:
                evictable += 1
            elif evictable:
                raise AuditError(f"uncached block {block} stands behind cached ones in the free list")
            previous = block
        if self._prev[self.num_blocks] != previous:
            raise AuditError("free list's tail is torn")
        if count != self.num_free or evictable != self.num_evictable:
            raise AuditError(
                f"free list has {count} blocks, {evictable} of them cached; "
                f"the counters say {self.num_free} and {self.num_evictable}"
            )
        for block, refs in enumerate(self._refs):
            if refs < 0 or (refs == 0) != bool(seen[block]):
                raise AuditError(
                    f"block {block} has {refs} references and is {'' if seen[block] else 'not '}in the free list"
                )
        if sum(self._refs) != self.num_refs:
            raise AuditError(f"reference counts add up to {sum(self._refs)}, the counter says {self.num_refs}")

    def _unlink(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before] = after
        self._prev[after] = before

    def _link_after(self, before: int, block: int) -> None:
        after = self._next[before]
        self._next[before] = self._prev[after] = block
        self._prev[block], self._next[block] = before, after
