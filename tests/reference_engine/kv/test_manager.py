"""PagedKVManager by itself: tables, sharing, forks, copies on write, and random operations next to a shadow."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from reference_engine.config import CacheConfig
from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.contract import blocks_for
from reference_engine.kv.manager import PagedKVManager
from reference_engine.plan import BlockCopy, ScheduledSeq, StepPlan
from reference_engine.request import Request, RequestRejected, SamplingParams, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import kv_shadow


class Bench:
    """A manager and the little that the scheduler does around it."""

    def __init__(self, num_blocks: int = 8, block_size: int = 4, prefix_caching: bool = True) -> None:
        self.kv = PagedKVManager(CacheConfig(num_blocks, block_size, prefix_caching))
        self.shadow = kv_shadow.ShadowCache(num_blocks, block_size)
        self.sequences: dict[int, Sequence] = {}
        self._count = 0

    def new(self, tokens: list[int], salt: str = "") -> Sequence:
        request = Request(f"r{self._count}", tuple(tokens), SamplingParams(), cache_salt=salt)
        sequence = Sequence(self._count, request, tokens=list(tokens))
        self._count += 1
        return sequence

    def admit(self, tokens: list[int], salt: str = "") -> Sequence:
        sequence = self.new(tokens, salt)
        prefix = self.kv.find_prefix(sequence, sequence.known - 1)
        assert self.kv.can_admit(sequence, prefix, 1, 0)
        self.kv.admit(sequence, prefix, 1)
        sequence.computed = len(prefix) * self.kv.block_size
        self.sequences[sequence.seq_id] = sequence
        return sequence

    def compute(self, *shares: tuple[Sequence, int]) -> tuple[BlockCopy, ...]:
        """One step in which each sequence computes so many tokens; returns its copies."""
        for sequence, count in shares:
            assert self.kv.can_allocate(sequence, sequence.computed + count)
            self.kv.allocate(sequence, sequence.computed + count)
            sequence.scheduled = count
        copies = self.kv.take_copies()
        self.kv.audit()
        parts = tuple(
            ScheduledSeq(
                s.seq_id, s.computed, tuple(s.tokens[s.computed : s.computed + count]), self.kv.block_table(s.seq_id), 0
            )
            for s, count in shares
        )
        self.shadow.run(StepPlan(0, parts, copies), [s for s, _ in shares])
        for sequence, count in shares:
            sequence.computed += count
            sequence.scheduled = 0
            self.kv.commit(sequence)
            self.kv.audit()
        return copies

    def fork(self, parent: Sequence) -> Sequence:
        child = Sequence(self._count, parent.request, 1, list(parent.tokens), computed=parent.computed)
        self._count += 1
        self.kv.fork(parent, child)
        self.sequences[child.seq_id] = child
        return child

    def free(self, sequence: Sequence) -> None:
        self.kv.free(sequence.seq_id)
        self.sequences.pop(sequence.seq_id, None)
        self.kv.audit()

    def table(self, sequence: Sequence) -> tuple[int, ...]:
        return self.kv.block_table(sequence.seq_id)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_blocks_for_rounds_up(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 4) == blocks


@pytest.mark.parametrize("block_size", [1, 2, 3, 16, 256])
def test_a_block_is_added_exactly_when_the_last_one_is_full(block_size: int) -> None:
    bench = Bench(num_blocks=4, block_size=block_size)
    sequence = bench.admit([7] * (3 * block_size))
    for position in range(3 * block_size):
        bench.compute((sequence, 1))
        assert len(bench.table(sequence)) == position // block_size + 1


def test_one_sequence_gets_an_ascending_run() -> None:
    bench = Bench()
    sequence = bench.admit(list(range(20)))
    bench.compute((sequence, 7))
    bench.compute((sequence, 13))
    assert bench.table(sequence) == (0, 1, 2, 3, 4)


def test_the_table_is_built_again_only_when_it_changes() -> None:
    bench = Bench()
    sequence = bench.admit(list(range(6)))
    bench.compute((sequence, 1))
    first = bench.table(sequence)
    bench.compute((sequence, 2))
    assert bench.table(sequence) is first
    bench.compute((sequence, 3))
    assert bench.table(sequence) == (0, 1)


def test_can_allocate_tells_the_truth_at_the_edge() -> None:
    bench = Bench(num_blocks=3)
    one, two = bench.admit([1] * 8), bench.admit([2] * 8)
    bench.compute((one, 8))
    assert bench.kv.can_allocate(two, 4)
    assert not bench.kv.can_allocate(two, 5)
    assert bench.kv.num_writable(two) == 4
    assert bench.kv.blocks_missing(two) == 2
    bench.compute((two, 3))
    assert bench.kv.num_writable(two) == 1
    assert bench.kv.num_free_blocks == 0


def test_can_admit_counts_revived_blocks_new_blocks_and_headroom() -> None:
    bench = Bench(num_blocks=4)
    first = bench.admit([1] * 8)
    bench.compute((first, 8))
    bench.free(first)  # two evictable, two empty blocks
    again = bench.new([1] * 9 + [2] * 3)
    prefix = bench.kv.find_prefix(again, 11)
    assert [e.block for e in prefix] == [0, 1]
    assert bench.kv.can_admit(again, prefix, 1, headroom=1)
    assert not bench.kv.can_admit(again, prefix, 1, headroom=2)


def test_full_blocks_are_shared_and_outlive_their_first_holder() -> None:
    bench = Bench()
    first = bench.admit(list(range(10)))
    bench.compute((first, 10))
    second = bench.admit([*range(8), 77, 78])
    assert second.computed == 8
    bench.compute((second, 2))
    assert bench.table(second)[:2] == bench.table(first)[:2]
    assert bench.table(second)[2] != bench.table(first)[2]
    bench.free(first)
    bench.shadow.check_read(bench.table(second), 10, second)


def test_nothing_is_visible_before_it_is_computed() -> None:
    bench = Bench()
    first = bench.admit(list(range(9)))
    bench.kv.allocate(first, 9)
    assert bench.kv.find_prefix(bench.new(list(range(9))), 8) == []
    bench.compute((first, 5))
    assert len(bench.kv.find_prefix(bench.new(list(range(9))), 8)) == 1  # the second block is not full yet
    bench.compute((first, 4))
    assert len(bench.kv.find_prefix(bench.new(list(range(9))), 8)) == 2


def test_equal_blocks_computed_in_one_step_become_one_and_none_is_freed_in_use() -> None:
    bench = Bench()
    one, two = bench.admit(list(range(9))), bench.admit(list(range(9)))
    bench.compute((one, 9), (two, 9))
    assert bench.kv.deduplicated == 2
    assert bench.table(one)[:2] == bench.table(two)[:2]
    assert bench.table(one)[2] != bench.table(two)[2]
    assert bench.kv.num_free_blocks == 8 - 4
    bench.free(one)
    bench.shadow.check_read(bench.table(two), 9, two)
    bench.free(two)
    assert bench.kv.ledger().allocated == 0


def test_without_prefix_caching_nothing_is_shared_or_kept() -> None:
    bench = Bench(prefix_caching=False)
    one = bench.admit(list(range(9)))
    bench.compute((one, 9))
    two = bench.admit(list(range(9)))
    assert two.computed == 0
    bench.compute((two, 9))
    assert not set(bench.table(one)) & set(bench.table(two))
    bench.free(one)
    bench.free(two)
    assert bench.kv.pool.num_evictable == 0


def test_the_least_recently_used_prefix_is_evicted_first_and_deep_blocks_before_shallow_ones() -> None:
    bench = Bench(num_blocks=5)
    old, new = bench.admit([1] * 8), bench.admit([2] * 8)
    bench.compute((old, 8), (new, 8))
    bench.free(new)
    bench.free(old)
    revived = bench.admit([2] * 9)  # `new`'s prefix is used again, so `old`'s is the older one now
    bench.compute((revived, 1))
    bench.free(revived)
    taker = bench.admit([3] * 8)
    bench.compute((taker, 8))
    assert len(bench.kv.find_prefix(bench.new([2] * 9), 8)) == 2
    assert len(bench.kv.find_prefix(bench.new([1] * 9), 8)) == 1


def test_a_fork_shares_every_block_and_the_first_writer_copies_the_partial_one() -> None:
    bench = Bench()
    parent = bench.admit(list(range(6)))
    bench.compute((parent, 6))
    child = bench.fork(parent)
    grandchild = bench.fork(child)
    bench.kv.audit()
    assert bench.table(parent) == bench.table(child) == bench.table(grandchild) == (0, 1)
    assert bench.kv.ledger().token_states == 6
    assert bench.kv.ledger().logical == 18
    for token, sequence in enumerate((parent, child, grandchild), start=100):
        sequence.tokens.append(token)
    assert bench.compute((child, 1)) == (BlockCopy(1, 2),)
    assert bench.compute((parent, 1), (grandchild, 1)) == (BlockCopy(1, 3),)
    assert bench.table(grandchild) == (0, 1)  # the last holder writes in place
    for sequence in (parent, child, grandchild):
        bench.shadow.check_read(bench.table(sequence), 7, sequence)


def test_a_fork_at_a_block_edge_needs_no_copy() -> None:
    bench = Bench()
    parent = bench.admit(list(range(8)))
    bench.compute((parent, 8))
    child = bench.fork(parent)
    for sequence in (parent, child):
        sequence.tokens.append(50 + sequence.seq_id)
    assert bench.compute((parent, 1), (child, 1)) == ()
    assert bench.table(parent)[:2] == bench.table(child)[:2]


def test_a_copy_on_write_needs_a_block() -> None:
    bench = Bench(num_blocks=2)
    parent = bench.admit(list(range(6)))
    bench.compute((parent, 6))
    child = bench.fork(parent)
    parent.tokens.append(1)
    child.tokens.append(2)
    assert not bench.kv.can_allocate(parent, 7)
    assert bench.kv.num_writable(parent) == 0
    bench.free(child)
    assert bench.kv.can_allocate(parent, 7)
    assert bench.compute((parent, 1)) == ()


def test_freeing_the_copier_takes_its_copy_back() -> None:
    bench = Bench()
    parent = bench.admit(list(range(6)))
    bench.compute((parent, 6))
    child = bench.fork(parent)
    bench.kv.allocate(child, 7)
    bench.free(child)
    assert bench.kv.take_copies() == ()
    bench.kv.audit()
    parent.tokens.append(1)
    assert bench.compute((parent, 1)) == ()


def test_the_source_of_a_copy_stays_pinned_until_the_copies_are_taken() -> None:
    bench = Bench(num_blocks=4)
    parent = bench.admit(list(range(6)))
    bench.compute((parent, 6))
    child = bench.fork(parent)
    bench.kv.allocate(child, 7)
    bench.kv.free(parent.seq_id)
    assert bench.kv.pool.ref_count(1) == 1
    assert bench.kv.take_copies() == (BlockCopy(1, 2),)
    assert bench.kv.pool.ref_count(1) == 0
    bench.kv.audit()


def test_free_is_idempotent() -> None:
    bench = Bench()
    sequence = bench.admit(list(range(9)))
    bench.compute((sequence, 9))
    for _ in range(3):
        bench.free(sequence)
    bench.kv.free(12345)
    assert bench.kv.pool.num_free == 8


def test_a_request_beyond_the_pool_is_refused_and_one_that_just_fits_is_not() -> None:
    kv = PagedKVManager(CacheConfig(num_blocks=3, block_size=4))
    kv.check_fits(Request("a", (1,) * 10, SamplingParams(max_tokens=3)))  # the last token is never computed
    with pytest.raises(RequestRejected, match="needs 13 KV slots, but the whole pool has 12") as refusal:
        kv.check_fits(Request("a", (1,) * 10, SamplingParams(max_tokens=4)))
    assert refusal.value.status == 400
    assert refusal.value.param == "max_tokens"


def damaged(kind: str) -> PagedKVManager:
    bench = Bench()
    one = bench.admit(list(range(9)))
    bench.compute((one, 9))
    two = bench.admit(list(range(9)))
    bench.compute((two, 1))
    kv, table = bench.kv, bench.kv._tables[one.seq_id]
    kv.audit()
    if kind == "reference":
        kv.pool.acquire(table.blocks[0])
    elif kind == "double owner":
        table.blocks[2] = kv._tables[two.seq_id].blocks[2]
        table.frozen = None
    elif kind == "twice":
        table.blocks[1] = table.blocks[0]
    elif kind == "tokens":
        one.tokens[5] += 1
    elif kind == "computed":
        two.computed = 20
    elif kind == "registered":
        table.registered.append(table.registered[0])
    elif kind == "flag":
        kv.pool._cached[table.blocks[2]] = 1
    elif kind == "frozen":
        table.frozen = (5, 6, 7)
    elif kind == "copy":
        kv._copies.append((0, BlockCopy(0, 1)))
    elif kind == "write":
        one.computed, one.scheduled = 8, 1
        kv.pool.acquire(table.blocks[2])
        kv._tables[two.seq_id].blocks[2] = table.blocks[2]
    elif kind == "fill":
        two.computed = 5
    return kv


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("reference", "block 0 has 3 references but stands in 2 tables"),
        ("double owner", "references but stands in"),
        ("twice", "has a block twice"),
        ("tokens", "does not hold the tokens of its table position 1"),
        ("computed", "has 3 blocks for 20 tokens"),
        ("registered", "has registered tokens that are not computed"),
        ("flag", "disagree on whether block 2 is cached"),
        ("frozen", "the table handed to the runner is stale"),
        ("copy", "1 block copies were planned and never handed out"),
        ("write", "is about to write block 2, which others can read"),
        ("fill", "registered tokens that are not computed"),
    ],
)
def test_the_audit_names_the_damage(kind: str, message: str) -> None:
    with pytest.raises(AuditError, match=message):
        damaged(kind).audit()


@pytest.mark.parametrize("shard", range(4))
def test_random_operations_next_to_a_shadow(shard: int) -> None:
    """5,000 a shard: admit, extend, fork anywhere (also in the middle of a block), free; nothing is ever read wrong."""
    seed = random.SystemRandom().getrandbits(32)
    r = random.Random(seed)
    operations = copies = hits = 0
    while operations < 5_000:
        bench = Bench(r.randint(2, 20), r.choice((1, 2, 3, 4, 8)), r.random() < 0.8)
        for _ in range(250):
            operations += 1
            live = list(bench.sequences.values())
            action = r.random()
            try:
                if action < 0.25:
                    sequence = bench.new([r.randrange(2) for _ in range(r.randint(1, 12))], r.choice(("", "", "salt")))
                    prefix = bench.kv.find_prefix(sequence, sequence.known - 1)
                    if bench.kv.can_admit(sequence, prefix, 1, 0):
                        hits += bench.admit(list(sequence.tokens), sequence.request.cache_salt).computed > 0
                elif action < 0.75 and live:
                    shares = []
                    for sequence in r.sample(live, r.randint(1, min(3, len(live)))):
                        if sequence.known == sequence.computed:
                            sequence.tokens.append(r.randrange(2))
                        count = r.randint(1, sequence.known - sequence.computed)
                        needed = sum(blocks_for(c, bench.kv.block_size) + 1 for _, c in [*shares, (sequence, count)])
                        if needed <= bench.kv.num_free_blocks:
                            shares.append((sequence, count))
                    if shares:
                        copies += len(bench.compute(*shares))
                elif action < 0.85 and live:
                    parent = r.choice(live)
                    if parent.computed:
                        bench.fork(parent)
                elif live:
                    bench.free(r.choice(live))
                bench.kv.audit()
                for sequence in bench.sequences.values():
                    bench.shadow.check_read(bench.table(sequence), sequence.computed, sequence)
            except BaseException as error:
                error.add_note(f"seed {seed}, operation {operations}")
                raise
        for sequence in list(bench.sequences.values()):
            bench.free(sequence)
        assert bench.kv.ledger().allocated == 0
    assert copies
    assert hits
