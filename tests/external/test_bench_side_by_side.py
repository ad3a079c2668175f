"""The arithmetic of the side-by-side benchmark; the benchmark itself needs the engines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bench_side_by_side import DEFAULT_ENGINES, OURS, Levels, engines, table, verdicts

from harness.engines.catalogue import find
from harness.load.plan import make_plan

LEVELS = Levels((1, 8), 64, 96, None)


def cell(engine: str, level: int, rate: float | None, validity: str = "VALID") -> dict[str, Any]:
    return {"engine": engine, "concurrency": level, "output_tokens_per_s": rate, "validity": validity}


def test_the_best_of_a_group_counts_and_invalid_cells_do_not() -> None:
    cells = [
        *(cell(OURS, 8, rate) for rate in (200.0, 100.0, 240.0)),
        cell(OURS, 8, 9999.0, "INVALID"),
        *(cell("vllm", 8, rate) for rate in (100.0, 120.0)),
        *(cell("vllm-all-cores", 8, rate) for rate in (160.0, 161.0, 159.0)),
        cell("transformers-cb", 8, None),
    ]
    names = [OURS, "vllm", "vllm-all-cores", "transformers-cb"]
    assert verdicts(cells, names) == [
        {"concurrency": 8, "against": "vllm-all-cores", "ratio": 200 / 160, "wanted": 1.0, "met": True}
    ]
    text = table(cells, names, LEVELS)
    assert "200.0 (100.0-240.0) x3" in text
    assert "9999" not in text


def test_a_target_can_be_missed() -> None:
    cells = [cell(OURS, 1, 119.0), cell("vllm", 1, 100.0)]
    assert verdicts(cells, [OURS, "vllm"])[0]["met"] is False


@pytest.mark.parametrize("level", [1, 32])
def test_every_plan_is_one_that_pagedbench_takes(level: int, tmp_path: Path) -> None:
    known = engines(tmp_path, Levels((level,), 64, 96, 4), cores=2)
    assert set(DEFAULT_ENGINES) <= set(known)
    make_plan({"engines": [{"name": name, **one} for name, one in known.items()]}, "test")
    for one in known.values():
        find(one["recipe"]).plan(one["settings"], 1)


def test_pools_hold_all_requests() -> None:
    levels = Levels((1, 32), 64, 96, None)
    assert levels.context == 256
    known = engines(Path("m"), levels, cores=2)
    assert known["llama.cpp"]["settings"]["kv_tokens"] == 32 * 256
    assert known["transformers-cb"]["settings"]["kv_blocks"] * 32 >= 32 * 256
    assert known[OURS]["settings"]["kv_memory"] >= 32 * 256 * 46_080
