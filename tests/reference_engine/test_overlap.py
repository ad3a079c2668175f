"""Steps launched before the last one was booked: the same texts, no leak, faults that stay where they belong."""

from __future__ import annotations

import random
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest

from reference_engine.engine import Engine
from reference_engine.outputs import SequenceOutput
from reference_engine.plan import DRAWN, StepPlan
from reference_engine.request import FinishReason, Request, SamplingParams
from reference_engine.scheduler import Scheduler

sys.path.insert(0, str(Path(__file__).parent))
import hash_model

from reference_engine.config import CacheConfig, SchedulerConfig

make_engine = hash_model.make_engine


@pytest.fixture
def rng() -> random.Random:
    seed = secrets.randbits(32)
    print("seed", seed)
    return random.Random(seed)


def drawn_request(rng: random.Random, name: str) -> Request:
    """Anything that decides when a text ends or what is drawn."""
    params = SamplingParams(
        max_tokens=rng.randint(1, 24),
        temperature=rng.choice((0.0, 0.0, 1.0)),
        top_p=rng.choice((1.0, 0.9)),
        repetition_penalty=rng.choice((1.0, 1.3)),
        stop=rng.choice(((), ("a",), ("bc", "d"))),
        ignore_eos=rng.random() < 0.5,
        n=rng.choice((1, 1, 1, 3)),
        seed=rng.randrange(1000),
        logprobs=rng.choice((None, None, 2)),
        prompt_logprobs=rng.choice((None, None, None, 1)),
    )
    return Request(name, tuple(rng.randrange(97, 101) for _ in range(rng.randint(1, 14))), params)


class Watched:
    """An engine that is fed request by request, and whose steps ahead are counted."""

    def __init__(self, **options: Any) -> None:
        self.engine, self.runner = make_engine(**options)
        self.found: dict[tuple[str, int], list[SequenceOutput]] = {}
        self.ahead = 0

    def step(self) -> None:
        self.ahead += self.engine._launched is not None
        for output in self.engine.step():
            self.found.setdefault((output.request_id, output.index), []).append(output)

    def run_out(self) -> None:
        for _ in range(10_000):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def texts(self) -> dict[tuple[str, int], tuple[Any, ...]]:
        return {
            key: (
                [output.token for output in outputs],
                "".join(output.text for output in outputs),
                [output.logprob for output in outputs],
                outputs[-1].finish_reason,
                outputs[-1].stop_reason,
            )
            for key, outputs in self.found.items()
        }


def is_idle(engine: Engine) -> bool:
    values = engine.stats().values
    return (
        not engine.has_work
        and engine._launched is None
        and values["kv_slots_allocated"] == 0
        and values["requests_running"] == 0
    )


@pytest.mark.parametrize("num_blocks", [14, 200])
@pytest.mark.parametrize("max_num_seqs", [3, 16])
def test_texts_are_those_of_an_engine_that_waits(num_blocks: int, max_num_seqs: int, rng: random.Random) -> None:
    """Requests arrive and are aborted at any moment; a small pool preempts."""
    options = {
        "num_blocks": num_blocks,
        "block_size": rng.choice((3, 4)),
        "max_model_len": 38,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": rng.choice((8, 64)),
        "prefix_caching": rng.random() < 0.5,
    }
    requests = [drawn_request(rng, f"r{i}") for i in range(40)]
    arrivals = sorted(rng.randrange(120) for _ in requests)
    aborted = {f"r{i}": rng.randrange(120) for i in rng.sample(range(40), 6)}
    plain, overlapped = Watched(**options), Watched(**options, overlap=True)
    for watched in (plain, overlapped):
        waiting = list(zip(arrivals, requests, strict=True))
        for now in range(130):
            while waiting and waiting[0][0] <= now:
                watched.engine.add(Request(waiting[0][1].request_id, waiting[0][1].prompt, waiting.pop(0)[1].params))
            for name, moment in aborted.items():
                if moment == now:
                    watched.engine.abort(name)
            watched.step()
        watched.run_out()
        assert is_idle(watched.engine)
    assert overlapped.ahead > 10
    assert plain.ahead == 0
    expected, found = plain.texts(), overlapped.texts()
    whole = [key for key in expected if key[0] not in aborted]
    assert {key: found[key] for key in whole} == {key: expected[key] for key in whole}


def test_a_step_ahead_is_plain_and_is_what_the_next_plan_would_have_been() -> None:
    scheduler = Scheduler(SchedulerConfig(max_model_len=64), CacheConfig(num_blocks=32, block_size=4))
    for name in "abc":
        scheduler.add(Request(name, (1, 2, 3), SamplingParams(max_tokens=2 if name == "a" else 9, ignore_eos=True)))
    plan = scheduler.schedule()
    ahead = scheduler.schedule_ahead()
    assert ahead is not None
    assert [(part.start, part.tokens, part.num_samples) for part in ahead.seqs] == [(3, (DRAWN,), 1)] * 3
    assert scheduler.schedule_ahead() is None  # one at a time
    scheduler.audit()
    scheduler.commit(plan, {0: [7], 1: [8], 2: [9]})
    assert [sequence.scheduled for sequence in scheduler.sequences.values()] == [1, 1, 1]
    scheduler.abort("b")
    after = scheduler.schedule_ahead()  # a's next token is its last, b is gone
    assert after is not None
    assert [part.seq_id for part in after.seqs] == [2]
    filled = ahead.with_drawn({0: [7], 1: [8], 2: [9]})
    assert [part.tokens for part in filled.seqs] == [(7,), (8,), (9,)]
    assert [(c.sequence.seq_id, c.token) for c in scheduler.commit(filled, {0: [5], 2: [6]})] == [(0, 5), (2, 6)]
    scheduler.audit()


def test_nothing_is_planned_ahead_that_would_keep_a_newcomer_waiting() -> None:
    scheduler = Scheduler(SchedulerConfig(max_model_len=64, max_num_seqs=2), CacheConfig(num_blocks=32, block_size=4))
    endless = SamplingParams(max_tokens=30, ignore_eos=True)
    scheduler.add(Request("a", (1, 2, 3), endless))
    plan = scheduler.schedule()
    scheduler.add(Request("b", (1, 2, 3), endless))
    assert scheduler.schedule_ahead() is None
    scheduler.commit(plan, {0: [4]})
    plan = scheduler.schedule()
    scheduler.add(Request("c", (1, 2, 3), endless))  # which finds no seat
    assert scheduler.schedule_ahead() is not None
    assert len(plan.seqs) == 2


def test_nobody_is_left_behind_while_others_go_ahead() -> None:
    """Three continuations under a budget of two tokens: the one that this step leaves out has a right to the next."""
    limits = SchedulerConfig(max_model_len=64, max_num_batched_tokens=2)
    scheduler = Scheduler(limits, CacheConfig(num_blocks=32, block_size=4))
    scheduler.add(Request("a", (1,), SamplingParams(max_tokens=30, ignore_eos=True, n=3)))
    scheduler.commit(scheduler.schedule(), {0: [2, 3, 4]})
    assert len(scheduler.schedule().seqs) == 2
    assert scheduler.schedule_ahead() is None


def test_a_step_ahead_never_takes_the_last_blocks_by_force() -> None:
    """Two sequences fill the pool: to go on, one must be preempted, and that is the ordinary schedule's decision."""
    scheduler = Scheduler(
        SchedulerConfig(max_model_len=16, watermark=0.0), CacheConfig(num_blocks=4, block_size=4, prefix_caching=False)
    )
    for name in "ab":
        scheduler.add(Request(name, (1, 2, 3, 4, 5, 6, 7, 8), SamplingParams(max_tokens=8, ignore_eos=True)))
    scheduler.schedule()
    assert scheduler.schedule_ahead() is None
    scheduler.audit()


def test_a_step_that_fails_takes_the_one_ahead_with_it(rng: random.Random) -> None:
    watched = Watched(overlap=True)
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    for name in ("a", "b"):
        watched.engine.add(Request(name, (97, 98), params))
    for _ in range(rng.randint(2, 6)):
        watched.step()
    watched.runner.explode = True
    for _ in range(3):
        watched.step()
    assert {key[0]: outputs[-1].finish_reason for key, outputs in watched.found.items()} == {
        "a": FinishReason.ABORT,
        "b": FinishReason.ABORT,
    }
    assert all("out of memory" in (outputs[-1].error or "") for outputs in watched.found.values())
    assert is_idle(watched.engine)
    watched.runner.explode = False
    watched.engine.add(Request("c", (97, 98), params))
    watched.run_out()
    assert len(watched.found["c", 0]) == 30
    assert is_idle(watched.engine)


def test_logits_that_are_not_finite_end_one_request_only() -> None:
    watched = Watched(overlap=True)
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    watched.engine.add(Request("good", (97, 98), params))
    watched.engine.add(Request("bad", (99, 98), params))
    for _ in range(4):
        watched.step()
    watched.runner.poisoned.add((99,))
    watched.run_out()
    assert "not finite" in (watched.found["bad", 0][-1].error or "")
    assert len(watched.found["good", 0]) == 12
    assert is_idle(watched.engine)


def test_a_step_ahead_in_vain_is_brought_to_its_end() -> None:
    """The only text ends by a stop string, which the step ahead could not foresee."""
    watched = Watched(overlap=True)
    watched.engine.add(Request("a", (97, 98), SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)))
    watched.run_out()
    text = watched.texts()["a", 0][1]
    stop = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, stop=(text[4:7],))
    watched.engine.add(Request("b", (97, 98), stop))
    while "b" not in {key[0] for key, outputs in watched.found.items() if outputs[-1].finish_reason}:
        watched.step()
    assert watched.texts()["b", 0][1] == text[: text.index(text[4:7])]
    assert watched.engine.has_work
    assert watched.engine.step() == []
    assert is_idle(watched.engine)


def test_every_plan_that_runs_holds_real_tokens(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    watched = Watched(overlap=True)
    plans: list[StepPlan] = []
    honest = watched.runner.execute
    monkeypatch.setattr(watched.runner, "execute", lambda plan: (plans.append(plan), honest(plan))[1])
    for i in range(6):
        watched.engine.add(drawn_request(rng, f"r{i}"))
    watched.run_out()
    assert all(token >= 0 for plan in plans for part in plan.seqs for token in part.tokens)
    assert [plan.step for plan in plans] == list(range(len(plans)))
