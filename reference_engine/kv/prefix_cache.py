"""Which full blocks can be shared: chained hashes to find them, tokens and parent to prove them.

::

    tokens      [ t0 .. tB-1 ][ tB .. t2B-1 ][ t2B .. ]      partial blocks are never registered
    digests     h0 = H(root(salt), block 0)   h1 = H(h0, block 1)   ...

A digest only *finds* a candidate.  A hit counts after the candidate's stored tokens, its parent entry (the very object
found for the block before) and its salt were compared, so a collision costs a hit and never returns foreign content.

A block is registered after its K/V was computed (``KVManager.commit``), never when it is allocated.  Holders of a
block hold its whole chain and release it deepest block first, so the pool evicts children before their parents.  Only
a sliding window gives up parents first; evicting one then takes its descendants along, which could not be found any
more.  No entry outlives its parent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from reference_engine.kv.block_pool import AuditError

DIGEST_BYTES = 16

ChainHash = Callable[[bytes, Sequence[int]], bytes]


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Digest of a block: its parent's digest and its token ids (as 64-bit integers)."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


def root_digest(salt: str) -> bytes:
    """Parent digest of a first block; differs per cache domain."""
    return blake2b(salt.encode(), digest_size=DIGEST_BYTES, person=b"prefix-root").digest()


@dataclass(slots=True, eq=False)
class CachedBlock:
    """One registered block.  Compared by identity: after an eviction, equal content makes a new entry."""

    block: int
    digest: bytes
    tokens: tuple[int, ...]
    parent: CachedBlock | None
    salt: str
    live: bool = True  # findable; False once it was evicted or forgotten
    children: set[CachedBlock] = field(default_factory=set)

    def holds(self, tokens: tuple[int, ...], parent: CachedBlock | None, salt: str) -> bool:
        """Whether this entry is exactly that content in that place."""
        return self.parent is parent and self.tokens == tokens and self.salt == salt


class PrefixIndex(ABC):
    """Index of registered blocks.  Knows nothing of reference counts: holding what was found is the caller's duty."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._by_block: dict[int, CachedBlock] = {}

    def __len__(self) -> int:
        return len(self._by_block)

    def use_hash(self, hash_block: ChainHash) -> None:
        """Find by another digest from now on; what is registered stays, and is found only where the two agree."""
        self._hash_block = hash_block

    def entry(self, block: int) -> CachedBlock | None:
        """What is registered for a physical block."""
        return self._by_block.get(block)

    @abstractmethod
    def find(self, tokens: Sequence[int], salt: str, limit: int, digests: list[bytes]) -> list[CachedBlock]:
        """Longest verified chain of full blocks that covers at most the first ``limit`` tokens.

        ``digests`` is the index's to remember things between calls for the same tokens (``[]`` at first): a sequence
        that waits for room is looked up in every step.  The result is not held: acquire its blocks before anything else
        is allocated, or they may be evicted.
        """

    @abstractmethod
    def register(
        self, block: int, tokens: tuple[int, ...], parent: CachedBlock | None, salt: str
    ) -> CachedBlock | None:
        """Make a computed, full block findable as the child of ``parent`` (None = first block).

        Returns the entry that stands for this content: a new one for ``block``, or the one that another block
        registered before (the caller may then share that block and give its own up).  None if it cannot be indexed.
        """

    @abstractmethod
    def _remove(self, entry: CachedBlock) -> None:
        """Take one entry out of the index; those that follow it are taken out right after."""

    def evict(self, block: int) -> list[int]:
        """Forget a block whose content is about to be overwritten, and all that is only found through it.

        Returns the other blocks that were forgotten.
        """
        top = self._by_block[block]
        lost, left = [], [top]
        while left:
            entry = left.pop()
            left += entry.children
            entry.live = False
            del self._by_block[entry.block]
            self._remove(entry)
            lost.append(entry.block)
        if top.parent is not None:
            top.parent.children.discard(top)
        return lost[1:]

    def clear(self) -> list[int]:
        """Forget everything; the blocks that were registered."""
        blocks = list(self._by_block)
        for entry in self._by_block.values():
            entry.live = False
            self._remove(entry)
        self._by_block = {}
        return blocks

    def audit(self) -> None:
        """Check the index and every entry against its parent.  Raises AuditError."""
        for block, entry in self._by_block.items():
            if entry.block != block or not entry.live:
                raise AuditError(f"prefix cache entry of block {block} is not the block's")
            if len(entry.tokens) != self.block_size:
                raise AuditError(f"block {block} is registered with {len(entry.tokens)} of {self.block_size} tokens")
            parent = entry.parent
            if parent is not None and (self._by_block.get(parent.block) is not parent or entry not in parent.children):
                raise AuditError(f"block {block} outlived its parent block {parent.block} in the prefix cache")


class PrefixCache(PrefixIndex):
    """The index by chained hashes."""

    def __init__(self, block_size: int, hash_block: ChainHash = chain_hash) -> None:
        super().__init__(block_size)
        self._hash_block = hash_block
        self._by_digest: dict[bytes, CachedBlock] = {}

    def find(self, tokens: Sequence[int], salt: str, limit: int, digests: list[bytes]) -> list[CachedBlock]:
        """``digests`` keeps the chain's digests."""
        size = self.block_size
        found: list[CachedBlock] = []
        parent: CachedBlock | None = None
        for index in range(limit // size):
            content = tuple(tokens[index * size : (index + 1) * size])
            if index == len(digests):
                digests.append(self._hash_block(digests[-1] if digests else root_digest(salt), content))
            entry = self._by_digest.get(digests[index])
            if entry is None or not entry.holds(content, parent, salt):
                break
            found.append(entry)
            parent = entry
        return found

    def register(
        self, block: int, tokens: tuple[int, ...], parent: CachedBlock | None, salt: str
    ) -> CachedBlock | None:
        """None if the digest is taken by other content."""
        digest = self._hash_block(parent.digest if parent else root_digest(salt), tokens)
        entry = self._by_digest.get(digest)
        if entry is not None:
            return entry if entry.holds(tokens, parent, salt) else None
        entry = CachedBlock(block, digest, tokens, parent, salt)
        self._by_digest[digest] = entry
        self._by_block[block] = entry
        if parent is not None:
            parent.children.add(entry)
        return entry

    def _remove(self, entry: CachedBlock) -> None:
        del self._by_digest[entry.digest]

    def audit(self) -> None:
        """Also checks the two indexes against each other."""
        if len(self._by_block) != len(self._by_digest):
            raise AuditError(f"{len(self._by_block)} cached blocks but {len(self._by_digest)} digests")
        for block, entry in self._by_block.items():
            if self._by_digest.get(entry.digest) is not entry:
                raise AuditError(f"prefix cache entry of block {block} is not the one its digest leads to")
        super().audit()
