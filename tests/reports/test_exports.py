"""Markdown, CSV and JSON say what the page says, safely."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports import build_report, load_dataset, render
from reports.markdown import MAX_BYTES, escape


def test_markdown_has_the_headline_and_one_row_a_cell(demo_run: Path, demo_draft: Any) -> None:
    text = render(load_dataset([demo_run]), "md")
    assert text.startswith("## In the same KV memory \\(4,096 token slots\\), **paged** keeps ")
    assert "**VALID** (all 6 cells)" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(demo_draft.summary.cells)
    assert len({row.count(" | ") for row in rows}) == 1
    cell = demo_draft.cell("paged", "chat")
    assert f"| {cell.running_mean:,.1f} |" in rows[1]


def test_markdown_is_escaped_and_fits_a_job_summary(crowd_run: Path) -> None:
    text = render(load_dataset([crowd_run]), "md")
    assert "<script" not in text.replace("\\<", "")
    assert "- INVALID: vllm, chat, repeat 0: requests left late" in text
    assert len(text.encode()) <= MAX_BYTES


def test_markdown_beyond_its_limit_is_cut_and_says_so(draft: Callable[..., Any], engines: Any, tmp_path: Path) -> None:
    many = [engines["vllm"].__class__(f"engine-{i}-{'x' * 60}", tells="nothing") for i in range(60)]
    run = draft(many, workloads=["chat"], concurrency=[1, 2], requests=1)
    text = render(load_dataset([run.write(tmp_path / "run")]), "md")
    assert len(text.encode()) <= MAX_BYTES
    assert "more rows are in report.html and report.csv." in text


@pytest.mark.parametrize("text", ["a|b", "x\ny", "<b>", "[l](u)", "`c`", "**b**", "1. a", "~s~", "$x$"])
def test_escape_leaves_no_markup(text: str) -> None:
    found = escape(text)
    assert "\n" not in found
    for sign in "|<>[]`*~$":
        assert found.count(sign) == found.count(f"\\{sign}")


def test_csv_has_every_cell_and_empty_fields_for_what_was_not_measured(crowd_run: Path, hostile: str) -> None:
    rows = list(csv.DictReader(io.StringIO(render(load_dataset([crowd_run]), "csv"))))
    assert len(rows) == 20
    by_engine = {(row["engine"], row["workload"]): row for row in rows}
    assert by_engine["llama.cpp", "chat"]["kv_waste"] == ""
    assert by_engine["llama.cpp", "agents"]["errors.http_5xx"] == "3"
    assert float(by_engine["paged", "chat"]["ttft.p50"]) > 0
    assert by_engine["vllm", "chat"]["validity"] == "INVALID"
    assert (hostile, "chat") in by_engine


def test_a_spreadsheet_finds_no_formula(draft: Callable[..., Any], engines: Any, renamed: Any, tmp_path: Path) -> None:
    run = draft([renamed(engines["paged"], "=HYPERLINK(0)")], workloads=["chat"], requests=2)
    (row,) = csv.DictReader(io.StringIO(render(load_dataset([run.write(tmp_path / "run")]), "csv")))
    assert row["engine"] == "'=HYPERLINK(0)"


def test_json_is_strict_and_carries_the_verdict(draft: Callable[..., Any], engines: Any, tmp_path: Path) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"], requests=6)
    run.summary.cells[0].goodput = math.nan
    run.summary.cells[1].validity, run.summary.cells[1].reasons = "SUSPECT", ["the client was busy"]
    out = build_report(run.write(tmp_path / "run"), format="json")
    document = json.loads(out.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert out.name == "report.json"
    assert document["schema_version"] == 1
    assert document["verdict"]["validity"] == "SUSPECT"
    assert document["verdict"]["reasons"][0]["text"] == "the client was busy"
    assert document["cells"][0]["goodput"] is None
    assert document["cells"][0]["engine"] == "paged"


@pytest.mark.parametrize("format", ["md", "csv", "json"])
def test_the_same_run_gives_the_same_bytes(format: str, demo_run: Path, tmp_path: Path) -> None:
    one, two = (build_report(demo_run, tmp_path / str(i) / "r", format).read_bytes() for i in range(2))
    assert one == two
