"""The engine: add / abort / step.

::

    add ---> scheduler.schedule -> StepPlan -> runner.execute -> sampler -> scheduler.commit -> continuation -> outputs
    abort ->      ^                                                                                  |
                  +---------------------------- finish, free the blocks ----------------------------+

With ``overlap`` (for a device that computes while the host is free) a plain next step is planned while the device
computes this one, and launched as soon as this one's tokens are known; only then are these booked, turned into text and
handed out:

    device   | step 1 .......... | step 2 .......... | step 3 ...
    host     plan 2, wait      -> launch 2, commit 1, plan 3, wait -> launch 3, commit 2 ...

Not thread-safe: one thread calls everything (in the server, the engine loop's).  A fault that belongs to one request
(logits that are not finite, logprobs that are not complete) ends that request with an error; a step that fails as a
whole ends the requests it contained.  The engine itself goes on.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from reference_engine.beam import BeamSearch, Finished
from reference_engine.beam_rows import best_tokens
from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.continuation import Continuation
from reference_engine.detokenizer import TokenTable
from reference_engine.logprobs import PromptScores
from reference_engine.outputs import EngineStats, EngineTimes, PromptLogprobs, SequenceOutput, TokenLogprob
from reference_engine.penalties import ending_ids
from reference_engine.plan import StepPlan
from reference_engine.plan_log import PlanLog, Runner, StepLogits, describe_holders
from reference_engine.request import FinishReason, Request, RequestRejected, Sequence
from reference_engine.sampler import FAULT, Draw, Sampled, Sampler
from reference_engine.scheduler import Scheduler

logger = logging.getLogger(__name__)

NOT_FINITE = "the model's logits for the next token are not finite"


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What admission checks against, and what statistics need to know about the model."""

    vocab_size: int
    eos_token_ids: tuple[int, ...]
    kv_bytes_per_token: int


@dataclass(slots=True, eq=False)
class _Job:
    """What the engine keeps of a request while it runs."""

    request: Request
    ends: frozenset[int]  # token ids that end a continuation
    show_special_tokens: bool
    open: int  # continuations not finished
    continuations: dict[int, Continuation] = field(default_factory=dict)
    beam: BeamSearch | None = None
    scores: PromptScores | None = None
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step that was handed to the device, or the error that this raised."""

    plan: StepPlan
    logits: StepLogits | Exception

    def result(self) -> StepLogits:
        if isinstance(self.logits, Exception):
            raise self.logits
        return self.logits


class Engine:
    """Serves requests from one model on one device."""

    def __init__(
        self,
        runner: Runner,
        limits: EngineLimits,
        scheduler_config: SchedulerConfig,
        cache_config: CacheConfig,
        tokens: TokenTable,
        *,
        plan_log: PlanLog | None = None,
        audit_every: int = 0,
        overlap: bool = False,
    ) -> None:
        """``audit_every`` N > 0: check all invariants of the KV pool after each N-th step (raises AuditError).

        ``overlap``: launch plain steps before the last one is booked (see the module's page); the texts are the same.
        """
        self.scheduler = Scheduler(scheduler_config, cache_config)
        self.limits = limits
        self.scheduler_config = scheduler_config
        self.cache_config = cache_config
        self.times = EngineTimes()
        self._runner = runner
        self._sampler = Sampler(limits.eos_token_ids)
        self._tokens = tokens
        self._plan_log = plan_log
        self._audit_every = audit_every
        self._overlap = overlap
        self._launched: _Launched | None = None  # the step ahead
        self._jobs: dict[str, _Job] = {}
        self._steps = 0

    @property
    def runner(self) -> Runner:
        """Who executes the plans."""
        return self._runner

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._launched is not None

    def add(self, request: Request, *, show_special_tokens: bool = False) -> None:
        """Admit a request to the queue.  Raises RequestRejected, and then has changed nothing."""
        self._check(request)
        if request.params.seed is None:
            request.params = replace(request.params, seed=secrets.randbits(63))
        if not request.arrival_ns:
            request.arrival_ns = time.monotonic_ns()
        self.scheduler.add(request)
        params = request.params
        self._jobs[request.request_id] = _Job(
            request=request,
            ends=frozenset(ending_ids(params, self.limits.eos_token_ids)),
            show_special_tokens=show_special_tokens,
            open=params.n,
            beam=BeamSearch(params, frozenset(ending_ids(params, self.limits.eos_token_ids)))
            if params.beam_width
            else None,
            scores=None
            if params.prompt_logprobs is None
            else PromptScores(request.prompt, min(params.prompt_logprobs, self.limits.vocab_size)),
        )

    def abort(self, request_id: str) -> bool:
        """Stop a request and free its blocks.  False if it is not known (any more)."""
        if request_id not in self._jobs:
            return False
        self._drop(request_id, FinishReason.ABORT.value)
        return True

    def step(self) -> list[SequenceOutput]:
        """Plan and run one step; the new tokens of every sequence that got one."""
        return self.run(self.plan())

    def plan(self) -> StepPlan:
        """The next step; ``run`` it before anything else is planned."""
        return self.scheduler.schedule() if self._launched is None else self._launched.plan

    def run(self, plan: StepPlan) -> list[SequenceOutput]:
        """Compute, sample and commit a planned step."""
        if plan.is_empty:
            return []
        started = time.perf_counter()
        launched, self._launched = self._launched or self._launch(plan), None
        ahead = self.scheduler.schedule_ahead() if self._overlap else None
        try:
            logits = launched.result()
            self._score_prompts(plan, logits.prompt)
            draws = self._draws(plan)
            sampled = self._sampler.sample(logits.sampled, draws)
            beams = self._offer_beams(plan, logits.sampled)
        except Exception as error:
            logger.exception("step %d failed; its requests end with an error", plan.step)
            outputs = self._fail_step(plan, f"the engine's step failed: {type(error).__name__}: {error}")
            if ahead is not None:  # all of its sequences have just failed
                self.scheduler.commit(ahead, {})
            return outputs
        if ahead is not None:
            self._launched = self._launch(ahead.with_drawn(_inputs(draws, sampled)))
        outputs = self._commit(plan, draws, sampled)
        for request_id in beams:
            outputs += self._decide_beam(request_id)
        self._steps += 1
        if self._audit_every and self._steps % self._audit_every == 0:
            self.scheduler.audit()
        self.times.step.observe(time.perf_counter() - started)
        return outputs

    def stats(self) -> EngineStats:
        """Gauges and counters of this moment."""
        scheduler, ledger = self.scheduler, self.scheduler.ledger()
        counters = scheduler.stats()
        return EngineStats(
            {
                "requests_running": scheduler.num_running,
                "requests_waiting": scheduler.num_waiting,
                "preemptions_total": counters.preemptions,
                "preemptions_swapped_total": counters.swaps,
                "recomputed_tokens_total": counters.recomputed_tokens,
                **self._swap_stats(),
                "kv_usage": ledger.allocated / ledger.total,
                "kv_slots_reserved": ledger.total,
                "kv_slots_allocated": ledger.allocated,
                "kv_slots_live": ledger.live,
                "kv_slots_evictable": ledger.evictable,
                "kv_slots_logical": ledger.logical,
                "ledger_token_states": ledger.token_states,
                "ledger_reserved": ledger.reserved,
                "ledger_internal": ledger.internal,
                "ledger_external": ledger.external,
                "ledger_cached": ledger.cached,
                "ledger_free": ledger.free,
                "kv_block_size": self.cache_config.block_size,
                "kv_pool_bytes": self.cache_config.num_slots * self.limits.kv_bytes_per_token,
                "prompt_tokens_total": counters.prompt_tokens,
                "generation_tokens_total": counters.generation_tokens,
                "prefix_cache_queries_total": counters.prefix_queries,
                "prefix_cache_hits_total": counters.prefix_hits,
            }
        )

    def reset_cache(self) -> int:
        """Forget all cached prefixes; what runs goes on.  Returns how many blocks were forgotten."""
        return self.scheduler.reset_cache()

    def _swap_stats(self) -> dict[str, float]:
        host = self.scheduler.kv.host_usage()
        block_bytes = self.cache_config.block_size * self.limits.kv_bytes_per_token
        return {
            "kv_host_blocks": host.total,
            "kv_host_blocks_used": host.used,
            "swap_out_blocks_total": host.blocks_out,
            "swap_in_blocks_total": host.blocks_in,
            "swap_out_bytes_total": host.blocks_out * block_bytes,
            "swap_in_bytes_total": host.blocks_in * block_bytes,
        }

    def _check(self, request: Request) -> None:
        """What the scheduler cannot know: which token ids exist."""
        params, vocab = request.params, self.limits.vocab_size
        for name, ids in (
            ("prompt", request.prompt),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", tuple(token for token, _ in params.logit_bias)),
        ):
            if ids and not 0 <= min(ids) <= max(ids) < vocab:
                wrong = next(token for token in ids if not 0 <= token < vocab)
                raise RequestRejected(
                    f"{name}: token id {wrong} is not in the vocabulary (0 to {vocab - 1})", param=name
                )

    def _launch(self, plan: StepPlan) -> _Launched:
        """Log a step and hand it to the device."""
        try:
            if self._plan_log is not None:
                self._plan_log.write(plan, describe_holders(plan, self.scheduler, self.cache_config))
            return _Launched(plan, self._runner.execute(plan))
        except Exception as error:
            return _Launched(plan, error)

    def _draws(self, plan: StepPlan) -> list[Draw]:
        """The tokens to draw, row by row of the sampled logits: n of them where n continuations fork off a prompt.

        Rows of sequences that have ended since the step was launched are left out.
        """
        draws: list[Draw] = []
        sampling = (scheduled for scheduled in plan.seqs if scheduled.num_samples)
        for row, scheduled in enumerate(sampling):
            sequence = self.scheduler.sequences.get(scheduled.seq_id)
            if sequence is None or sequence.request.params.beam_width:
                continue
            draws.extend(Draw(row, sequence, sequence.index + number) for number in range(scheduled.num_samples))
        return draws

    def _commit(self, plan: StepPlan, draws: list[Draw], sampled: Sampled) -> list[SequenceOutput]:
        outputs: list[SequenceOutput] = []
        tokens: dict[int, list[int]] = {}
        logprobs: dict[tuple[str, int], TokenLogprob | None] = {}
        faulty: dict[str, str] = {}
        for draw, token, logprob in zip(draws, sampled.tokens, sampled.logprobs, strict=True):
            tokens.setdefault(draw.sequence.seq_id, []).append(token)
            if token == FAULT:
                faulty[draw.sequence.request.request_id] = _reason_of_fault(draw.sequence)
            if logprob is not None:
                logprobs[draw.sequence.request.request_id, draw.index] = logprob
        # Before the commit, so that K/V which may hold NaN is never offered to other requests.
        outputs.extend(self._fail(name, reason) for name, reason in faulty.items())
        now = time.monotonic_ns()
        for committed in self.scheduler.commit(plan, tokens):
            sequence = committed.sequence
            job = self._jobs.get(sequence.request.request_id)
            if job is None:  # failed with an earlier continuation of the same request
                continue
            if job.scores is not None and not self._complete_scores(job):
                outputs.append(self._fail(sequence.request.request_id, "the prompt's logprobs are not complete"))
                continue
            logprob = logprobs.get((sequence.request.request_id, sequence.index))
            outputs.append(self._accept(job, sequence, logprob, now))
        return outputs

    def _offer_beams(self, plan: StepPlan, logits: Tensor) -> list[str]:
        """Give each beam of the step its best next tokens; the requests they belong to."""
        rows: list[int] = []
        offers: list[tuple[BeamSearch, Sequence]] = []
        for row, scheduled in enumerate(part for part in plan.seqs if part.num_samples):
            sequence = self.scheduler.sequences.get(scheduled.seq_id)
            job = self._jobs.get(sequence.request.request_id) if sequence is not None else None
            if sequence is not None and job is not None and job.beam is not None:
                rows.append(row)
                offers.append((job.beam, sequence))
        if not rows:
            return []
        counts = [beam.candidates_per_row for beam, _ in offers]
        tops = [beam.params.logprobs or 0 for beam, _ in offers]
        for (beam, sequence), best in zip(offers, best_tokens(logits, rows, counts, tops), strict=True):
            beam.offer(sequence.seq_id, best)
        return list(dict.fromkeys(sequence.request.request_id for _, sequence in offers))

    def _decide_beam(self, request_id: str) -> list[SequenceOutput]:
        """Branch a beam search whose hypotheses have all been extended; its answers once it is over."""
        job = self._jobs.get(request_id)
        if job is None or job.beam is None:
            return []
        beam = job.beam
        if beam.has_fault:
            return [self._fail(request_id, NOT_FINITE)]
        if not beam.is_complete:
            return []
        living = beam.decide()
        if living:
            choices = [(parent, hypothesis.steps[-1].token) for parent, hypothesis in living]
            sequences = self.scheduler.branch(request_id, choices)
            beam.alive = [(s.seq_id, hypothesis) for s, (_, hypothesis) in zip(sequences, living, strict=True)]
            return []
        if job.scores is not None and not self._complete_scores(job):
            return [self._fail(request_id, "the prompt's logprobs are not complete")]
        cached = max(sequence.cached for sequence in self.scheduler.abort(request_id))
        now = time.monotonic_ns()
        del self._jobs[request_id]
        self.times.time_to_first_token.observe((now - job.request.arrival_ns) * 1e-9)
        self.times.end_to_end.observe((now - job.request.arrival_ns) * 1e-9)
        outputs: list[SequenceOutput] = []
        for index, done in enumerate(beam.results()):
            outputs += self._speak(job, index, done, cached)
        return outputs

    def _speak(self, job: _Job, index: int, done: Finished, cached: int) -> list[SequenceOutput]:
        """A hypothesis as outputs, token by token."""
        token_bytes = self._tokens.with_special if job.show_special_tokens else self._tokens.shown
        continuation = Continuation(job.request.params, job.ends, self.scheduler_config.max_model_len, token_bytes)
        sequence = Sequence(-1, job.request, index, list(job.request.prompt))
        outputs = []
        for number, step in enumerate(done.hypothesis.steps, 1):
            offset = continuation.text.offset
            sequence.tokens.append(step.token)
            continuation.push(sequence)
            is_last = number == len(done.hypothesis.steps)
            outputs.append(
                SequenceOutput(
                    request_id=job.request.request_id,
                    index=index,
                    token=step.token,
                    text=continuation.text.take(),
                    text_offset=offset,
                    num_generated=number,
                    prompt_tokens=len(job.request.prompt),
                    cached_tokens=cached,
                    logprob=step if job.request.params.logprobs is not None else None,
                    finish_reason=continuation.reason if is_last else None,
                    stop_reason=continuation.stop_reason if is_last else None,
                    prompt_logprobs=job.prompt_logprobs if number == 1 else None,
                    beam_score=done.score if is_last else None,
                )
            )
        reason = continuation.reason or FinishReason.LENGTH
        self.times.finished[reason.value] += 1
        return outputs

    def _accept(self, job: _Job, sequence: Sequence, logprob: TokenLogprob | None, now: int) -> SequenceOutput:
        """Add the last token of ``sequence`` to its continuation, and end it if a rule says so."""
        continuation = job.continuations.get(sequence.index)
        is_first = continuation is None
        if continuation is None:
            token_bytes = self._tokens.with_special if job.show_special_tokens else self._tokens.shown
            continuation = Continuation(job.request.params, job.ends, self.scheduler_config.max_model_len, token_bytes)
            job.continuations[sequence.index] = continuation
        self._observe(job, continuation, now)
        offset = continuation.text.offset
        continuation.push(sequence)
        if continuation.reason is not None:
            self._finish(job, sequence, continuation.reason, now)
        return SequenceOutput(
            request_id=job.request.request_id,
            index=sequence.index,
            token=sequence.tokens[-1],
            text=continuation.text.take(),
            text_offset=offset,
            num_generated=sequence.num_generated,
            prompt_tokens=len(job.request.prompt),
            cached_tokens=sequence.cached,
            logprob=logprob,
            finish_reason=continuation.reason,
            stop_reason=continuation.stop_reason,
            prompt_logprobs=job.prompt_logprobs if is_first else None,
        )

    def _observe(self, job: _Job, continuation: Continuation, now: int) -> None:
        if continuation.last_ns is None:
            self.times.time_to_first_token.observe((now - job.request.arrival_ns) * 1e-9)
        else:
            self.times.inter_token.observe((now - continuation.last_ns) * 1e-9)
        continuation.last_ns = now

    def _finish(self, job: _Job, sequence: Sequence, reason: FinishReason, now: int) -> None:
        self.scheduler.finish(sequence, reason)
        job.open -= 1
        self.times.finished[reason.value] += 1
        if not job.open:
            self.times.end_to_end.observe((now - job.request.arrival_ns) * 1e-9)
            del self._jobs[job.request.request_id]

    def _score_prompts(self, plan: StepPlan, prompt: Mapping[int, Tensor]) -> None:
        for scheduled in plan.seqs:
            if scheduled.prompt_logprobs and scheduled.seq_id in prompt:
                scores = self._jobs[self.scheduler.sequences[scheduled.seq_id].request.request_id].scores
                if scores is not None:
                    scores.add(scheduled.start, prompt[scheduled.seq_id])

    def _complete_scores(self, job: _Job) -> bool:
        if job.prompt_logprobs is None and job.scores is not None:
            job.prompt_logprobs = job.scores.take()
        return job.prompt_logprobs is not None

    def _drop(self, request_id: str, outcome: str) -> _Job:
        job = self._jobs.pop(request_id)
        self.scheduler.abort(request_id)
        self.times.finished[outcome] += job.open
        return job

    def _fail(self, request_id: str, message: str) -> SequenceOutput:
        job = self._drop(request_id, "error")
        return SequenceOutput(
            request_id=request_id,
            index=0,
            token=None,
            text="",
            text_offset=0,
            num_generated=0,
            prompt_tokens=len(job.request.prompt),
            cached_tokens=0,
            finish_reason=FinishReason.ABORT,
            error=message,
        )

    def _fail_step(self, plan: StepPlan, message: str) -> list[SequenceOutput]:
        sequences = (self.scheduler.sequences.get(scheduled.seq_id) for scheduled in plan.seqs)
        involved = {sequence.request.request_id: None for sequence in sequences if sequence is not None}
        outputs = [self._fail(request_id, message) for request_id in involved]
        self.scheduler.commit(plan, {})
        return outputs


def _reason_of_fault(sequence: Sequence) -> str:
    """Why no token could be drawn for ``sequence``."""
    if sequence.guide is not None and sequence.guide.error is not None:
        return f"the answer's grammar can no longer be followed: {sequence.guide.error}"
    return NOT_FINITE


def _inputs(draws: list[Draw], sampled: Sampled) -> dict[int, list[int]]:
    """What each sequence computes next.  Where the draw failed that is any token: its request ends at the commit."""
    return {draw.sequence.seq_id: [max(token, 0)] for draw, token in zip(draws, sampled.tokens, strict=True)}
