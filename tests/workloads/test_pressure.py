"""Workloads made around the KV pool: what they ask comes to what they promise."""

from __future__ import annotations

import random

import pytest

from workloads.registry import parse_workload
from workloads.request import Load, WorkloadError
from workloads.tokens import WordCounter

COUNTER = WordCounter()


def test_a_hit_rate_is_what_an_ideal_cache_would_reach() -> None:
    for target in (0.3, 0.6, 0.9):
        workload = parse_workload(f"shared-prefix:hit_rate={target},groups=4,input=50,output=5")
        requests = workload.requests(400, random.randrange(10**6), COUNTER)
        seen: set[str] = set()
        hits = 0
        for r in requests:
            assert r.prompt is not None
            prefix, _, own = r.prompt.partition("\n\n")
            assert len(own.split()) == 50
            hits += len(prefix.split()) if prefix in seen else 0
            seen.add(prefix)
        assert len(seen) == 4
        assert hits / sum(r.prompt_tokens for r in requests) == pytest.approx(target, abs=0.01)
        assert sum(r.shared_tokens for r in requests) == hits


def test_prefixes_have_their_popularity() -> None:
    requests = parse_workload("shared-prefix:groups=5,zipf=1.5,prefix_tokens=8").requests(2000, 3, COUNTER)
    counts: dict[str, int] = {}
    for r in requests:
        prefix = str(r.prompt).partition("\n\n")[0]
        counts[prefix] = counts.get(prefix, 0) + 1
    assert sorted(counts.values(), reverse=True) == list(counts.values())
    assert max(counts.values()) > 5 * min(counts.values())


def test_a_hit_rate_that_cannot_be_is_refused() -> None:
    with pytest.raises(WorkloadError, match="cannot hit more than"):
        parse_workload("shared-prefix:hit_rate=0.9,groups=8").requests(10, 0, COUNTER)


def test_fill_and_oversubscribe_hold_their_share_of_the_pool() -> None:
    fill = parse_workload("kv-pressure:kv_tokens=10000,input=100,output=200,percent=50+120")
    assert fill.loads() == (Load("closed", concurrency=25), Load("closed", concurrency=60))
    over = parse_workload("kv-pressure:scenario=oversubscribe,kv_tokens=4000,input=100,output=200")
    assert [load.concurrency for load in over.loads()] == [24, 30, 40]


def test_the_worst_tail_holds_one_token() -> None:
    for block in (16, 32, 128):
        requests = parse_workload(f"kv-pressure:scenario=tails,block_size={block}").requests(40, 1, COUNTER)
        for r in requests:
            assert (r.prompt_tokens + r.output_tokens - 1) % block == 1
        assert len({r.prompt_tokens + r.output_tokens for r in requests}) == 2  # short and long ones


def test_a_sawtooth_fills_and_drains() -> None:
    spec = "kv-pressure:scenario=sawtooth,kv_tokens=3000,input=100,output=200,percent=100,waves=3,period_s=7"
    workload = parse_workload(spec)
    (load,) = workload.loads()
    count = workload.default_count(load)  # type: ignore[attr-defined]
    requests = workload.requests(count, 1, COUNTER)
    assert load == Load("trace")
    assert [r.at_ns for r in requests] == [0] * 10 + [7 * 10**9] * 10 + [14 * 10**9] * 10
    assert not any(r.cancel_after_s for r in requests)


def test_an_abort_storm_ends_with_a_wave_that_is_left_alone() -> None:
    spec = "kv-pressure:scenario=abort-storm,kv_tokens=3000,input=100,output=200,percent=100,waves=2,hold_s=3"
    workload = parse_workload(spec)
    count = workload.default_count(workload.loads()[0])  # type: ignore[attr-defined]
    requests = workload.requests(count, 1, COUNTER)
    assert [r.cancel_after_s for r in requests] == [3.0] * 20 + [None] * 10


def test_parallel_sampling_asks_for_n_answers() -> None:
    requests = parse_workload("parallel-sampling:n=5,input_mean=40,output=7").requests(30, 1, COUNTER)
    assert {(r.n, r.output_tokens, r.sampling.temperature) for r in requests} == {(5, 7, 0.8)}
    assert len({r.sampling.seed for r in requests}) == 30


def test_mixed_draws_by_weight_and_keeps_conversations_together() -> None:
    workload = parse_workload("mixed:parts=chat*3+concurrency*1")
    requests = workload.requests(800, 5, COUNTER)
    assert [r.index for r in requests] == list(range(800))
    assert sum(r.messages is not None for r in requests) / 800 == pytest.approx(0.75, abs=0.06)
    parts = [{"name": "chat", "parameters": {"turns": 3, "scale": 0.1}}, {"name": "concurrency", "weight": 2}]
    from workloads.registry import make_workload

    talks = make_workload("mixed", {"parts": parts}).requests(90, 5, COUNTER)
    for r in talks:
        if r.after is not None:
            assert talks[r.after].conversation == r.conversation
            assert (talks[r.after].turn or 0) + 1 == r.turn
            assert all(talks[index].conversation == r.conversation for _, index in r.answers)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("kv-pressure:scenario=flood", "not one of fill, oversubscribe"),
        ("kv-pressure:percent=0", "percent"),
        ("kv-pressure:hold_s=0", "above 0 seconds"),
        ("shared-prefix:hit_rate=1", "below 1"),
        ("parallel-sampling:n=0", "at least 1"),
        ("mixed:parts=chta*1", "did you mean 'chat'"),
        ("mixed:parts=chat*x", "must be a number"),
        ("mixed:parts=chat*-1", "above 0"),
        ("mixed:parts=mixed*1", "cannot be a part"),
        ("long-output:output_low=9,output_high=3", "at most output_high"),
        ("chat:history=none", "real or planned"),
    ],
)
def test_bad_specs_get_a_sentence(spec: str, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        parse_workload(spec)


def test_long_outputs_are_spread_evenly_on_a_log_scale() -> None:
    requests = parse_workload("long-output:output_low=256").requests(3000, 4, COUNTER)
    lengths = [r.output_tokens for r in requests]
    assert min(lengths) >= 256
    assert max(lengths) <= 16384
    for low in (256, 1024, 4096):
        assert sum(low <= n < 4 * low for n in lengths) / 3000 == pytest.approx(1 / 3, abs=0.04)
