"""Every defect that the audit and the shadow exist for is put in on purpose, and must be caught.

Most of them are bugs that other engines had: double free, stale hash entry, block visible before it is computed, ...
The same seeds without a defect pass, so what is caught is the defect.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reference_engine import scheduler as scheduler_module
from reference_engine.kv import manager as manager_module
from reference_engine.kv.block_pool import AuditError, BlockPool
from reference_engine.kv.contract import BlockTable
from reference_engine.kv.manager import PagedKVManager
from reference_engine.kv.prefix_cache import CachedBlock, PrefixCache, chain_hash
from reference_engine.kv.radix_cache import RadixCache
from reference_engine.kv.swap import HostTable, SwapSpace
from reference_engine.policies import ContiguousKVManager
from reference_engine.request import Sequence
from reference_engine.scheduler import Scheduler

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kv_shadow

# ShadowError is an AssertionError; KeyError is how a manager answers for a sequence without a table, ValueError how the
# scheduler refuses a step or a branch that does not fit its books, IndexError what a host pool says that is empty.
CAUGHT_BY = (AuditError, AssertionError, KeyError, ValueError, IndexError)
SEEDS = range(24)
PRESSED = 8

Patch = pytest.MonkeyPatch
Mutant = Callable[[Patch], None]


def skip_reference_on_fork(patch: Patch) -> None:
    def fork(self: PagedKVManager, parent: Sequence, child: Sequence) -> None:
        source = self._tables[parent.seq_id]
        self._tables[child.seq_id] = BlockTable(child, list(source.blocks), list(source.registered))

    patch.setattr(PagedKVManager, "fork", fork)


def skip_copy_on_write(patch: Patch) -> None:
    patch.setattr(PagedKVManager, "_writes_shared_block", lambda self, table: False)


def forget_the_copies(patch: Patch) -> None:
    original = PagedKVManager.take_copies
    patch.setattr(PagedKVManager, "take_copies", lambda self: original(self)[:0])


def copy_backwards(patch: Patch) -> None:
    copy = manager_module.BlockCopy
    patch.setattr(manager_module, "BlockCopy", lambda source, target: copy(target, source))


def register_at_allocation(patch: Patch) -> None:
    original = PagedKVManager.allocate

    def allocate(self: PagedKVManager, sequence: Sequence, end: int) -> None:
        original(self, sequence, end)
        computed, sequence.computed = sequence.computed, end
        self.commit(sequence)
        sequence.computed = computed

    patch.setattr(PagedKVManager, "allocate", allocate)


def register_partial_blocks(patch: Patch) -> None:
    def commit(self: PagedKVManager, sequence: Sequence) -> None:
        table = self._tables[sequence.seq_id]
        while len(table.registered) < len(table.blocks) and table.sharable and self.prefix_caching:
            self._share_next_block(table)

    patch.setattr(PagedKVManager, "commit", commit)


def keep_stale_hash_entries(patch: Patch) -> None:
    patch.setattr(PrefixCache, "evict", lambda self, block: [])


def allow_a_full_hit(patch: Patch) -> None:
    def find_prefix(self: Scheduler, entry: Any) -> list[CachedBlock]:
        wanted = self._wants_prompt_rows(entry)
        return self.kv.find_prefix(entry.sequence, entry.rows_returned if wanted else entry.sequence.known)

    patch.setattr(Scheduler, "_find_prefix", find_prefix)


def weak_hash(parent: bytes, tokens: Any) -> bytes:
    return chain_hash(parent, tokens)[:1]


def trust_a_weak_hash(patch: Patch) -> None:
    patch.setattr(CachedBlock, "holds", lambda self, tokens, parent, salt: True)
    patch.setattr(PagedKVManager.__init__, "__defaults__", (weak_hash, 1 << 30))


def verify_tokens_but_not_the_parent(patch: Patch) -> None:
    patch.setattr(CachedBlock, "holds", lambda self, tokens, parent, salt: self.tokens == tokens and self.salt == salt)
    patch.setattr(PagedKVManager.__init__, "__defaults__", (lambda parent, tokens: chain_hash(b"", tokens), 1 << 30))


def ignore_the_salt(patch: Patch) -> None:
    register, find = PrefixCache.register, PrefixCache.find
    patch.setattr(
        PrefixCache, "register", lambda s, block, tokens, parent, salt: register(s, block, tokens, parent, "")
    )
    patch.setattr(PrefixCache, "find", lambda s, tokens, salt, limit, digests: find(s, tokens, "", limit, digests))


def hit_despite_prompt_logprobs(patch: Patch) -> None:
    patch.setattr(Scheduler, "_wants_prompt_rows", lambda self, entry: False)


def revive_without_unlinking(patch: Patch) -> None:
    original = BlockPool._unlink
    state = {"reviving": False}

    def acquire(self: BlockPool, block: int) -> None:
        state["reviving"] = True
        original_acquire(self, block)
        state["reviving"] = False

    original_acquire = BlockPool.acquire
    patch.setattr(BlockPool, "acquire", acquire)
    patch.setattr(BlockPool, "_unlink", lambda self, block: None if state["reviving"] else original(self, block))


def free_twice(patch: Patch) -> None:
    def free(self: PagedKVManager, seq_id: int) -> None:
        table = self._tables.pop(seq_id, None)
        for block in reversed(table.blocks if table else []):
            self.pool.release(block)
            if self.pool.ref_count(block):
                self.pool.release(block)

    patch.setattr(PagedKVManager, "free", free)


def leak_the_last_block(patch: Patch) -> None:
    def free(self: PagedKVManager, seq_id: int) -> None:
        table = self._tables.pop(seq_id, None)
        for block in reversed(table.blocks[:-1] if table else []):
            self.pool.release(block)

    patch.setattr(PagedKVManager, "free", free)


def free_shallow_blocks_first(patch: Patch) -> None:
    patch.setattr(manager_module, "reversed", list, raising=False)


def allocate_one_token_late(patch: Patch) -> None:
    original = PagedKVManager.allocate
    patch.setattr(PagedKVManager, "allocate", lambda self, sequence, end: original(self, sequence, end - 1))


def hand_out_a_stale_table(patch: Patch) -> None:
    def as_tuple(self: BlockTable) -> tuple[int, ...]:
        if self.frozen is None or len(self.frozen) != len(self.blocks):
            self.frozen = tuple(self.blocks)
        return self.frozen

    original = PagedKVManager._share_next_block

    def share(self: PagedKVManager, table: BlockTable) -> None:
        before = table.frozen
        original(self, table)
        table.frozen = before

    patch.setattr(BlockTable, "as_tuple", as_tuple)
    patch.setattr(PagedKVManager, "_share_next_block", share)


def free_a_duplicate_that_the_table_keeps(patch: Patch) -> None:
    original = PagedKVManager._share_next_block

    def share(self: PagedKVManager, table: BlockTable) -> None:
        block = table.blocks[len(table.registered)]
        index = len(table.registered)
        original(self, table)
        if table.blocks[index] != block:
            self.pool.release(table.blocks[index])
            table.blocks[index] = block

    patch.setattr(PagedKVManager, "_share_next_block", share)


def resume_where_it_was_preempted(patch: Patch) -> None:
    original = Scheduler._admit

    def admit(self: Scheduler, draft: Any, entry: Any, prefix: list[CachedBlock]) -> None:
        original(self, draft, entry, prefix)
        sequence = entry.sequence
        if sequence.preemptions:
            sequence.computed = max(sequence.computed, min(entry.most_computed, sequence.known - 1))
            draft.drop(entry)
            self._give(draft, entry, 1)

    patch.setattr(Scheduler, "_admit", admit)


def drop_a_token_on_preemption(patch: Patch) -> None:
    original = Scheduler._preempt

    def preempt(self: Scheduler, draft: Any, victim: Any, beneficiary: Any) -> None:
        original(self, draft, victim, beneficiary)
        if victim.sequence.num_generated:
            victim.sequence.tokens.pop()

    patch.setattr(Scheduler, "_preempt", preempt)


def keep_a_preempted_sequence_in_the_plan(patch: Patch) -> None:
    patch.setattr(scheduler_module._Draft, "drop", lambda self, entry: None)


def keep_the_seats_of_a_preempted_sequence(patch: Patch) -> None:
    original = Scheduler._leave_running

    def leave(self: Scheduler, entry: Any) -> None:
        seats = self._seats
        original(self, entry)
        self._seats = seats if entry.continuations > 1 else self._seats

    patch.setattr(Scheduler, "_leave_running", leave)


def requeue_at_the_back(patch: Patch) -> None:
    original = Scheduler._preempt

    def preempt(self: Scheduler, draft: Any, victim: Any, beneficiary: Any) -> None:
        original(self, draft, victim, beneficiary)
        self._waiting.remove(victim)
        victim.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.push(victim)

    patch.setattr(Scheduler, "_preempt", preempt)


def fork_contiguous_without_copying(patch: Patch) -> None:
    original = ContiguousKVManager.fork

    def fork(self: ContiguousKVManager, parent: Sequence, child: Sequence) -> None:
        original(self, parent, child)
        self._copies.pop()

    patch.setattr(ContiguousKVManager, "fork", fork)


def share_a_contiguous_run(patch: Patch) -> None:
    original = ContiguousKVManager.free

    def free(self: ContiguousKVManager, seq_id: int) -> None:
        self._free_runs += [r.run for owner, r in self._reservations.items() if owner == seq_id]
        original(self, seq_id)

    patch.setattr(ContiguousKVManager, "free", free)


def leak_spare_runs(patch: Patch) -> None:
    original = ContiguousKVManager.free

    def free(self: ContiguousKVManager, seq_id: int) -> None:
        if seq_id in self._reservations:
            self._reservations[seq_id].spare_runs.clear()
        original(self, seq_id)

    patch.setattr(ContiguousKVManager, "free", free)


def swap_in_backwards(patch: Patch) -> None:
    original = SwapSpace.restore

    def restore(self: SwapSpace, seq_id: int, device_blocks: list[int], first: int) -> None:
        table = self._tables[seq_id]
        self._tables[seq_id] = HostTable(table.blocks[:first] + table.blocks[first:][::-1], table.num_tokens)
        original(self, seq_id, device_blocks, first)

    patch.setattr(SwapSpace, "restore", restore)


def forget_to_copy_out(patch: Patch) -> None:
    original = SwapSpace.take
    patch.setattr(SwapSpace, "take", lambda self: ((), original(self)[1]))


def forget_to_copy_in(patch: Patch) -> None:
    original = SwapSpace.take
    patch.setattr(SwapSpace, "take", lambda self: (original(self)[0], ()))


def leak_host_blocks(patch: Patch) -> None:
    patch.setattr(SwapSpace, "drop", lambda self, seq_id: None)


def swap_out_the_target_of_a_copy(patch: Patch) -> None:
    original = PagedKVManager.swap_out

    def swap_out(self: PagedKVManager, sequence: Sequence) -> None:
        pending = [entry for entry in self._copies if entry[0] == sequence.seq_id]
        self._copies = [entry for entry in self._copies if entry[0] != sequence.seq_id]
        original(self, sequence)
        for _, copy in pending:
            self.pool.release(copy.source)

    patch.setattr(PagedKVManager, "swap_out", swap_out)


def resume_a_swapped_sequence_one_token_late(patch: Patch) -> None:
    original = SwapSpace.store

    def store(self: SwapSpace, seq_id: int, device_blocks: list[int], num_tokens: int) -> None:
        original(self, seq_id, device_blocks, num_tokens + 1 if num_tokens % 3 else num_tokens)

    patch.setattr(SwapSpace, "store", store)


def drop_a_block_that_the_window_reaches(patch: Patch) -> None:
    def num_behind(self: PagedKVManager, computed: int) -> int:
        return 0 if self.window is None else max(computed - self.window + 2, 0) // self.block_size

    patch.setattr(PagedKVManager, "_num_behind", num_behind)


def keep_what_is_behind_the_window(patch: Patch) -> None:
    patch.setattr(PagedKVManager, "_drop_behind_window", lambda self, table: None)


def leave_orphans_cached(patch: Patch) -> None:
    def on_evict(self: PagedKVManager, block: int) -> None:
        self.cache.evict(block)

    patch.setattr(PagedKVManager, "_on_evict", on_evict)


def register_under_an_evicted_parent(patch: Patch) -> None:
    original = PagedKVManager._share_next_block

    def share(self: PagedKVManager, table: BlockTable) -> None:
        last = table.registered[-1] if table.registered else None
        if (
            last is None
            or last.live
            or table.blocks[len(table.registered)] < 0
            or not isinstance(self.cache, PrefixCache)
        ):
            original(self, table)
            return
        last.live = True
        original(self, table)
        last.live = False

    patch.setattr(PagedKVManager, "_share_next_block", share)


def compare_only_the_first_block_of_a_radix_edge(patch: Patch) -> None:
    def find(self: RadixCache, tokens: Any, salt: str, limit: int, digests: Any) -> list[CachedBlock]:
        size, found = self.block_size, []
        node = self._roots.get(salt)
        while node is not None and len(found) < limit // size:
            node = node.following.get(tuple(tokens[len(found) * size : (len(found) + 1) * size]))
            found += (node.edge if node else [])[: limit // size - len(found)]
        return found

    patch.setattr(RadixCache, "find", find)


def split_a_radix_edge_without_its_children(patch: Patch) -> None:
    original = RadixCache._split

    def split(self: RadixCache, node: Any, at: int) -> None:
        original(self, node, at)
        next(iter(node.following.values())).following.clear()

    patch.setattr(RadixCache, "_split", split)


def reset_without_telling_the_pool(patch: Patch) -> None:
    patch.setattr(PagedKVManager, "reset_cache", lambda self: len(self.cache.clear()))


def compute_a_beam_whose_token_is_being_chosen(patch: Patch) -> None:
    original = Scheduler.commit

    def commit(self: Scheduler, plan: Any, sampled: Any) -> Any:
        committed = original(self, plan, sampled)
        for entry in self._entries.values():
            entry.parked = entry.parked and entry.sequence.index != 1
        return committed

    patch.setattr(Scheduler, "commit", commit)


def branch_without_dropping_the_losers(patch: Patch) -> None:
    original = Scheduler.finish

    def finish(self: Scheduler, sequence: Sequence, reason: Any) -> None:
        frame = sys._getframe(1)
        if frame.f_code.co_name != "branch":
            original(self, sequence, reason)

    patch.setattr(Scheduler, "finish", finish)


def fork_a_beam_after_its_parent_has_gone_on(patch: Patch) -> None:
    original = Scheduler._fork

    def fork(self: Scheduler, parent: Any, index: int) -> Any:
        child = original(self, parent, index)
        if child.sequence.request.params.beam_width and child.sequence.num_generated:
            child.sequence.tokens.append(child.sequence.tokens[-1])
        return child

    patch.setattr(Scheduler, "_fork", fork)


def queue_a_preempted_beam_at_once(patch: Patch) -> None:
    original = Scheduler._preempt

    def preempt(self: Scheduler, draft: Any, victim: Any, beneficiary: Any) -> None:
        parked, victim.parked = victim.parked, False
        original(self, draft, victim, beneficiary)
        victim.parked = parked

    patch.setattr(Scheduler, "_preempt", preempt)


PAGED: tuple[Mutant, ...] = (
    swap_in_backwards,
    forget_to_copy_out,
    forget_to_copy_in,
    leak_host_blocks,
    swap_out_the_target_of_a_copy,
    resume_a_swapped_sequence_one_token_late,
    drop_a_block_that_the_window_reaches,
    keep_what_is_behind_the_window,
    leave_orphans_cached,
    register_under_an_evicted_parent,
    compare_only_the_first_block_of_a_radix_edge,
    split_a_radix_edge_without_its_children,
    reset_without_telling_the_pool,
    compute_a_beam_whose_token_is_being_chosen,
    branch_without_dropping_the_losers,
    fork_a_beam_after_its_parent_has_gone_on,
    queue_a_preempted_beam_at_once,
    skip_reference_on_fork,
    skip_copy_on_write,
    forget_the_copies,
    copy_backwards,
    register_at_allocation,
    register_partial_blocks,
    keep_stale_hash_entries,
    allow_a_full_hit,
    trust_a_weak_hash,
    verify_tokens_but_not_the_parent,
    ignore_the_salt,
    hit_despite_prompt_logprobs,
    revive_without_unlinking,
    free_twice,
    leak_the_last_block,
    free_shallow_blocks_first,
    allocate_one_token_late,
    hand_out_a_stale_table,
    free_a_duplicate_that_the_table_keeps,
    resume_where_it_was_preempted,
    drop_a_token_on_preemption,
    keep_a_preempted_sequence_in_the_plan,
    keep_the_seats_of_a_preempted_sequence,
    requeue_at_the_back,
)
CONTIGUOUS: tuple[Mutant, ...] = (fork_contiguous_without_copying, share_a_contiguous_run, leak_spare_runs)


# Wrong content, as opposed to wrong books: the shadow must see these without any help of the audit.
WRONG_CONTENT: tuple[Mutant, ...] = (
    skip_copy_on_write,
    forget_the_copies,
    copy_backwards,
    register_at_allocation,
    register_partial_blocks,
    trust_a_weak_hash,
    verify_tokens_but_not_the_parent,
    ignore_the_salt,
    hand_out_a_stale_table,
    resume_where_it_was_preempted,
)


def run_until_caught(
    policy: str, caught_by: tuple[type[Exception], ...] = CAUGHT_BY, audited: bool = True
) -> str | None:
    """What catches the defect, or None if all seeds pass."""
    cases = [(kv_shadow.random_driver, seed, (policy,)) for seed in SEEDS]
    if policy == "paged":
        cases += [(kv_shadow.pressed_driver, seed, ()) for seed in range(PRESSED)]
    for make, seed, arguments in cases:
        driver = make(seed, *arguments)
        driver.audited = audited
        try:
            driver.run(300)
        except caught_by as error:
            return f"seed {seed}, operation {driver.operations}: {type(error).__name__}: {str(error)[:110]}"
    return None


@pytest.mark.parametrize("mutant", PAGED, ids=lambda m: m.__name__)
def test_a_defect_of_the_paged_engine_is_caught(mutant: Mutant, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    caught = run_until_caught("paged")
    assert caught is not None
    print(caught)


@pytest.mark.parametrize("mutant", CONTIGUOUS, ids=lambda m: m.__name__)
def test_a_defect_of_the_contiguous_policy_is_caught(mutant: Mutant, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    caught = run_until_caught("contiguous")
    assert caught is not None
    print(caught)


@pytest.mark.parametrize("mutant", WRONG_CONTENT, ids=lambda m: m.__name__)
def test_the_shadow_alone_sees_wrong_content(mutant: Mutant, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    caught = run_until_caught("paged", caught_by=(kv_shadow.ShadowError,), audited=False)
    assert caught is not None
    print(caught)


@pytest.mark.parametrize("policy", ["paged", "contiguous"])
def test_the_same_seeds_pass_without_a_defect(policy: str) -> None:
    assert run_until_caught(policy) is None
