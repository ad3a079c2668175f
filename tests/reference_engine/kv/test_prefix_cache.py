"""Prefix cache: what is found, and that nothing is found by hash alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.prefix_cache import CachedBlock, PrefixCache, chain_hash, root_digest


def register(cache: PrefixCache, tokens: Sequence[int], salt: str = "", first_block: int = 0) -> list[CachedBlock]:
    """Register the full blocks of ``tokens`` in blocks first_block, first_block + 1, ..."""
    size, parent = cache.block_size, None
    entries = []
    for index in range(len(tokens) // size):
        content = tuple(tokens[index * size : (index + 1) * size])
        parent = cache.register(first_block + index, content, parent, salt)
        assert parent is not None
        entries.append(parent)
    return entries


def found(cache: PrefixCache, tokens: Sequence[int], salt: str = "", limit: int | None = None) -> list[int]:
    return [e.block for e in cache.find(tokens, salt, len(tokens) if limit is None else limit, [])]


def test_the_longest_chain_of_full_blocks_is_found() -> None:
    cache = PrefixCache(3)
    register(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9], first_block=10)
    assert found(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9, 1]) == [10, 11, 12]
    assert found(cache, [1, 2, 3, 4, 5, 6, 7, 8]) == [10, 11]
    assert found(cache, [1, 2, 3, 0, 5, 6, 7, 8, 9]) == [10]  # a later block counts only behind its own prefix
    assert found(cache, [4, 5, 6]) == []
    assert found(cache, [1, 2]) == []
    assert len(cache) == 3


@pytest.mark.parametrize(("limit", "blocks"), [(9, 3), (8, 2), (6, 2), (5, 1), (3, 1), (2, 0), (0, 0)])
def test_no_hit_reaches_beyond_the_limit(limit: int, blocks: int) -> None:
    cache = PrefixCache(3)
    tokens = list(range(9))
    register(cache, tokens)
    assert len(found(cache, tokens, limit=limit)) == blocks


def test_salts_are_separate_domains() -> None:
    cache = PrefixCache(2)
    register(cache, [1, 2, 3, 4], salt="a", first_block=0)
    assert found(cache, [1, 2, 3, 4], salt="b") == []
    register(cache, [1, 2, 3, 4], salt="b", first_block=5)
    assert found(cache, [1, 2, 3, 4], salt="a") == [0, 1]
    assert found(cache, [1, 2, 3, 4], salt="b") == [5, 6]


def test_registering_equal_content_again_names_the_first_block() -> None:
    cache = PrefixCache(2)
    first, second = register(cache, [1, 2, 3, 4])
    assert cache.register(7, (1, 2), None, "") is first
    assert cache.register(8, (3, 4), first, "") is second
    assert cache.entry(7) is None
    cache.audit()


def test_an_evicted_block_is_not_found_and_can_be_registered_anew() -> None:
    cache = PrefixCache(2)
    register(cache, [1, 2, 3, 4])
    cache.evict(1)
    assert found(cache, [1, 2, 3, 4]) == [0]
    cache.evict(0)
    assert found(cache, [1, 2, 3, 4]) == []
    assert len(cache) == 0
    register(cache, [9, 9], first_block=1)
    assert found(cache, [9, 9]) == [1]
    cache.audit()


def test_digests_are_remembered_between_lookups_and_still_verified() -> None:
    calls: list[tuple[int, ...]] = []

    def counting(parent: bytes, tokens: Sequence[int]) -> bytes:
        calls.append(tuple(tokens))
        return chain_hash(parent, tokens)

    cache = PrefixCache(2, counting)
    register(cache, [1, 2, 3, 4])
    calls.clear()
    digests: list[bytes] = []
    assert len(cache.find([1, 2, 3, 4, 5, 6, 7, 8], "", 8, digests)) == 2
    assert calls == [(1, 2), (3, 4), (5, 6)]  # the third is a miss, the fourth is never asked for
    assert len(cache.find([1, 2, 3, 4, 5, 6, 7, 8], "", 8, digests)) == 2
    assert len(calls) == 3
    assert cache.find([9, 9], "", 2, digests) == []  # wrong memory: a miss, not a wrong hit


def one_bit(parent: bytes, tokens: Sequence[int]) -> bytes:
    return bytes([chain_hash(parent, tokens)[0] & 1])


def constant(parent: bytes, tokens: Sequence[int]) -> bytes:
    return b""


@pytest.mark.parametrize("weak", [one_bit, constant])
def test_a_collision_costs_a_hit_and_never_returns_foreign_content(weak: object) -> None:
    cache = PrefixCache(1, weak)  # type: ignore[arg-type]
    refused = 0
    parents: dict[tuple[int, ...], CachedBlock] = {}
    for block, tokens in enumerate([(1,), (2,), (1, 2), (2, 2), (1, 1), (3,), (2, 1)]):
        parent = parents.get(tokens[:-1])
        if len(tokens) > 1 and parent is None:
            continue
        entry = cache.register(block, tokens[-1:], parent, "")
        if entry is None:
            refused += 1
        else:
            parents[tokens] = entry
    assert refused > 0
    cache.audit()
    for tokens in [(1,), (2,), (1, 2), (2, 2), (1, 1), (3,), (2, 1), (1, 2, 2)]:
        for depth, entry in enumerate(cache.find(tokens, "", len(tokens), []), start=1):
            assert entry is parents[tokens[:depth]]
        assert cache.find(tokens, "other domain", len(tokens), []) == []


def test_equal_tokens_behind_another_parent_are_refused_even_with_an_equal_digest() -> None:
    by_tokens_only = PrefixCache(1, lambda parent, tokens: bytes(tokens))
    one = by_tokens_only.register(0, (1,), None, "")
    child = by_tokens_only.register(1, (3,), one, "")
    two = by_tokens_only.register(2, (2,), None, "")
    assert by_tokens_only.register(3, (3,), two, "") is None
    assert [e.block for e in by_tokens_only.find([2, 3], "", 2, [])] == [2]
    assert by_tokens_only.find([1, 3], "", 2, []) == [one, child]


def test_a_child_of_an_evicted_parent_is_not_found_behind_its_successor() -> None:
    """Identity, not block id: the parent's block may hold something else by now."""
    cache = PrefixCache(1, lambda parent, tokens: bytes(tokens))
    parent = cache.register(0, (1,), None, "")
    cache.register(1, (5,), parent, "")
    cache.evict(0)
    cache.register(0, (2,), None, "")
    assert [e.block for e in cache.find([2, 5], "", 2, [])] == [0]
    assert cache.entry(1) is None, "it went with its parent"
    cache.audit()


def test_the_digest_depends_on_order_position_parent_and_salt() -> None:
    root = root_digest("")
    digests = {
        chain_hash(root, [1, 2]),
        chain_hash(root, [2, 1]),
        chain_hash(root, [1, 2, 0]),
        chain_hash(root_digest("a"), [1, 2]),
        chain_hash(chain_hash(root, [1, 2]), [1, 2]),
    }
    assert len(digests) == 5
    assert chain_hash(root, [2**40, -1])  # any integer a tokenizer may produce


@pytest.mark.parametrize("damage", ["digest", "block", "tokens"])
def test_the_audit_sees_torn_indexes(damage: str) -> None:
    cache = PrefixCache(2)
    entry, _ = register(cache, [1, 2, 3, 4])
    if damage == "digest":
        del cache._by_digest[entry.digest]
    elif damage == "block":
        entry.block = 9
    else:
        entry.tokens = (1,)
    with pytest.raises(AuditError):
        cache.audit()
