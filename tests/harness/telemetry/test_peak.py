"""Peak KV use of a run equals what the emulator says of itself, although the pool is empty when the run ends."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.emulator.options import make_options
from harness.emulator.process import spawned
from harness.load.plan import make_plan
from harness.load.progress import Progress
from harness.load.session import Session
from harness.results.schema import CellInfo


class Quiet:
    def note(self, sentence: str) -> None: ...

    def cell_started(self, cell: CellInfo, progress: Progress, scrapers: Sequence[Any]) -> None: ...

    def cell_ended(self, cell: CellInfo, progress: Progress) -> None: ...


async def test_the_peak_is_the_scripts(tmp_path: Path) -> None:
    # Blocks of 128 slots: each of six requests holds one block from its admission to its end, some 0.6 s.
    with spawned(make_options(ttft_ms=100, itl_ms=10, kv_tokens=4096, block_size=128)) as url:
        plan = {
            "engines": [f"a={url}"],
            "workloads": "concurrency:input=16,output=50,levels=6",
            "num_requests": 12,
            "max_model_len": 128,
        }
        summary = await Session(make_plan(plan, "test"), tmp_path / "run", Quiet()).run()
        with urllib.request.urlopen(f"{url}/truth", timeout=5) as answer:
            truth = json.load(answer)
    (cell,) = summary.cells
    assert cell.kv_peak_tokens == 6 * 128
    assert cell.kv_left_over == 0
    assert cell.running_max == 6
    # The client's own curve agrees with the engine's: prompt and answer of six requests at the same time.
    assert cell.client_live_peak == pytest.approx(6 * 66, rel=0.1)
    assert "peak" in json.dumps(truth)
