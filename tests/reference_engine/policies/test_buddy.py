"""The buddy allocator: pieces never overlap, merge again, and its counts are those of a plain list."""

from __future__ import annotations

import random

from reference_engine.policies.buddy import BuddyAllocator, order_of


def test_a_pool_is_cut_into_the_binary_digits_of_its_size() -> None:
    assert sorted(BuddyAllocator(11).pieces()) == [(0, 8), (8, 2), (10, 1)]


def test_orders_round_up() -> None:
    assert [order_of(n) for n in (1, 2, 3, 4, 5, 128, 129)] == [0, 1, 2, 2, 3, 7, 8]


def test_the_smallest_piece_that_fits_is_split() -> None:
    buddy = BuddyAllocator(11)
    assert [buddy.take(1), buddy.take(1), buddy.take(1)] == [8, 0, 2]
    assert sorted(buddy.pieces()) == [(4, 4), (10, 1)]
    assert [buddy.capacity(order) for order in range(4)] == [5, 2, 1, 0]
    assert buddy.free_below(2) == 1


def test_random_use_leaves_no_overlap_and_merges_back() -> None:
    r = random.Random()
    for _ in range(40):
        size = r.randint(1, 300)
        buddy = BuddyAllocator(size)
        whole = sorted(buddy.pieces())
        held: list[tuple[int, int]] = []
        for _ in range(300):
            order = r.randint(0, buddy.largest)
            if buddy.capacity(order) and r.random() < 0.6:
                held.append((buddy.take(order), order))
            elif held:
                buddy.give(*held.pop(r.randrange(len(held))))
            taken = [b for start, o in held for b in range(start, start + (1 << o))]
            free = [b for start, length in buddy.pieces() for b in range(start, start + length)]
            assert sorted(taken + free) == list(range(size))
            assert buddy.num_free == len(free)
            assert buddy.capacity(0) == len(free)
        r.shuffle(held)
        for piece in held:
            buddy.give(*piece)
        assert sorted(buddy.pieces()) == whole
