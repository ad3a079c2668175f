"""The suite against the reference engine with the sentinel: what holds passes, and what was not exercised is no pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.conformance.context import Options
from harness.conformance.runner import run_suite
from harness.engines.catalogue import find
from harness.engines.launch import launched

SAMPLE = [
    "API-01",
    "API-04",
    "API-06",
    "API-08",
    "API-15",
    "API-20",
    "API-21",
    "API-22",
    "API-23",
    "STR-01",
    "STR-03",
    "STR-07",
    "TOK-01",
    "TOK-06",
    "SMP-06",
    "SMP-07",
    "SMP-14",
    "SMP-15",
    "LGP-01",
    "LGP-03",
    "LGP-07",
    "NUM-02",
    "NUM-12",
    "BAT-04",
    "BAT-06",
    "PFX-01",
    "PFX-04",
    "PFX-10",
    "PRE-01",
    "PRE-03",
    "LIF-01",
    "LIF-03",
    "ERR-02",
    "ERR-06",
    "MET-02",
    "MET-05",
    "MEM-01",
    "MEM-02",
    "INT-03",
    "INT-07",
]
QUICK = Options(effort=0.2)


@asynccontextmanager
async def engine(logs: Path, **settings: Any) -> AsyncIterator[str]:
    chosen = {
        "model": "sentinel",
        "kv_blocks": 128,
        "max_num_seqs": 16,
        "threads": 1,
        "debug_endpoints": "true",
        **settings,
    }
    async with launched(find("reference"), chosen, logs) as running:
        yield running.url


@pytest.mark.slow
async def test_a_sound_engine_passes(tmp_path: Path) -> None:
    async with engine(tmp_path) as url:
        result = await run_suite(url, SAMPLE, QUICK)
    wrong = [(case.id, case.verdict, case.reason) for case in result.results if case.verdict != "PASS"]
    assert not wrong
    assert result.exit_code == 0
    rungs = {case.id: case.rungs for case in result.results}
    assert rungs["NUM-02"] == ["known"]
    assert rungs["LGP-03"] == ["self"]


@pytest.mark.slow
async def test_without_their_precondition_cases_are_inconclusive(tmp_path: Path) -> None:
    blind = ["PFX-01", "PFX-03", "PFX-04", "PFX-09", "MET-06", "PRE-01", "MET-07", "PRE-10"]
    async with engine(tmp_path, prefix_caching="false", kv_blocks=4096, max_num_seqs=4) as url:
        result = await run_suite(url, blind, QUICK)
    verdicts = {case.id: case.verdict for case in result.results}
    assert verdicts == dict.fromkeys(blind, "INCONCLUSIVE")
    assert result.exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "cases"),
    [
        ("max_completion_tokens", "API-20"),
        ("stop_token_ids", "API-21 API-22"),  # nothing is held back from an end that never comes
        ("min_tokens", "API-22"),
        ("include_stop_str_in_output", "API-23"),
        ("min_p", "SMP-14"),
        ("repetition_penalty", "SMP-15"),
        ("prompt_logprobs", "LGP-07"),
    ],
)
async def test_a_field_that_is_ignored_fails_its_case_and_no_other(tmp_path: Path, field: str, cases: str) -> None:
    asked = ["API-20", "API-21", "API-22", "API-23", "SMP-14", "SMP-15", "LGP-07"]
    async with engine(tmp_path, inject_fault=f"E12:field={field}") as url:
        result = await run_suite(url, asked, QUICK)
    failed = {one.id for one in result.results if one.verdict == "FAIL"}
    assert failed == set(cases.split()), [(one.id, one.verdict, one.reason) for one in result.results]
