"""Block pool: reference counts, the order in which blocks are taken, and an audit that sees every kind of damage."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from reference_engine.kv.block_pool import AuditError, BlockPool, PoolExhaustedError


@pytest.fixture
def evicted() -> list[int]:
    return []


@pytest.fixture
def pool(evicted: list[int]) -> BlockPool:
    return BlockPool(6, on_evict=evicted.append)


def test_a_fresh_pool_hands_out_ascending_runs(pool: BlockPool) -> None:
    assert [pool.allocate() for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    assert pool.num_free == 0
    assert pool.num_held == pool.num_refs == 6
    with pytest.raises(PoolExhaustedError, match="all 6 blocks are held"):
        pool.allocate()


def test_the_neighbour_is_taken_when_it_is_free_and_worthless(pool: BlockPool) -> None:
    for _ in range(4):
        pool.allocate()
    pool.release(1)
    assert pool.allocate(near=4) == 4  # not block 1 at the head
    assert pool.allocate(near=3) == 1  # 3 is held
    assert pool.allocate(near=6) == 5  # past the end


def test_a_cached_neighbour_is_spared(pool: BlockPool, evicted: list[int]) -> None:
    block = pool.allocate()
    pool.mark_cached(block)
    pool.release(block)
    assert pool.allocate(near=block) == 1
    assert evicted == []


def test_uncached_blocks_go_first_then_cached_ones_least_recently_released_first(
    pool: BlockPool, evicted: list[int]
) -> None:
    blocks = [pool.allocate() for _ in range(6)]
    for block in (3, 1, 4):
        pool.mark_cached(block)
    for block in (4, 0, 3, 5, 1, 2):
        pool.release(block)
    assert list(pool.free_blocks()) == [2, 5, 0, 4, 3, 1]
    assert pool.num_evictable == 3
    assert [pool.allocate() for _ in blocks] == [2, 5, 0, 4, 3, 1]
    assert evicted == [4, 3, 1]
    assert pool.evictions == 3
    assert pool.num_evictable == 0


def test_a_free_cached_block_is_revived_from_the_middle_of_the_list(pool: BlockPool, evicted: list[int]) -> None:
    for _ in range(3):
        pool.mark_cached(pool.allocate())
    for block in range(3):
        pool.release(block)
    pool.acquire(1)
    assert list(pool.free_blocks()) == [3, 4, 5, 0, 2]
    assert pool.ref_count(1) == 1
    pool.acquire(1)
    pool.release(1)
    assert 1 not in pool.free_blocks()  # one holder is left
    pool.release(1)
    assert list(pool.free_blocks())[-1] == 1  # used again, so evicted last
    assert evicted == []
    pool.audit()


def test_misuse_is_an_audit_error(pool: BlockPool) -> None:
    with pytest.raises(AuditError, match="block 0 is free and uncached"):
        pool.acquire(0)
    with pytest.raises(AuditError, match="block 0 is free and cannot be registered"):
        pool.mark_cached(0)
    pool.allocate()
    pool.release(0)
    with pytest.raises(AuditError, match="block 0 is released once more"):
        pool.release(0)
    pool.audit()


def _set(pool: BlockPool, attribute: str, index: int | None, value: int) -> None:
    if index is None:
        setattr(pool, attribute, value)
    else:
        getattr(pool, attribute)[index] = value


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: _set(p, "_refs", 0, 0), "block 0 has 0 references and is not in the free list"),
        (lambda p: _set(p, "_refs", 5, 1), "block 5 is in the free list with 1 references"),
        (lambda p: _set(p, "_refs", 0, -1), "block 0 has -1 references"),
        (lambda p: _set(p, "_refs", 0, 2), "add up to 4, the counter says 3"),
        (lambda p: _set(p, "num_free", None, 4), "the counters say 4 and 1"),
        (lambda p: _set(p, "num_evictable", None, 0), "the counters say 3 and 0"),
        (lambda p: _set(p, "num_refs", None, 9), "the counter says 9"),
        (lambda p: _set(p, "_prev", 5, 0), "free list is torn before block 5"),
        (lambda p: _set(p, "_prev", 6, 0), "tail is torn"),
        (lambda p: _set(p, "_cached", 4, 1), "uncached block 5 stands behind cached ones"),
    ],
)
def test_the_audit_names_the_damage(damage: Callable[[BlockPool], None], message: str) -> None:
    pool = BlockPool(6, on_evict=lambda block: None)
    for _ in range(4):
        pool.allocate()
    pool.mark_cached(3)
    pool.release(3)  # free: 4, 5, then 3 (cached); held: 0, 1, 2
    pool.audit()
    damage(pool)
    with pytest.raises(AuditError, match=message):
        pool.audit()


def test_a_cycle_in_the_free_list_ends_the_audit(pool: BlockPool) -> None:
    pool._next[3] = 2
    with pytest.raises(AuditError, match="block 2 appears twice"):
        pool.audit()


def test_against_a_plain_model() -> None:
    """20,000 random operations next to lists and dictionaries."""
    seed = random.SystemRandom().getrandbits(32)
    r = random.Random(seed)
    for _ in range(20):
        size = r.randint(1, 24)
        gone: list[int] = []
        pool = BlockPool(size, on_evict=gone.append)
        refs = dict.fromkeys(range(size), 0)
        cached: set[int] = set()
        uncached_free, cached_free = list(range(size)), []
        for _ in range(1_000):
            held = [b for b in refs if refs[b]]
            action = r.randrange(4)
            if action == 0 and (uncached_free or cached_free):
                near = r.randrange(-1, size + 1)
                block = pool.allocate(near)
                expected = near if near in uncached_free else (uncached_free or cached_free)[0]
                assert block == expected, seed
                if block in cached:
                    assert gone.pop() == block
                    cached.remove(block)
                    cached_free.remove(block)
                else:
                    uncached_free.remove(block)
                refs[block] = 1
            elif action == 1 and (held or cached):
                block = r.choice(held + sorted(cached))
                pool.acquire(block)
                if not refs[block]:
                    cached_free.remove(block)
                refs[block] += 1
            elif action == 2 and held:
                block = r.choice(held)
                pool.release(block)
                refs[block] -= 1
                if not refs[block] and block in cached:
                    cached_free.append(block)
                elif not refs[block]:
                    uncached_free.insert(0, block)
            elif action == 3 and held:
                block = r.choice(held)
                pool.mark_cached(block)
                cached.add(block)
            assert gone == []
            pool.audit()
            assert list(pool.free_blocks()) == uncached_free + cached_free, seed
            assert [pool.ref_count(b) for b in range(size)] == list(refs.values()), seed
            assert {b for b in range(size) if pool.is_cached(b)} == cached, seed
