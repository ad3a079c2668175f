"""`pagedbench compare`: stdout, files, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MANIFEST = {
    "schema_version": 1, "created_utc": "2026-11-23T07:40:00Z", "tool_version": "0.1.0", "command": ["pagedbench"],
    "seed": 1, "engines": [{"name": "paged", "url": "http://127.0.0.1:1"}], "status": "complete",
    "machine": {"hostname": "h", "os": "Linux", "cpu": "c", "cores": 2, "memory_bytes": 1, "python": "3", "packages": {}},
}  # fmt: skip
EMPTY = {name: {"n": 0} for name in ("ttft", "ttft_queue", "ttft_schedule", "itl", "tpot", "e2e")}


def write_run(path: Path, speed: float | None, repeats: int = 5) -> Path:
    path.mkdir()
    workload = {"name": "chat", "parameters": {}, "seed": 1, "digest": "d"}
    load = {"mode": "closed", "concurrency": 4}
    cells = [
        {"cell_id": f"c{i}", "engine": "paged", "workload": workload, "load": load, "repeat": i, "status": "complete"}
        for i in range(repeats)
    ]
    rows = [
        {"cell_id": f"c{i}", "engine": "paged", "workload": "chat", "load": load, "repeat": i, "validity": "VALID",
         "requests_sent": 4, "requests_ok": 4, "requests_failed": 0,
         "output_tokens_per_s": None if speed is None else speed + i, **EMPTY}
        for i in range(repeats)
    ]  # fmt: skip
    (path / "run.json").write_text(json.dumps(MANIFEST | {"run_id": path.name, "cells": cells}))
    (path / "summary.json").write_text(json.dumps({"schema_version": 1, "run_id": path.name, "cells": rows}))
    return path


def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_table_for_people_and_every_view_as_a_file(tmp_path: Path) -> None:
    base, new = write_run(tmp_path / "base", 1000), write_run(tmp_path / "new", 900)
    done = compare(base, new, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "paged (new) against paged (base), chat, 4 at once" in done.stdout
    assert "worse" in done.stdout
    names = {"compare.html", "compare.md", "compare.csv", "compare.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert "<script" not in (tmp_path / "out" / "compare.html").read_text()


def test_json_is_the_only_thing_on_stdout(tmp_path: Path) -> None:
    base, new = write_run(tmp_path / "base", 1000), write_run(tmp_path / "new", None)
    done = compare(base, new, "--json", "--out", tmp_path / "out")
    document = json.loads(done.stdout)
    assert [row["verdict"] for row in document["changes"]] == ["not measured"]
    assert document["changes"][0]["change"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "does not exist"),
        (["base", "base"], "was given twice"),
        (["base", "--base", "x"], "--base 'x' is none of the engines compared"),
        (["base", "-f", "pdf"], "choose one of table, md, csv, json, html"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    write_run(tmp_path / "base", 1000)
    done = compare(*[tmp_path / word if word in ("base", "nowhere") else word for word in arguments])
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_another_schema_is_one_sentence(tmp_path: Path) -> None:
    base, new = write_run(tmp_path / "base", 1000), write_run(tmp_path / "new", 900)
    text = (new / "run.json").read_text()
    (new / "run.json").write_text(text.replace('"schema_version": 1', '"schema_version": 99'))
    done = compare(base, new)
    assert done.returncode == 2
    assert "has schema version 99" in done.stderr
    assert "Traceback" not in done.stderr
