"""Profiles: the cost of a step, and files that cannot be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reference_engine.config import ConfigError
from reference_engine.plan import BlockCopy, ScheduledSeq, StepPlan
from reference_engine.simulate.profile import FOLDER, SOURCES, load_profile, names


@pytest.mark.parametrize("name", names())
def test_every_number_of_a_profile_says_where_it_comes_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    costs = {"fixed", "per_sequence", "weights", "per_context_token", "per_token", "page_overhead", "swap_token"}
    assert costs <= profile.sources.keys()
    assert {text.split(":")[0] for text in profile.sources.values()} <= set(SOURCES)


def test_a_decode_step_costs_weights_context_and_sequences() -> None:
    profile = load_profile("a100-opt-13b")
    parts = tuple(ScheduledSeq(i, 99, (1,), tuple(range(7)), 1) for i in range(10))
    seconds = profile.step_seconds(StepPlan(0, parts), 16)
    context = 1000 * 819200 / 1.555e12 * (1 + profile.page_overhead / 16)
    assert seconds == pytest.approx(profile.fixed + 10 * profile.per_sequence + 26e9 / 1.555e12 + context)


def test_a_long_prompt_is_bound_by_arithmetic_and_copies_are_added() -> None:
    profile = load_profile("a100-opt-13b")
    part = ScheduledSeq(0, 0, (1,) * 2000, tuple(range(125)), 1)
    bare = profile.step_seconds(StepPlan(0, (part,)), 16)
    assert bare == pytest.approx(profile.fixed + profile.per_sequence + 2000 * profile.per_token)
    copied = profile.step_seconds(StepPlan(0, (part,), (BlockCopy(0, 1), BlockCopy(2, 3))), 16)
    assert copied - bare == pytest.approx(32 * profile.copy_block_token)


def test_swapping_small_blocks_costs_more_calls() -> None:
    profile = load_profile("h100-llama-3.1-8b")
    assert profile.swap_seconds(512, 1) > 4 * profile.swap_seconds(512, 64)


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no simulation profile 'a100'; choose one of a100-opt-13b, h100-llama"):
        load_profile("a100")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed": -1.0}, "fixed cannot be -1.0"),
        ({"kv_slots": 1.5}, "kv_slots cannot be 1.5"),
        ({"roofline": 1}, "roofline cannot be 1"),
        ({"speed": 2}, "fields missing or not known: speed"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    raw = json.loads((FOLDER / "a100-opt-13b.json").read_text())
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw | change))
    with pytest.raises(ConfigError, match=message):
        load_profile(str(path))
