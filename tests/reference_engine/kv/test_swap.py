"""The host pool's books: who holds which host block, and which copies a plan gets."""

from __future__ import annotations

import pytest

from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.swap import SwapSpace
from reference_engine.plan import BlockCopy


def test_out_and_in_are_each_handed_out_once() -> None:
    space = SwapSpace(4)
    space.store(7, [5, 9], num_tokens=6)
    out, into = space.take()
    assert [copy.source for copy in out] == [5, 9]
    assert into == ()
    assert (space.num_held, space.num_free) == (2, 2)
    space.audit()
    space.restore(7, [1, 2, 3], first=1)
    assert space.table(7) is None
    assert space.is_coming_in(7)
    out_again, into = space.take()
    assert out_again == ()
    assert into == (BlockCopy(out[1].target, 2),)
    assert (space.num_held, space.blocks_out, space.blocks_in) == (0, 2, 1)
    assert space.take() == ((), ())
    space.audit()


def test_a_host_block_is_not_given_away_before_it_has_been_read() -> None:
    space = SwapSpace(2)
    space.store(1, [4], num_tokens=4)
    host = space.take()[0][0].target
    space.restore(1, [0], first=0)
    space.store(2, [6], num_tokens=4)
    out, into = space.take()
    assert into[0].source == host
    assert out[0].target != host


def test_a_sequence_that_goes_back_before_its_way_in_costs_nothing() -> None:
    space = SwapSpace(2)
    space.store(1, [4, 5], num_tokens=7)
    space.take()
    space.restore(1, [0, 1], first=0)
    space.store(1, [0, 1], num_tokens=7)
    assert space.take() == ((), ())
    table = space.table(1)
    assert table is not None
    assert (table.num_tokens, table.num_held) == (7, 2)
    space.audit()


def test_blocks_behind_a_window_stay_dropped() -> None:
    space = SwapSpace(2)
    space.store(1, [-1, -1, 8], num_tokens=11)
    space.take()
    assert space.num_held == 1
    space.restore(1, [-1, -1, 3], first=2)
    assert len(space.take()[1]) == 1


@pytest.mark.parametrize("when", ["stored", "coming in"])
def test_dropping_gives_the_blocks_back(when: str) -> None:
    space = SwapSpace(3)
    space.store(1, [0, 1], num_tokens=8)
    space.take()
    if when == "coming in":
        space.restore(1, [4, 5], first=0)
    space.drop(1)
    space.drop(1)
    assert space.take() == ((), ())
    assert space.num_free == 3
    space.audit()


def test_the_audit_sees_a_block_with_two_owners() -> None:
    space = SwapSpace(3)
    space.store(1, [0], num_tokens=4)
    space.take()
    space._free.append(2)
    space._free.append(1)
    with pytest.raises(AuditError, match="exactly once"):
        space.audit()
