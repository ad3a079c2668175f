"""Who computes how many tokens in the next step, and what follows from the tokens it sampled.

There is no prefill phase and no decode phase: every step brings sequences closer to ``computed == known`` under one
token budget (``max_num_batched_tokens``).  In order of claim:

1. running sequences that need one token (decodes), most urgent first;
2. running sequences that need more (chunks of prompts, or of what a preempted sequence computes again) and waiting
   ones, most urgent first.  A waiting sequence is admitted if all its known tokens fit beside what running ones still
   need and a watermark.  Under FCFS everyone who runs is ahead of everyone who waits.

When a running sequence finds no free block, the least urgent running sequence loses all of its own: it waits again
with ``computed = 0`` and keeps its tokens.  Preemption by recompute gives its blocks up (those that stay cached are
found again); preemption by swap copies them to host blocks, from where its next admission brings them
back.  A sequence never takes blocks from a more urgent one: it computes what fits, or pauses and keeps its blocks.
So memory never holds up the most urgent sequence, and nothing is admitted while anyone is short of blocks, unless it
is more urgent by priority.

``schedule`` and ``commit`` alternate.  Where a device computes while the host is free, ``schedule_ahead`` plans the step
after the one in flight, if that is a plain one: every sequence decodes one token more and nobody new can start.  Everything
here is plain Python on counters; no tensor, no clock, no randomness.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from reference_engine.admission import check_request
from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.kv.block_pool import AuditError
from reference_engine.kv.ledger import LedgerSnapshot, LedgerTotals
from reference_engine.kv.prefix_cache import CachedBlock
from reference_engine.plan import DRAWN, ScheduledSeq, StepPlan
from reference_engine.policies import make_manager
from reference_engine.request import FinishReason, Request, RequestRejected, Sequence
from reference_engine.waiting import Entry, RankedList, WaitingQueue


class CommittedToken(NamedTuple):
    """One new token: ``token`` was appended to ``sequence``; it was draw ``draw_index`` of its row."""

    sequence: Sequence
    token: int
    draw_index: int


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Counters since the start.  Token counts, except ``steps`` and ``preemptions``.

    ``prefix_queries`` and ``prefix_hits`` count first admissions only, so that a preempted sequence that finds its
    own blocks again does not flatter the hit rate.
    """

    steps: int
    preemptions: int
    recomputed_tokens: int  # computed once more after a preemption
    swaps: int  # preemptions that went to the host pool
    prefix_queries: int
    prefix_hits: int
    prompt_tokens: int  # of sequences whose prompt is complete (computed or found in the cache)
    generation_tokens: int


@dataclass(slots=True)
class _Draft:
    """A step plan in the making."""

    budget: int  # tokens not given away yet
    picked: dict[int, tuple[Entry, int]] = field(default_factory=dict)  # seq_id -> (entry, tokens to compute)
    preempted: list[int] = field(default_factory=list)
    short_of_blocks: bool = False  # a running sequence computes less than the budget would allow
    admits_after_preemption: bool = False  # those preempted only held blocks, so that others can start

    def pick(self, entry: Entry, num_tokens: int) -> None:
        self.picked[entry.sequence.seq_id] = (entry, num_tokens)
        self.budget -= num_tokens

    def drop(self, entry: Entry) -> None:
        picked = self.picked.pop(entry.sequence.seq_id, None)
        if picked is not None:
            self.budget += picked[1]


class Scheduler:
    """Queue, running set and step plans of one engine.  Not thread-safe: one loop calls it."""

    def __init__(self, config: SchedulerConfig, cache: CacheConfig) -> None:
        self.config = config
        self.kv = make_manager(config, cache)
        self.ledger_totals = LedgerTotals()
        self._caching = cache.prefix_caching
        self._watermark = math.ceil(config.watermark * cache.num_blocks)
        self._entries: dict[int, Entry] = {}
        self._sequences: dict[int, Sequence] = {}
        self._by_request: dict[str, list[Entry]] = {}
        self._waiting = WaitingQueue()
        self._running = RankedList()
        self._seats = 0  # sequences the running ones stand for
        self._next_seq_id = 0
        self._arrivals = 0
        self._in_flight: list[StepPlan] = []  # at most two: a step and the one planned ahead of its tokens
        self._steps = self._preemptions = self._recomputed = self._swaps = 0
        self._prefix_queries = self._prefix_hits = self._prompt_tokens = self._generation_tokens = 0

    # ---------------------------------------------------------------- requests

    def add(self, request: Request) -> Sequence:
        """Queue a request; returns its first sequence (the other n - 1 fork off it when its prompt is computed).

        Raises RequestRejected: 400 if the request is malformed or can never fit, 429 if the queue is full.
        """
        if request.request_id in self._by_request:
            raise RequestRejected(f"request id {request.request_id!r} is in use", param="request_id")
        check_request(request, self.config)
        self.kv.check_fits(request)
        if len(self._waiting) >= self.config.max_waiting:
            raise RequestRejected(
                f"the queue is full ({self.config.max_waiting} sequences wait); try again later", status=429
            )
        sequence = Sequence(self._new_seq_id(), request, tokens=list(request.prompt))
        priority = request.priority if self.config.order == "priority" else 0
        entry = Entry(sequence, self._arrivals, priority, continuations=request.params.num_sequences)
        self._arrivals += 1
        self._register(entry)
        self._waiting.push(entry)
        return sequence

    def abort(self, request_id: str) -> tuple[Sequence, ...]:
        """End every unfinished sequence of a request and release its blocks; () if there is none.

        Allowed while a step is in flight: ``commit`` skips what was aborted meanwhile.
        """
        sequences = tuple(entry.sequence for entry in self._by_request.get(request_id, ()))
        for sequence in sequences:
            self.finish(sequence, FinishReason.ABORT)
        return sequences

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End one sequence and release its blocks; nothing happens if it has ended before."""
        entry = self._entries.pop(sequence.seq_id, None)
        if entry is None:
            return
        del self._sequences[sequence.seq_id]
        siblings = self._by_request[sequence.request.request_id]
        siblings.remove(entry)
        if not siblings:
            del self._by_request[sequence.request.request_id]
        if entry.running:
            self._leave_running(entry)
        else:
            if not entry.parked:
                self._waiting.remove(entry)
            self.kv.free(sequence.seq_id)  # it may have host blocks
        sequence.finish_reason = reason

    @property
    def sequences(self) -> Mapping[int, Sequence]:
        """Unfinished sequences by seq_id; a read-only view."""
        return MappingProxyType(self._sequences)

    @property
    def has_work(self) -> bool:
        return bool(self._entries)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_unfinished(self) -> int:
        return len(self._entries)

    # ---------------------------------------------------------------- steps

    def schedule(self) -> StepPlan:
        """Plan the next step; empty only if there is no work.  Commit a plan before asking for the next."""
        if self._in_flight:
            raise RuntimeError(f"step {self._in_flight[0].step} was not committed")
        draft = _Draft(self.config.max_num_batched_tokens)
        self._schedule_running(draft)
        self._schedule_waiting(draft)
        while self._entries and not draft.picked and self._preempt_parked(draft):
            self._schedule_running(draft)
            self._schedule_waiting(draft)
        if self._entries and not draft.picked:
            raise RuntimeError("no sequence can advance: one has reached prompt + max_tokens and was not finished")
        return self._emit(draft)

    def schedule_ahead(self) -> StepPlan | None:
        """Plan the step after the one in flight before its tokens are known; None where that needs them or more.

        Every sequence in flight decodes one token more, and that token's id is ``DRAWN`` (``StepPlan.with_drawn`` puts
        it in).  A sequence that ends with the token in flight is planned in vain; ``commit`` skips it.  Nothing is
        preempted and nobody is admitted, so blocks that are in use on the device are given to nobody else meanwhile.
        """
        if len(self._in_flight) != 1 or self._may_start_another():
            return None
        plan = self._in_flight[0]
        entries = [self._entries.get(part.seq_id) for part in plan.seqs]
        if len(self._running) != sum(entry is not None for entry in entries):
            return None
        going_on: list[Entry] = []
        for entry, part in zip(entries, plan.seqs, strict=True):
            if entry is None:
                continue
            sequence = entry.sequence
            if (
                sequence.request.params.beam_width
                or part.num_samples != 1
                or part.prompt_logprobs
                or part.seq_len != sequence.known
            ):
                return None
            if self._is_last(sequence):
                continue
            if not self.kv.can_allocate(sequence, part.seq_len + 1):
                return None
            self.kv.allocate(sequence, part.seq_len + 1)
            going_on.append(entry)
        if not going_on:
            return None
        for entry in going_on:
            entry.sequence.scheduled += 1
        parts = tuple(
            ScheduledSeq(e.sequence.seq_id, e.sequence.known, (DRAWN,), self.kv.block_table(e.sequence.seq_id), 1)
            for e in going_on
        )
        ahead = StepPlan(self._steps, parts, self.kv.take_copies())
        self._steps += 1
        self._in_flight.append(ahead)
        return ahead

    def _may_start_another(self) -> bool:
        """Whether ``schedule`` would admit the head of the queue now, or displace someone for it."""
        entry = self._waiting.head()
        if entry is None:
            return False
        if self.kv.preempts and len(self._running) and entry.may_displace(self._running.last()):
            return True
        has_seats = self._seats + entry.continuations <= self.config.max_num_seqs
        return has_seats and self._fits(entry, self._find_prefix(entry))

    def _is_last(self, sequence: Sequence) -> bool:
        """Whether the token in flight is certain to end the sequence."""
        length = sequence.known + 1
        return length - sequence.prompt_len >= sequence.request.params.max_tokens or length >= self.config.max_model_len

    def commit(self, plan: StepPlan, sampled: Mapping[int, SequenceOf[int]]) -> tuple[CommittedToken, ...]:
        """Book a computed step.  ``sampled[seq_id]`` holds ``num_samples`` tokens for each sequence that samples.

        Appends the tokens, makes computed blocks shareable, forks the other continuations of a request off its first
        (children join the running ones), and ticks the ledger.  Sequences that ended while the step was in flight are
        skipped.  To give up a step that failed, abort its requests and commit it with no samples.  Raises ValueError
        for a plan that is not in flight or a wrong number of samples.
        """
        if plan.is_empty:
            return ()
        if not self._in_flight or plan.step != self._in_flight[0].step:
            raise ValueError(f"step {plan.step} is not in flight, or not the first that is")
        for part in plan.seqs:
            if (
                part.num_samples
                and part.seq_id in self._entries
                and not self._entries[part.seq_id].sequence.request.params.beam_width
                and len(sampled.get(part.seq_id, ())) != part.num_samples
            ):
                raise ValueError(f"sequence {part.seq_id} needs {part.num_samples} sampled tokens")
        self._in_flight.pop(0)
        committed: list[CommittedToken] = []
        for part in plan.seqs:
            entry = self._entries.get(part.seq_id)
            if entry is None:
                continue
            self._advance(entry, part)
            if part.num_samples and entry.sequence.request.params.beam_width:
                entry.parked = True
                if not entry.sequence.num_generated:
                    self._prompt_tokens += entry.sequence.prompt_len
            elif part.num_samples:
                self._append(entry, sampled[part.seq_id], committed)
        snapshot = self.kv.ledger()
        snapshot.check()
        self.ledger_totals.tick(snapshot)
        return tuple(committed)

    def branch(self, request_id: str, choices: SequenceOf[tuple[int, int]]) -> tuple[Sequence, ...]:
        """Go on with the beams ``choices``: (seq_id of the parent, next token) of each; the sequences, in that order.

        Only when all sequences of the request are parked.  The first child of a parent is the parent itself; others fork
        off it and share its blocks, or wait to compute its tokens again where no seat or no blocks are left.  Parents
        without a child are dropped.
        """
        entries = {entry.sequence.seq_id: entry for entry in self._by_request[request_id]}
        if not choices or not all(entry.parked for entry in entries.values()):
            raise ValueError(f"request {request_id!r} has beams whose next token is not being chosen")
        parents = {seq_id: entries[seq_id] for seq_id, _ in choices}
        for seq_id, entry in entries.items():
            if seq_id not in parents:
                self.finish(entry.sequence, FinishReason.STOP)
            elif entry.running:
                self._seats -= entry.continuations - 1
            if seq_id in parents:
                entry.continuations = 1
        taken = {entry.sequence.index for entry in parents.values()}
        unused = (index for index in range(len(choices) + len(taken)) if index not in taken)
        going_on: list[Entry] = []
        for seq_id, _ in choices:
            parent = parents[seq_id]
            going_on.append(parent if parent.parked else self._branch_off(parent, next(unused)))
            parent.parked = False
        for entry, (_, token) in zip(going_on, choices, strict=True):
            entry.sequence.tokens.append(token)
            if not entry.running:
                self._waiting.push(entry)
        self._keep_seats(going_on)
        self._generation_tokens += len(choices)
        return tuple(entry.sequence for entry in going_on)

    def _keep_seats(self, beams: list[Entry]) -> None:
        """Where fewer beams go on than the request has seats for, one of them keeps the others' seats."""
        keeper = next((entry for entry in beams if entry.running), None)
        spare = keeper.sequence.request.params.beam_width - len(beams) if keeper else 0
        spare = min(spare, self.config.max_num_seqs - self._seats)
        if keeper is not None and spare > 0:
            keeper.continuations += spare
            self._seats += spare

    # ---------------------------------------------------------------- looking in

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            steps=self._steps,
            preemptions=self._preemptions,
            recomputed_tokens=self._recomputed,
            swaps=self._swaps,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
        )

    def ledger(self) -> LedgerSnapshot:
        """What every KV slot is used for right now."""
        return self.kv.ledger()

    def block_table(self, seq_id: int) -> tuple[int, ...]:
        """Physical blocks of an unfinished sequence in position order; () while it waits.  Raises KeyError."""
        return self.kv.block_table(seq_id) if self._entries[seq_id].running else ()

    def audit(self) -> None:
        """Check every invariant of the queues and of the memory policy; O(pool + tokens held).  Raises AuditError."""
        running = self._running.snapshot()
        if self.kv.holders != {entry.sequence.seq_id for entry in running}:
            raise AuditError(f"sequences {sorted(self.kv.holders)} hold memory, but others run: {running}")
        if self._seats != sum(entry.continuations for entry in running):
            raise AuditError(
                f"{self._seats} seats are taken, the running sequences stand for another number: {running}"
            )
        aside = sum(entry.parked and not entry.running for entry in self._entries.values())
        if len(running) + len(self._waiting) + aside != len(self._entries):
            raise AuditError(f"{len(self._entries)} sequences, {len(running)} run and {len(self._waiting)} wait")
        for entry in self._entries.values():
            sequence = entry.sequence
            if not entry.running and (sequence.computed or sequence.scheduled):
                raise AuditError(f"sequence {sequence.seq_id} waits with {sequence.computed} tokens computed")
            if entry.parked and sequence.scheduled:
                raise AuditError(f"sequence {sequence.seq_id} computes, though its next token is being chosen")
            drawn_ahead = len(self._in_flight[1:])
            if sequence.computed + sequence.scheduled > sequence.known + drawn_ahead:
                raise AuditError(f"sequence {sequence.seq_id} has computed more tokens than are known")
        self.kv.audit()

    def reset_cache(self) -> int:
        """Forget all cached prefixes; running sequences keep their blocks.  Returns how many blocks were forgotten."""
        return self.kv.reset_cache()

    # ---------------------------------------------------------------- admission of requests

    def _new_seq_id(self) -> int:
        self._next_seq_id += 1
        return self._next_seq_id - 1

    def _register(self, entry: Entry) -> None:
        sequence = entry.sequence
        self._entries[sequence.seq_id] = entry
        self._sequences[sequence.seq_id] = sequence
        self._by_request.setdefault(sequence.request.request_id, []).append(entry)

    # ---------------------------------------------------------------- making a plan

    def _schedule_running(self, draft: _Draft) -> None:
        longer: list[Entry] = []
        for entry in self._running.snapshot():
            if not entry.running or entry.parked:  # evicted a moment ago by a more urgent one, or nothing to compute
                continue
            sequence = entry.sequence
            if sequence.is_prefilling:
                longer.append(entry)
            elif draft.budget:
                self._give(draft, entry, 1)
        for entry in longer:
            self._schedule_waiting(draft, before=entry)
            if entry.running and draft.budget:
                self._give(draft, entry, min(entry.sequence.known - entry.sequence.computed, draft.budget))

    def _give(self, draft: _Draft, entry: Entry, num_tokens: int) -> None:
        """Let a running sequence compute up to ``num_tokens``, at the expense of less urgent ones if need be."""
        sequence = entry.sequence
        while not self.kv.can_allocate(sequence, sequence.computed + num_tokens):
            victim = self._running.last()
            if victim is entry or not self.kv.preempts:
                draft.short_of_blocks = True
                num_tokens = min(num_tokens, self.kv.num_writable(sequence))
                if num_tokens <= 0:
                    return
                break
            self._preempt(draft, victim, entry)
        self.kv.allocate(sequence, sequence.computed + num_tokens)
        draft.pick(entry, num_tokens)

    def _preempt(self, draft: _Draft, victim: Entry, beneficiary: Entry) -> None:
        draft.drop(victim)
        draft.preempted.append(victim.sequence.seq_id)
        self._leave_running(victim, swap=self._prefers_swap(victim.sequence))
        victim.sequence.computed = 0
        victim.sequence.preemptions += 1
        victim.losses += beneficiary.age > victim.age
        self._preemptions += 1
        if not victim.parked:
            self._waiting.push(victim)

    def _preempt_parked(self, draft: _Draft) -> bool:
        """Nobody can advance: take the blocks of the least urgent beam that only holds them.  False if there is none."""
        parked = [entry for entry in self._running.snapshot() if entry.parked]
        if not parked or not self.kv.preempts:
            return False
        self._preempt(draft, parked[-1], parked[-1])
        draft.short_of_blocks = False
        draft.admits_after_preemption = True
        return True

    def _prefers_swap(self, sequence: Sequence) -> bool:
        """Whether a victim goes to the host pool; see ``PreemptionCost`` for the rule of ``auto``."""
        if self.config.preemption == "recompute" or not self.kv.can_swap_out(sequence):
            return False
        cost = self.config.preemption_cost
        if self.config.preemption == "swap" or cost is None:
            return True
        blocks, tokens = self.kv.loss(sequence)
        return 2 * blocks * cost.swap_block < tokens * cost.recompute_token

    def _leave_running(self, entry: Entry, swap: bool = False) -> None:
        """The one place where a sequence gives up its device blocks and seats."""
        self._running.remove(entry)
        entry.running = False
        entry.sequence.scheduled = 0
        self._seats -= entry.continuations
        if swap:
            self._swaps += 1
            self.kv.swap_out(entry.sequence)
        else:
            self.kv.free(entry.sequence.seq_id)

    def _schedule_waiting(self, draft: _Draft, before: Entry | None = None) -> None:
        """Admit from the queue, all that outrank ``before`` or all, until one of them does not fit."""
        memory_is_short = draft.short_of_blocks or (bool(draft.preempted) and not draft.admits_after_preemption)
        while draft.budget and (entry := self._waiting.head()) is not None:
            if before is not None and entry.rank > before.rank:
                return
            if not memory_is_short and self._seats + entry.continuations <= self.config.max_num_seqs:
                prefix = self._find_prefix(entry)
                if self._fits(entry, prefix):
                    self._admit(draft, entry, prefix)
                    continue
            self._displace_for(draft, entry)
            return

    def _find_prefix(self, entry: Entry) -> list[CachedBlock]:
        """Cached blocks this sequence can start from.  At least one token is always left to compute."""
        sequence = entry.sequence
        limit = sequence.known - 1
        if self._wants_prompt_rows(entry):
            limit = min(limit, entry.rows_returned)
        return self.kv.find_prefix(sequence, limit)

    def _wants_prompt_rows(self, entry: Entry) -> bool:
        """Row p of the logits scores prompt token p + 1, so the rows of all but the last prompt position are wanted."""
        request = entry.sequence.request
        return request.params.prompt_logprobs is not None and entry.rows_returned < len(request.prompt) - 1

    def _fits(self, entry: Entry, prefix: list[CachedBlock]) -> bool:
        # On a full pool, at every step, the sum over those who run is not needed to see that there is no room.
        least = self._least_headroom(entry) if len(self._running) else 0
        return self.kv.can_admit(entry.sequence, prefix, entry.continuations, least) and self.kv.can_admit(
            entry.sequence, prefix, entry.continuations, self._headroom(entry, without=[])
        )

    def _least_headroom(self, entry: Entry) -> int:
        """The part of ``_headroom`` beside others that does not depend on them."""
        return self._watermark + entry.continuations - 1

    def _headroom(self, entry: Entry, without: list[Entry]) -> int:
        """Blocks to leave free beside ``entry``'s own: what the others running (but ``without``) still need for tokens
        they know, the watermark, and one for each continuation that will fork.  Nothing if it would run alone: all that
        waits can run alone.
        """
        others = [other for other in self._running.snapshot() if other not in without]
        if not others:
            return 0
        return self._least_headroom(entry) + sum(self.kv.blocks_missing(o.sequence) for o in others)

    def _displace_for(self, draft: _Draft, entry: Entry) -> None:
        """Admit ``entry`` in place of running sequences of less urgent priority, if that is certain to work."""
        if not self.kv.preempts or not len(self._running) or not entry.may_displace(self._running.last()):
            return
        prefix = self._find_prefix(entry)
        victims: list[Entry] = []
        seats = self._seats + entry.continuations
        freed = 0
        for victim in reversed(self._running.snapshot()):
            if not entry.may_displace(victim):
                return
            victims.append(victim)
            seats -= victim.continuations
            freed += self.kv.blocks_exclusive(victim.sequence, besides=prefix)
            headroom = self._headroom(entry, without=victims) - freed
            if seats <= self.config.max_num_seqs and self.kv.can_admit(
                entry.sequence, prefix, entry.continuations, headroom
            ):
                for displaced in victims:
                    self._preempt(draft, displaced, entry)
                self._admit(draft, entry, prefix)
                return

    def _admit(self, draft: _Draft, entry: Entry, prefix: list[CachedBlock]) -> None:
        sequence = entry.sequence
        sequence.computed = self.kv.admit(sequence, prefix, entry.continuations)
        if not entry.admitted:
            entry.admitted = True
            sequence.cached = sequence.computed
            if self._caching and sequence.request.params.prompt_logprobs is None:
                self._prefix_queries += sequence.known
                self._prefix_hits += sequence.cached
        self._waiting.pop_admitted(entry)
        entry.running = True
        self._running.add(entry)
        self._seats += entry.continuations
        num_tokens = min(sequence.known - sequence.computed, draft.budget, self.kv.num_writable(sequence))
        self.kv.allocate(sequence, sequence.computed + num_tokens)
        draft.pick(entry, num_tokens)

    def _emit(self, draft: _Draft) -> StepPlan:
        parts = []
        for entry, num_tokens in draft.picked.values():
            sequence = entry.sequence
            start, end = sequence.computed, sequence.computed + num_tokens
            sequence.scheduled = num_tokens
            parts.append(
                ScheduledSeq(
                    seq_id=sequence.seq_id,
                    start=start,
                    tokens=(sequence.tokens[start],) if num_tokens == 1 else tuple(sequence.tokens[start:end]),
                    block_table=self.kv.block_table(sequence.seq_id),
                    num_samples=self._num_samples(entry) if end == sequence.known else 0,
                    prompt_logprobs=self._wants_prompt_rows(entry) and end > entry.rows_returned,
                )
            )
        swap_out, swap_in = self.kv.take_swaps()
        plan = StepPlan(self._steps, tuple(parts), self.kv.take_copies(), tuple(draft.preempted), swap_out, swap_in)
        if parts:
            self._steps += 1
            self._in_flight.append(plan)
        return plan

    def _num_samples(self, entry: Entry) -> int:
        """Tokens drawn from the last known token's logits; for a beam 1: its best continuations are compared later."""
        return 1 if entry.sequence.request.params.beam_width else entry.continuations

    # ---------------------------------------------------------------- booking a step

    def _advance(self, entry: Entry, part: ScheduledSeq) -> None:
        sequence = entry.sequence
        end = sequence.computed = part.seq_len
        sequence.scheduled -= part.query_len
        if part.start < entry.most_computed:
            self._recomputed += min(end, entry.most_computed) - part.start
        if end > entry.most_computed:
            entry.most_computed = end
        if part.prompt_logprobs:
            entry.rows_returned = max(entry.rows_returned, min(end, sequence.prompt_len))
        self.kv.commit(sequence)

    def _append(self, entry: Entry, tokens: SequenceOf[int], committed: list[CommittedToken]) -> None:
        sequence = entry.sequence
        if not sequence.num_generated and sequence.index == 0:
            self._prompt_tokens += sequence.prompt_len
        if len(tokens) == 1 and entry.continuations == 1:  # all decodes
            sequence.tokens.append(tokens[0])
            committed.append(CommittedToken(sequence, tokens[0], 0))
            self._generation_tokens += 1
            return
        children = [self._fork(entry, index) for index in range(1, len(tokens))]
        if children:
            self._seats -= entry.continuations - 1
            entry.continuations = 1
        for draw, (owner, token) in enumerate(zip((entry, *children), tokens, strict=True)):
            owner.sequence.tokens.append(token)
            committed.append(CommittedToken(owner.sequence, token, draw))
        self._generation_tokens += len(tokens)

    def _branch_off(self, parent: Entry, index: int) -> Entry:
        """Another child of a beam: a fork where the parent has blocks and a seat is free, else one that starts over."""
        source = parent.sequence
        if parent.running and self._seats < self.config.max_num_seqs and self.kv.can_fork(source):
            return self._fork(parent, index)
        sequence = Sequence(
            self._new_seq_id(), source.request, index=index, tokens=list(source.tokens), cached=source.cached
        )
        child = Entry(sequence, parent.arrival, parent.priority, promoted=parent.promoted, admitted=True)
        child.most_computed = parent.most_computed
        child.rows_returned = source.prompt_len
        self._register(child)
        return child

    def _fork(self, parent: Entry, index: int) -> Entry:
        """A continuation that shares the parent's computed tokens; it takes one of the seats kept for it."""
        source = parent.sequence
        sequence = Sequence(
            self._new_seq_id(),
            source.request,
            index=index,
            tokens=list(source.tokens),
            computed=source.computed,
            cached=source.cached,
        )
        child = Entry(sequence, parent.arrival, parent.priority, promoted=parent.promoted, running=True, admitted=True)
        child.most_computed = source.computed
        child.rows_returned = source.prompt_len
        self.kv.fork(source, sequence)
        self._register(child)
        self._running.add(child)
        self._seats += 1
        return child
