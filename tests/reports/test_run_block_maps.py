"""Block maps in the report of a run that holds a plan log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reports import build_report, load_dataset
from reports.run_block_maps import DRAWN, block_map_figures, fullest_step


def step(number: int, held: int, blocks: int = 12) -> str:
    part = {"seq_id": 1, "start": 0, "tokens": [7], "block_table": list(range(held)), "num_samples": 1}
    line = {"step": number, "seqs": [part] if held else [], "num_blocks": blocks, "block_size": 4}
    return json.dumps(line | {"owners": {"1": "req-<a>"} if held else {}, "held": {}, "reserved": {}}) + "\n"


def test_the_fullest_step_is_found_among_few_and_near_the_top_among_many(tmp_path: Path) -> None:
    log = tmp_path / "x.plans.jsonl"
    log.write_text("".join(step(i, held) for i, held in enumerate([0, 3, 9, 4, 0])))
    found = fullest_step(log)
    assert found is not None
    assert found["step"] == 2
    log.write_text("".join(step(i, min(i, 5000 - i) // 10, 300) for i in range(5000)))
    found = fullest_step(log)
    assert found is not None
    assert abs(found["step"] - 2500) < 100


def test_a_log_that_was_cut_short_or_is_none_never_stops_the_report(tmp_path: Path) -> None:
    log = tmp_path / "x.plans.jsonl"
    log.write_text(step(1, 2) + step(2, 5)[:40])
    found = fullest_step(log)
    assert found is not None
    assert found["step"] == 1
    for text in ("", "hello\n", '{"step": 3}\n', "[]\n", "\x00\n", step(1, 40)):
        log.write_text(text)
        assert fullest_step(log) is None


def test_the_report_of_a_run_with_a_log_draws_its_map(draft: Any, engines: Any, tmp_path: Path) -> None:
    path = draft([engines["paged"]], workloads=["chat"]).write(tmp_path / "run")
    assert block_map_figures(load_dataset([path])) == []
    assert "Who held which block" not in build_report(path).read_text()
    (path / "logs").mkdir()
    (path / "logs" / "paged.plans.jsonl").write_text(step(7, 3) + step(8, 0))
    (path / "logs" / "other.plans.jsonl").write_text("no log\n")
    page = build_report(path).read_text()
    assert "Who held which block" in page
    assert "Step 7: 3 of 12 blocks of 4 tokens held, 0 shared." in page
    assert "block 2: written by this step, req-&lt;a&gt; (sequence 1)" not in page  # only the last block is written
    assert "block 0: written by this step, req-&lt;a&gt; (sequence 1)" in page
    assert "<td>A req-&lt;a&gt;<td>3<td>0<td>0" in page
    assert "other.plans.jsonl holds no step to draw." in page
    assert build_report(path).read_text() == page


def test_a_large_pool_is_cut_and_says_so(draft: Any, engines: Any, tmp_path: Path) -> None:
    path = draft([engines["paged"]], workloads=["chat"]).write(tmp_path / "run")
    (path / "logs").mkdir()
    (path / "logs" / "paged.plans.jsonl").write_text(step(1, 5000, 60_000))
    (figure,) = block_map_figures(load_dataset([path]))
    assert figure.svg.count("<rect") == DRAWN
    assert len(figure.svg) < 120_000
    assert any("pagedbench blockmap logs/paged.plans.jsonl --step 1 draws all" in note for note in figure.notes)
