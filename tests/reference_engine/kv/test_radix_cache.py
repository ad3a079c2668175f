"""The radix tree finds exactly what the chained hashes find, whatever is registered, evicted and forgotten."""

from __future__ import annotations

import random
import secrets

import pytest

from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.prefix_cache import CachedBlock, PrefixCache, PrefixIndex
from reference_engine.kv.radix_cache import RadixCache

SIZE = 2


def insert(index: PrefixIndex, tokens: list[int], blocks: list[int], salt: str = "") -> list[CachedBlock]:
    """Register all full blocks of ``tokens`` that are not known yet; their entries."""
    entries: list[CachedBlock] = []
    for place, block in enumerate(blocks):
        content = tuple(tokens[place * SIZE : (place + 1) * SIZE])
        entry = index.register(block, content, entries[-1] if entries else None, salt)
        assert entry is not None
        entries.append(entry)
    return entries


def test_edges_split_where_prompts_part_and_shrink_from_the_end() -> None:
    tree = RadixCache(SIZE)
    insert(tree, [1, 1, 2, 2, 3, 3], [0, 1, 2])
    assert len(tree._roots[""].following) == 1
    assert [e.block for e in insert(tree, [1, 1, 2, 2, 4, 4], [5, 6, 7])] == [0, 1, 7]
    tree.audit()
    root = tree._roots[""].following[1, 1]
    assert [e.block for e in root.edge] == [0, 1]
    assert sorted(child.edge[0].block for child in root.following.values()) == [2, 7]
    assert tree.evict(2) == []
    assert [e.block for e in tree.find([1, 1, 2, 2, 3, 3], "", 6, [])] == [0, 1]
    assert tree.evict(1) == [7], "what hangs below an evicted block cannot be found any more"
    assert [e.block for e in tree.find([1, 1, 2, 2, 4, 4], "", 6, [])] == [0]
    tree.audit()


def test_both_indexes_find_the_same() -> None:
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = random.Random(seed)
    indexes: tuple[PrefixIndex, ...] = (PrefixCache(SIZE), RadixCache(SIZE))
    free = set(range(300))
    for _ in range(3000):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 7) * SIZE)]
        salt = rng.choice(("", "other"))
        action = rng.random()
        if action < 0.6 and len(free) > 8:
            blocks = rng.sample(sorted(free), len(tokens) // SIZE)
            found = [[e.block for e in insert(index, tokens, blocks, salt)] for index in indexes]
            assert found[0] == found[1]
            free -= set(found[0])
        elif action < 0.8 and len(free) < 300:
            block = rng.choice(sorted(set(range(300)) - free))
            lost = [sorted(index.evict(block)) for index in indexes]
            assert lost[0] == lost[1]
            free |= {block, *lost[0]}
        elif action < 0.803:
            assert sorted(indexes[0].clear()) == sorted(indexes[1].clear())
            free = set(range(300))
        limit = rng.randrange(len(tokens) + 1)
        hits = [[e.block for e in index.find(tokens, salt, limit, [])] for index in indexes]
        assert hits[0] == hits[1]
        for index in indexes:
            index.audit()
            assert len(index) == 300 - len(free)


def test_the_audit_sees_a_block_that_was_forgotten_in_the_tree_only() -> None:
    tree = RadixCache(SIZE)
    insert(tree, [1, 1, 2, 2], [0, 1])
    tree._roots[""].following[1, 1].edge.pop()
    with pytest.raises(AuditError, match="reach 1 of 2"):
        tree.audit()
