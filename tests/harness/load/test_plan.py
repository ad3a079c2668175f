"""Plans: options and YAML give the same strict document; schedules are the same for every engine."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from harness.load.plan import PlanError, load_plan, make_plan, parse_engine, parse_slo
from harness.load.schedule import Schedule, build_schedules
from workloads.request import Load
from workloads.tokens import WordCounter

ENGINE = {"name": "a", "url": "http://127.0.0.1:1"}


def schedules(**values: Any) -> list[Schedule]:
    plan = make_plan({"engines": [ENGINE], **values}, "test")
    return list(build_schedules(plan, WordCounter(), 512))


def test_engines_by_url_and_by_recipe() -> None:
    assert parse_engine("a=http://h:1/v1") == {"name": "a", "url": "http://h:1/v1"}
    assert parse_engine("b=recipe:reference,policy=paged,extra=--x\\,y") == {
        "name": "b",
        "recipe": "reference",
        "settings": {"policy": "paged", "extra": "--x,y"},
    }
    plan = make_plan({"engines": ["a=http://h:1", "b=recipe:reference,policy=paged"], "workloads": "chat:turns=2"}, "t")
    assert [engine.name for engine in plan.engines] == ["a", "b"]
    assert plan.workloads[0].parameters == {"turns": "2"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"engine": []}, "unknown key 'engine'; did you mean 'engines'"),
        ({"engines": [{**ENGINE, "setings": {}}]}, "engines.0.setings'; did you mean 'settings'"),
        ({"timeouts": {"frist": 1}}, "did you mean 'first'"),
        ({"workloads": [{"name": "chat", "parameter": {}}]}, "did you mean 'parameters'"),
        ({"engines": []}, "engines"),
        ({"engines": [ENGINE, ENGINE]}, "two engines are called 'a'"),
        ({"engines": [{"name": "a"}]}, "either a url or a recipe"),
        ({"engines": [{"name": "a", "url": "h:1"}]}, "must begin with http"),
        ({"engines": ["justaurl"]}, "should read NAME=URL"),
        ({"workloads": ["chta"]}, "did you mean 'chat'"),
        ({"workloads": [{"name": "chat", "parameters": {"turn": 2}}]}, "did you mean 'turns'"),
        ({"concurrency": 0}, "concurrency of at least 1"),
        ({"rate": [-1.0]}, "rate above 0"),
        ({"duration": 0}, "greater than 0"),
        ({"repeats": 0}, "repeats"),
        ({"slo": {"tftt": 3}}, "'tftt' is not one of ttft"),
        ({"slo": {"ttft": 0}}, "above 0"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_mistakes_get_one_sentence(values: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        make_plan({"engines": [ENGINE], **values}, "plan.yaml")
    assert "\n" not in str(caught.value)


def test_yaml_files(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(
        "engines:\n  - a=http://h:1\nworkloads:\n  - chat\n  - name: concurrency\n    parameters: {levels: [1, 2]}\n"
    )
    plan = make_plan(load_plan(file), str(file))
    assert plan.workloads[1].make().loads() == (Load("closed", concurrency=1), Load("closed", concurrency=2))
    file.write_text("a: [")
    with pytest.raises(PlanError, match="is not YAML"):
        load_plan(file)
    file.write_text("- a")
    with pytest.raises(PlanError, match="must hold a mapping"):
        load_plan(file)
    with pytest.raises(PlanError, match="cannot read"):
        load_plan(tmp_path / "none.yaml")


def test_slo_syntax() -> None:
    assert parse_slo(["ttft:200 tpot:50", "e2e=3000"]) == {"ttft": 200, "tpot": 50, "e2e": 3000}
    with pytest.raises(PlanError, match="METRIC:MILLISECONDS"):
        parse_slo(["ttft"])


def test_every_schedule_has_its_own_key_and_seed() -> None:
    made = schedules(workloads=["chat", "chat:scale=0.5", "concurrency:levels=1+2"], repeats=2, seed=5, num_requests=3)
    assert len(made) == 2 + 2 + 4
    assert len({schedule.key for schedule in made}) == len(made)
    assert len({schedule.workload.digest for schedule in made}) == len(made)


def test_the_same_plan_gives_the_same_digests() -> None:
    seed = random.randrange(10**6)
    values: dict[str, Any] = {"rate": [20.0], "seed": seed, "num_requests": 10, "warmup": 3}
    first, second = schedules(**values), schedules(**values)
    assert [s.workload.digest for s in first] == [s.workload.digest for s in second]
    assert first[0].arrivals_ns is not None
    assert second[0].arrivals_ns is not None
    assert first[0].requests == second[0].requests
    # Warm-up prompts are new each time: a second run must not find them in a cache.
    assert first[0].warmup != second[0].warmup


def test_warmup_comes_first_and_is_named_by_negative_indices() -> None:
    (schedule,) = schedules(workloads=["chat:turns=2,scale=0.05"], rate=[5.0], num_requests=6, warmup=4)
    assert [request.index for request in schedule.warmup] == [-4, -3, -2, -1]
    assert [request.after for request in schedule.warmup] == [None, -4, None, -2]
    assert [request.index for request in schedule.requests] == list(range(6))
    assert schedule.arrivals_ns is not None
    assert len(schedule.arrivals_ns) == 2 + 3  # one for each conversation
    assert list(schedule.arrivals_ns) == sorted(schedule.arrivals_ns)


def test_how_many_requests() -> None:
    assert len(schedules(concurrency=[10])[0].requests) == 40
    assert len(schedules(concurrency=[1])[0].requests) == 16
    assert len(schedules(num_requests=7)[0].requests) == 7
    (pool,) = schedules(concurrency=[2], duration=10.0)
    assert (len(pool.requests), pool.is_pool) == (200, True)
    (exact,) = schedules(concurrency=[2], duration=10.0, num_requests=5)
    assert (len(exact.requests), exact.is_pool) == (5, False)
    (rounds,) = schedules(workloads=[{"name": "chat", "rounds": 3}], concurrency=[5], num_requests=99)
    assert len(rounds.requests) == 15
    (timed,) = schedules(rate=[50.0], duration=4.0)
    assert timed.arrivals_ns is not None
    assert len(timed.requests) == len(timed.arrivals_ns) == pytest.approx(200, abs=75)
    assert max(timed.arrivals_ns) < 4e9
