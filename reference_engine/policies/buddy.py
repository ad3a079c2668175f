"""A buddy allocator: runs of 2**k blocks, split in halves on demand and merged with their other half when free again.

::

    pool of 11 blocks    [ 8 ............... ][ 2 ][1]      one piece for every binary digit of its size
    take 2               [2 used][ 2 ][ 4 ... ][ 2 ][1]     unless a piece of 2 is free already: the smallest that fits
"""

from __future__ import annotations

from collections.abc import Iterator


def order_of(length: int) -> int:
    """The k for which 2**k blocks are the smallest piece that holds ``length`` blocks."""
    return max(length - 1, 0).bit_length()


class BuddyAllocator:
    """Pieces of ``num_blocks`` blocks by order (log2 of their length).  Lowest addresses first."""

    def __init__(self, num_blocks: int) -> None:
        self.largest = num_blocks.bit_length() - 1  # order of the largest piece there can be
        self._free: list[set[int]] = [set() for _ in range(self.largest + 1)]  # order -> starts
        start = 0
        for order in range(self.largest, -1, -1):
            if num_blocks >> order & 1:
                self._free[order].add(start)
                start += 1 << order

    def capacity(self, order: int) -> int:
        """How many pieces of ``order`` could be taken now."""
        return sum(len(starts) << (larger - order) for larger, starts in enumerate(self._free) if larger >= order)

    def free_below(self, order: int) -> int:
        """Free blocks in pieces smaller than ``order``."""
        return sum(len(starts) << smaller for smaller, starts in enumerate(self._free[:order]))

    @property
    def num_free(self) -> int:
        return self.free_below(self.largest + 1)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Free pieces as (start, length)."""
        for order, starts in enumerate(self._free):
            for start in starts:
                yield start, 1 << order

    def take(self, order: int) -> int:
        """Start of a piece of ``order``; only if ``capacity`` is not 0."""
        larger = next(o for o in range(order, self.largest + 1) if self._free[o])
        start = min(self._free[larger])
        self._free[larger].remove(start)
        while larger > order:
            larger -= 1
            self._free[larger].add(start + (1 << larger))
        return start

    def give(self, start: int, order: int) -> None:
        """Return a piece and merge it with its other half as long as that is free."""
        while order < self.largest and start ^ (1 << order) in self._free[order]:
            self._free[order].remove(start ^ (1 << order))
            start &= ~(1 << order)
            order += 1
        self._free[order].add(start)
