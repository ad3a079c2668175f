"""The prefix index as a radix tree: edges carry runs of blocks, nodes are where prompts part.

::

    salt ""   --[ b0 b1 b2 ]--+--[ b3 b4 ]            "system prompt" + chat A
                              +--[ b7 ]--+--[ b8 ]    "system prompt" + chat B, first answer
                                         +--[ b9 ]    ... and the other answer

Compared token by token on the way down, so there are no digests and no collisions.  An edge is split when a block is
registered that parts from it in the middle, and shortened from its end when blocks are evicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.prefix_cache import CachedBlock, PrefixIndex

Tokens = tuple[int, ...]


@dataclass(slots=True, eq=False)
class RadixNode:
    """The edge that leads to a node, and what follows: children by the tokens of their first block."""

    parent: RadixNode | None
    edge: list[CachedBlock] = field(default_factory=list)
    following: dict[Tokens, RadixNode] = field(default_factory=dict)


class RadixCache(PrefixIndex):
    """A forest with one tree for each ``cache_salt``."""

    def __init__(self, block_size: int) -> None:
        super().__init__(block_size)
        self._roots: dict[str, RadixNode] = {}
        self._place: dict[int, tuple[RadixNode, int]] = {}  # block -> its node and its index in the edge

    def find(self, tokens: Sequence[int], salt: str, limit: int, digests: list[bytes]) -> list[CachedBlock]:
        size, count = self.block_size, limit // self.block_size
        found: list[CachedBlock] = []
        node = self._roots.get(salt)
        while node is not None and len(found) < count:
            node = node.following.get(tuple(tokens[len(found) * size : (len(found) + 1) * size]))
            for entry in node.edge if node else ():
                if len(found) == count or entry.tokens != tuple(tokens[len(found) * size : (len(found) + 1) * size]):
                    return found
                found.append(entry)
        return found

    def register(self, block: int, tokens: Tokens, parent: CachedBlock | None, salt: str) -> CachedBlock:
        """Never None: there are no collisions."""
        if parent is None:
            node, index = self._roots.setdefault(salt, RadixNode(None)), -1
        else:
            node, index = self._place[parent.block]
        entry = CachedBlock(block, b"", tokens, parent, salt)
        if index + 1 < len(node.edge):
            if node.edge[index + 1].tokens == tokens:
                return node.edge[index + 1]
            self._split(node, index + 1)
        known = node.following.get(tokens)
        if known is not None:
            return known.edge[0]
        if parent is None or node.following:
            child = node.following[tokens] = RadixNode(node)
            node, index = child, -1
        node.edge.append(entry)
        self._place[block] = node, index + 1
        self._by_block[block] = entry
        if parent is not None:
            parent.children.add(entry)
        return entry

    def _split(self, node: RadixNode, at: int) -> None:
        """Cut the edge of ``node`` before its block ``at``; the rest becomes an edge to a new node below it."""
        lower = RadixNode(node, node.edge[at:], node.following)
        for child in lower.following.values():
            child.parent = lower
        for index, entry in enumerate(lower.edge):
            self._place[entry.block] = lower, index
        del node.edge[at:]
        node.following = {lower.edge[0].tokens: lower}

    def _remove(self, entry: CachedBlock) -> None:
        node, index = self._place.pop(entry.block)
        if index == 0 and node.parent is not None:
            del node.parent.following[entry.tokens]
            if node.parent.parent is None and not node.parent.following:
                self._roots.pop(entry.salt, None)
        if index < len(node.edge):
            del node.edge[index:]

    def clear(self) -> list[int]:
        for entry in self._by_block.values():
            entry.live = False
        blocks = list(self._by_block)
        self._by_block, self._roots, self._place = {}, {}, {}
        return blocks

    def audit(self) -> None:
        """Also walks the whole forest."""
        reached = 0
        for salt, root in self._roots.items():
            if root.edge or root.parent is not None:
                raise AuditError(f"the radix tree of salt {salt!r} has an edge above its root")
            left = list(root.following.items())
            while left:
                first, node = left.pop()
                if not node.edge or node.edge[0].tokens != first:
                    raise AuditError(f"a radix edge is filed under {first}, but starts otherwise")
                before = node.parent.edge[-1] if node.parent is not None and node.parent.edge else None
                for index, entry in enumerate(node.edge):
                    if self._place.get(entry.block) != (node, index) or self._by_block.get(entry.block) is not entry:
                        raise AuditError(f"block {entry.block} is not where the radix tree has it")
                    if entry.parent is not before or entry.salt != salt:
                        raise AuditError(f"block {entry.block} follows another block in the radix tree")
                    before = entry
                reached += len(node.edge)
                for child in node.following.values():
                    if child.parent is not node:
                        raise AuditError("a radix node has two parents")
                left += node.following.items()
        if reached != len(self._by_block) or len(self._place) != reached:
            raise AuditError(f"the radix trees reach {reached} of {len(self._by_block)} cached blocks")
        super().audit()
