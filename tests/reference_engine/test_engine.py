"""The engine on a model that is a hash of its KV pool: every rule that ends a text, faults, determinism, replay."""

from __future__ import annotations

import random
import secrets
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.results.schema import METRIC_NAMES
from reference_engine.config import PreemptionCost
from reference_engine.engine import Engine
from reference_engine.outputs import Histogram, SequenceOutput
from reference_engine.plan import StepPlan
from reference_engine.plan_log import PlanLog, replay
from reference_engine.request import FinishReason, Request, RequestRejected, SamplingParams

sys.path.insert(0, str(Path(__file__).parent))
import hash_model

make_engine, next_logits = hash_model.make_engine, hash_model.next_logits
EOS, VOCAB = hash_model.EOS, hash_model.VOCAB
GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


@pytest.fixture
def rng() -> random.Random:
    seed = secrets.randbits(32)
    print("seed", seed)
    return random.Random(seed)


def request(name: str, prompt: str | list[int], params: SamplingParams = GREEDY, **fields: Any) -> Request:
    tokens = tuple(prompt.encode()) if isinstance(prompt, str) else tuple(prompt)
    return Request(request_id=name, prompt=tokens, params=params, **fields)


def run(engine: Engine, *requests: Request) -> dict[tuple[str, int], list[SequenceOutput]]:
    """Add all, step until idle; outputs by (request id, continuation)."""
    for item in requests:
        engine.add(item)
    found: dict[tuple[str, int], list[SequenceOutput]] = defaultdict(list)
    for _ in range(10_000):
        if not engine.has_work:
            return dict(found)
        for output in engine.step():
            found[output.request_id, output.index].append(output)
    raise AssertionError("the engine does not come to an end")


def tokens_of(outputs: list[SequenceOutput]) -> list[int]:
    return [output.token for output in outputs if output.token is not None]


def text_of(outputs: list[SequenceOutput]) -> str:
    return "".join(output.text for output in outputs)


def greedy_reference(prompt: list[int], count: int) -> list[int]:
    history = list(prompt)
    for _ in range(count):
        history.append(int(next_logits(history).argmax()))
    return history[len(prompt) :]


def is_idle(engine: Engine) -> bool:
    values = engine.stats().values
    return not engine.has_work and values["kv_slots_allocated"] == 0 and values["requests_running"] == 0


# --- greedy text against the model itself -----------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("budget", [5, 64])
@pytest.mark.parametrize("num_blocks_factor", [1.2, 50])
def test_greedy_tokens_are_the_models_whatever_the_schedule(
    block_size: int, budget: int, num_blocks_factor: float, rng: random.Random
) -> None:
    longest = 40
    engine, _ = make_engine(
        num_blocks=int(longest / block_size * num_blocks_factor) + 2,
        block_size=block_size,
        max_model_len=longest,
        max_num_batched_tokens=budget,
        max_num_seqs=4,
        prefix_caching=rng.random() < 0.5,
    )
    prompts = {f"r{i}": [rng.randrange(97, 101) for _ in range(rng.randint(1, 20))] for i in range(10)}
    found = run(engine, *(request(name, prompt) for name, prompt in prompts.items()))
    for name, prompt in prompts.items():
        assert tokens_of(found[name, 0]) == greedy_reference(prompt, 20)
        assert found[name, 0][-1].finish_reason is FinishReason.LENGTH
        assert text_of(found[name, 0]) == bytes(t for t in tokens_of(found[name, 0]) if t != EOS).decode()
    assert is_idle(engine)


def test_preemption_happens_in_a_small_pool_and_changes_no_token(rng: random.Random) -> None:
    params = replace(GREEDY, temperature=1.0, seed=7, repetition_penalty=1.2, frequency_penalty=0.3)
    items = [request(f"r{i}", [rng.randrange(97, 120) for _ in range(6)], params) for i in range(6)]
    roomy, _ = make_engine(num_blocks=200, prefix_caching=False)
    tight, _ = make_engine(num_blocks=12, prefix_caching=False, max_model_len=40, watermark=0.0)
    expected = run(roomy, *(replace(item) for item in items))
    found = run(tight, *(replace(item) for item in items))
    assert tight.stats().values["preemptions_total"] > 0
    assert roomy.stats().values["preemptions_total"] == 0
    for key, outputs in expected.items():
        assert tokens_of(found[key]) == tokens_of(outputs)
        assert [o.num_generated for o in found[key]] == list(range(1, 21))


@pytest.mark.parametrize("n", [1, 3])
def test_a_swap_changes_no_token_and_computes_nothing_twice(rng: random.Random, n: int) -> None:
    params = replace(GREEDY, temperature=1.0, seed=7, repetition_penalty=1.2, n=n)
    items = [request(f"r{i}", [rng.randrange(97, 120) for _ in range(6)], params) for i in range(6)]
    roomy, _ = make_engine(num_blocks=300, prefix_caching=False)
    tight, _ = make_engine(
        num_blocks=12, num_host_blocks=100, prefix_caching=False, max_model_len=40, watermark=0.0, preemption="swap"
    )
    expected = run(roomy, *(replace(item) for item in items))
    found = run(tight, *(replace(item) for item in items))
    values = tight.stats().values
    assert values["preemptions_total"] == values["preemptions_swapped_total"] > 0
    assert values["recomputed_tokens_total"] == 0
    assert values["swap_out_blocks_total"] == values["swap_in_blocks_total"] > 0
    assert values["swap_out_bytes_total"] == values["swap_out_blocks_total"] * 4 * 8
    assert values["kv_host_blocks_used"] == 0
    assert {key: tokens_of(outputs) for key, outputs in found.items()} == {
        key: tokens_of(outputs) for key, outputs in expected.items()
    }


def test_a_full_host_pool_means_recomputation(rng: random.Random) -> None:
    items = [request(f"r{i}", [rng.randrange(97, 120) for _ in range(6)]) for i in range(6)]
    tight, _ = make_engine(
        num_blocks=12, num_host_blocks=3, prefix_caching=False, max_model_len=40, watermark=0.0, preemption="swap"
    )
    found = run(tight, *items)
    values = tight.stats().values
    assert 0 < values["preemptions_swapped_total"] < values["preemptions_total"]
    assert values["recomputed_tokens_total"] > 0
    for item in items:
        assert tokens_of(found[item.request_id, 0]) == greedy_reference(list(item.prompt), 20)


@pytest.mark.parametrize(("swap_block", "swaps"), [(1.0, True), (100.0, False)])
def test_auto_takes_the_cheaper_way(rng: random.Random, swap_block: float, swaps: bool) -> None:
    items = [request(f"r{i}", [rng.randrange(97, 120) for _ in range(6)]) for i in range(6)]
    engine, _ = make_engine(
        num_blocks=12,
        num_host_blocks=100,
        max_model_len=40,
        watermark=0.0,
        preemption="auto",
        preemption_cost=PreemptionCost(recompute_token=1.0, swap_block=swap_block),
    )
    run(engine, *items)
    values = engine.stats().values
    assert values["preemptions_total"] > 0
    assert values["preemptions_swapped_total"] == (values["preemptions_total"] if swaps else 0)


@pytest.mark.parametrize("prefix_index", ["hash", "radix"])
def test_a_second_turn_finds_the_first_ones_prompt_and_answer(prefix_index: str) -> None:
    engine, _ = make_engine(prefix_index=prefix_index)
    first = list(b"system: be brief. user: hello. assistant:")
    answer = tokens_of(run(engine, request("one", first))["one", 0])
    second = [*first, *answer, *b" user: and then?"]
    known = len(first) + len(answer) - 1  # the last token was drawn, never computed
    assert run(engine, request("two", second))["two", 0][0].cached_tokens == known // 4 * 4
    assert run(engine, request("three", second, cache_salt="mine"))["three", 0][0].cached_tokens == 0
    assert run(engine, request("four", second, cache_salt="mine"))["four", 0][0].cached_tokens > known
    assert engine.reset_cache() > 0
    assert run(engine, request("five", second))["five", 0][0].cached_tokens == 0


def test_128_continuations_share_the_blocks_of_one_prompt() -> None:
    engine, _ = make_engine(num_blocks=1000, max_num_seqs=128, max_model_len=600)
    prompt = list(range(33, 33 + 62)) * 8  # 496 tokens, 124 blocks
    engine.add(request("many", prompt, replace(GREEDY, n=128, max_tokens=4)))
    while engine.stats().values["requests_running"] < 128:
        engine.step()
    engine.step()
    values = engine.stats().values
    assert values["kv_slots_logical"] == 128 * 497
    assert values["kv_slots_live"] == 496 + 128
    assert values["kv_slots_allocated"] == (124 + 128) * 4
    with pytest.raises(RequestRejected, match="n=129 exceeds the 128"):
        engine.add(request("more", prompt, replace(GREEDY, n=129)))


# --- the ends of a text -----------------------------------------------------------------------------------------------


def first_eos(prompt: list[int]) -> int:
    """Number of tokens a greedy run generates up to and including end-of-sequence."""
    return greedy_reference(prompt, 200).index(EOS) + 1


def prompt_with_eos(rng: random.Random, low: int, high: int) -> list[int]:
    while True:
        prompt = [rng.randrange(97, 123) for _ in range(8)]
        if EOS in greedy_reference(prompt, 80) and low <= first_eos(prompt) <= high:
            return prompt


def test_eos_ends_the_text_and_is_counted_but_not_shown(rng: random.Random) -> None:
    prompt = prompt_with_eos(rng, 2, 60)
    engine, _ = make_engine()
    outputs = run(engine, request("a", prompt, SamplingParams(temperature=0.0, max_tokens=100)))["a", 0]
    assert tokens_of(outputs) == greedy_reference(prompt, first_eos(prompt))
    assert outputs[-1].token == EOS
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert outputs[-1].stop_reason is None
    assert text_of(outputs) == bytes(tokens_of(outputs)[:-1]).decode()


def test_ignore_eos_and_min_tokens(rng: random.Random) -> None:
    prompt = prompt_with_eos(rng, 2, 10)
    engine, _ = make_engine()
    ignoring = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    outputs = run(engine, request("a", prompt, ignoring))["a", 0]
    assert tokens_of(outputs) == greedy_reference(prompt, 40)
    held = SamplingParams(temperature=0.0, max_tokens=40, min_tokens=15)
    outputs = run(engine, request("b", prompt, held))["b", 0]
    assert EOS not in tokens_of(outputs)[:15]
    assert len(outputs) >= 16 or outputs[-1].finish_reason is FinishReason.LENGTH


def test_stop_token_id_ends_and_is_reported(rng: random.Random) -> None:
    expected = greedy_reference(list(b"hello"), 20)
    stop = expected[7]
    cut = expected.index(stop) + 1
    engine, _ = make_engine()
    for include in (False, True):
        params = replace(GREEDY, stop_token_ids=(stop,), include_stop_str=include)
        outputs = run(engine, request(f"a{include}", "hello", params))[f"a{include}", 0]
        assert tokens_of(outputs) == expected[:cut]
        assert outputs[-1].finish_reason is FinishReason.STOP
        assert outputs[-1].stop_reason == stop
        assert text_of(outputs) == bytes(expected[: cut if include else cut - 1]).decode()


def test_stop_string_across_tokens_is_cut(rng: random.Random) -> None:
    expected = bytes(greedy_reference(list(b"hello"), 20)).decode()
    stop = expected[6:10]
    where = expected.index(stop)
    engine, _ = make_engine()
    for include in (False, True):
        params = replace(GREEDY, stop=(stop, "never"), include_stop_str=include)
        outputs = run(engine, request(f"a{include}", "hello", params))[f"a{include}", 0]
        assert text_of(outputs) == expected[: where + (len(stop) if include else 0)]
        assert outputs[-1].finish_reason is FinishReason.STOP
        assert outputs[-1].stop_reason == stop
        assert len(outputs) == where + len(stop)
        assert outputs[where].text == ""  # held back while it may be the stop string


def test_stops_count_from_exactly_min_tokens_on() -> None:
    text = bytes(greedy_reference(list(b"hello"), 20)).decode()
    place = next(i for i in range(3, 15) if text.index(text[i]) == i and text[i] not in text[i + 1 :])
    engine, _ = make_engine()
    for least, length in ((place + 1, place + 1), (place + 2, 20)):
        outputs = run(engine, request(f"a{least}", "hello", replace(GREEDY, stop=(text[place],), min_tokens=least)))
        assert len(outputs[f"a{least}", 0]) == length


def test_a_text_may_end_with_its_first_token() -> None:
    engine, _ = make_engine()
    forced = SamplingParams(temperature=0.0, logit_bias=((EOS, 100.0),))
    outputs = run(engine, request("a", "hello", forced))["a", 0]
    assert [(o.token, o.text, o.finish_reason) for o in outputs] == [(EOS, "", FinishReason.STOP)]


def test_max_model_len_is_the_last_limit() -> None:
    engine, _ = make_engine(max_model_len=30)
    outputs = run(engine, request("a", "abcdefghij", replace(GREEDY, max_tokens=20)))["a", 0]
    assert len(outputs) == 20
    with pytest.raises(RequestRejected, match=r"10 tokens.*21.*30") as caught:
        engine.add(request("b", "abcdefghij", replace(GREEDY, max_tokens=21)))
    assert caught.value.status == 400
    assert is_idle(engine)


# --- several continuations, seeds -------------------------------------------------------------------------------------


def test_continuations_fork_and_equal_their_single_runs(rng: random.Random) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=12, n=4, seed=rng.getrandbits(40), ignore_eos=True, logprobs=2)
    prompt = [rng.randrange(97, 123) for _ in range(11)]
    engine, _ = make_engine()
    found = run(engine, request("a", prompt, params))
    assert set(found) == {("a", i) for i in range(4)}
    assert len({tuple(tokens_of(outputs)) for outputs in found.values()}) == 4
    alone = run(engine, request("b", prompt, replace(params, n=1)))
    assert tokens_of(alone["b", 0]) == tokens_of(found["a", 0])
    for outputs in found.values():
        assert all(o.logprob is not None and o.logprob.token == o.token for o in outputs)
    assert is_idle(engine)


def test_a_seed_gives_the_same_tokens_in_any_company(rng: random.Random) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=15, seed=rng.getrandbits(60), top_p=0.9, ignore_eos=True)
    alone, _ = make_engine()
    expected = tokens_of(run(alone, request("x", "the prompt", params))["x", 0])
    crowd, _ = make_engine(num_blocks=30, max_num_batched_tokens=17, watermark=0.0, max_model_len=64)
    others = [
        request(f"o{i}", [rng.randrange(97, 123) for _ in range(rng.randint(1, 25))], replace(params, seed=i))
        for i in range(12)
    ]
    found = run(crowd, *others[:6], request("x", "the prompt", params), *others[6:])
    assert tokens_of(found["x", 0]) == expected


def test_without_a_seed_two_runs_differ() -> None:
    params = SamplingParams(temperature=2.0, max_tokens=20, ignore_eos=True)
    engine, _ = make_engine()
    found = run(engine, request("a", "same", params), request("b", "same", params))
    assert tokens_of(found["a", 0]) != tokens_of(found["b", 0])


# --- logprobs ---------------------------------------------------------------------------------------------------------


def exact_logprobs(history: list[int]) -> np.ndarray:
    logits = next_logits(history).astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.mark.parametrize("budget", [3, 256])
def test_prompt_and_output_logprobs_also_when_chunked_and_warm(budget: int, rng: random.Random) -> None:
    engine, _ = make_engine(max_num_batched_tokens=budget, block_size=4)
    prompt = [rng.randrange(97, 123) for _ in range(13)]
    params = replace(GREEDY, max_tokens=3, logprobs=1, prompt_logprobs=2)
    run(engine, request("warm", prompt, replace(params, prompt_logprobs=None)))
    outputs = run(engine, request("a", prompt, params))["a", 0]
    scores = outputs[0].prompt_logprobs
    assert scores is not None
    assert len(scores) == 13
    assert scores[0] is None
    for position, entry in enumerate(scores[1:], 1):
        exact = exact_logprobs(prompt[:position])
        assert entry is not None
        assert entry.token == prompt[position]
        assert entry.logprob == pytest.approx(exact[prompt[position]], abs=1e-4)
        assert entry.top[0][0] == int(exact.argmax())
        assert entry.rank == int((exact > exact[prompt[position]]).sum()) + 1
    assert all(o.prompt_logprobs is None for o in outputs[1:])
    history = list(prompt)
    for output in outputs:
        assert output.logprob is not None
        assert output.logprob.logprob == pytest.approx(exact_logprobs(history)[output.token], abs=1e-4)
        history.append(output.logprob.token)


def test_prompt_logprobs_survive_preemption(rng: random.Random) -> None:
    params = replace(GREEDY, max_tokens=25, prompt_logprobs=0)
    engine, _ = make_engine(num_blocks=12, max_model_len=40, watermark=0.0, max_num_batched_tokens=7)
    items = [request(f"r{i}", [rng.randrange(97, 123) for _ in range(9)], params) for i in range(5)]
    found = run(engine, *items)
    assert engine.stats().values["preemptions_total"] > 0
    for item in items:
        scores = found[item.request_id, 0][0].prompt_logprobs
        assert scores is not None
        assert [entry.token for entry in scores[1:] if entry] == list(item.prompt[1:])
        assert sum(o.prompt_logprobs is not None for o in found[item.request_id, 0]) == 1


# --- prefix cache -----------------------------------------------------------------------------------------------------


def test_cached_tokens_and_salt() -> None:
    engine, _ = make_engine(block_size=4)
    prompt = list(b"abcdefghijklm")  # 13 tokens: 3 full blocks
    for name, salt, cached in (("a", "", 0), ("b", "", 12), ("c", "other", 0), ("d", "other", 12)):
        outputs = run(engine, request(name, prompt, cache_salt=salt))[name, 0]
        assert {o.cached_tokens for o in outputs} == {cached}
        assert tokens_of(outputs) == greedy_reference(prompt, 20)


# --- abort and faults -------------------------------------------------------------------------------------------------


def test_abort_at_any_moment_frees_everything(rng: random.Random) -> None:
    engine, _ = make_engine(num_blocks=40, max_num_seqs=6, max_num_batched_tokens=13, max_model_len=80)
    names: list[str] = []
    for i in range(150):
        n = rng.choice([1, 1, 3])
        params = replace(GREEDY, temperature=1.0, n=n, max_tokens=rng.randint(1, 30))
        engine.add(request(f"r{i}", [rng.randrange(97, 100) for _ in range(rng.randint(1, 40))], params))
        names.append(f"r{i}")
        for _ in range(rng.randint(0, 3)):
            engine.step()
        if rng.random() < 0.7:
            name = names.pop(rng.randrange(len(names)))
            engine.abort(name)
            assert not engine.abort(name)
    for name in names:
        engine.abort(name)
    assert is_idle(engine)
    assert engine.step() == []


def test_nan_logits_fail_that_request_alone() -> None:
    engine, runner = make_engine()
    runner.poisoned.add(tuple(b"bad"))
    found = run(engine, request("a", "good one"), request("b", "bad one"), request("c", "fine"))
    assert found["b", 0][-1].error is not None
    assert "not finite" in found["b", 0][-1].error
    assert found["b", 0][-1].finish_reason is FinishReason.ABORT
    for name, prompt in (("a", "good one"), ("c", "fine")):
        assert tokens_of(found[name, 0]) == greedy_reference(list(prompt.encode()), 20)
    assert engine.times.finished["error"] == 1
    assert is_idle(engine)


def test_a_step_that_fails_ends_its_requests_and_not_the_engine() -> None:
    engine, runner = make_engine()
    engine.add(request("a", "one"))
    engine.add(request("b", "two", replace(GREEDY, temperature=1.0, n=2)))
    engine.step()
    runner.explode = True
    outputs = engine.step()
    assert {o.request_id for o in outputs} == {"a", "b"}
    assert all("out of memory" in (o.error or "") for o in outputs)
    assert is_idle(engine)
    runner.explode = False
    assert tokens_of(run(engine, request("c", "three"))["c", 0]) == greedy_reference(list(b"three"), 20)


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (request("x", []), "prompt"),
        (request("x", [1, VOCAB]), "prompt"),
        (request("x", [-1]), "prompt"),
        (request("x", "ok", replace(GREEDY, stop_token_ids=(VOCAB,))), "stop_token_ids"),
        (request("x", "ok", replace(GREEDY, logit_bias=((VOCAB + 5, 1.0),))), "logit_bias"),
        (request("x", "a" * 600), "prompt"),
        (request("x", "ok", replace(GREEDY, n=1000)), "n"),
    ],
)
def test_refusals_name_the_field_and_change_nothing(bad: Request, param: str) -> None:
    engine, _ = make_engine()
    with pytest.raises(RequestRejected) as caught:
        engine.add(bad)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert is_idle(engine)
    engine.add(request("x", "ok"))  # the id is free


def test_full_queue_is_429() -> None:
    engine, _ = make_engine(max_waiting=2)
    engine.add(request("a", "x"))
    engine.add(request("b", "x"))
    with pytest.raises(RequestRejected) as caught:
        engine.add(request("c", "x"))
    assert caught.value.status == 429


# --- plan log, statistics ---------------------------------------------------------------------------------------------


def test_a_logged_run_replays_to_the_same_logits(tmp_path: Path, rng: random.Random) -> None:
    log = tmp_path / "plans.jsonl"
    template, runner = make_engine(num_blocks=14, max_model_len=40, watermark=0.0)
    seen: list[torch.Tensor] = []

    class Recorder:
        def execute(self, plan: StepPlan) -> Any:
            logits = runner.execute(plan)
            seen.append(logits.sampled.clone())
            return logits

    engine = Engine(
        Recorder(),
        template.limits,
        template.scheduler_config,
        template.cache_config,
        hash_model.TokenTable(hash_model.ByteTokenizer()),
        plan_log=PlanLog(log),
    )
    params = replace(GREEDY, n=2, temperature=1.0, seed=3)
    run(engine, *(request(f"r{i}", [rng.randrange(97, 123) for _ in range(7)], params) for i in range(5)))
    assert engine.stats().values["preemptions_total"] > 0
    lines = log.read_text().splitlines()
    steps = list(replay(lines, hash_model.HashRunner(engine.cache_config)))
    assert [plan.step for plan, _ in steps] == list(range(len(seen)))
    assert any(plan.copies for plan, _ in steps)
    for (_, logits), expected in zip(steps, seen, strict=True):
        assert torch.equal(logits.sampled, expected)
    assert lines[0].startswith(StepPlan.from_json(lines[0]).to_json()[:-1]), (
        "what else a line holds comes behind the plan"
    )


def test_stats_speak_the_projects_metric_names() -> None:
    engine, _ = make_engine()
    engine.add(request("a", "some prompt of size"))
    engine.step()
    values = engine.stats().values
    assert set(values) <= set(METRIC_NAMES)
    assert values["requests_running"] == 1
    assert values["generation_tokens_total"] == 1
    assert values["prompt_tokens_total"] == 19
    words = ("token_states", "reserved", "internal", "external", "cached", "free")
    assert sum(values[f"ledger_{word}"] for word in words) == values["kv_slots_reserved"]
    assert values["kv_usage"] == values["kv_slots_allocated"] / values["kv_slots_reserved"]


def test_histogram_buckets_are_upper_bounds() -> None:
    histogram = Histogram([1.0, 2.0])
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 14.0


def test_times_count_tokens_and_requests(rng: random.Random) -> None:
    engine, _ = make_engine()
    run(engine, *(request(f"r{i}", "abc", replace(GREEDY, max_tokens=5)) for i in range(3)))
    assert sum(engine.times.time_to_first_token.counts) == 3
    assert sum(engine.times.inter_token.counts) == 12
    assert sum(engine.times.end_to_end.counts) == 3
    assert sum(engine.times.step.counts) == 5
    assert engine.times.finished == {"stop": 0, "length": 3, "abort": 0, "error": 0}
