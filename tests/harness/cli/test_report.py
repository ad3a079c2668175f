"""`pagedbench report`: what it writes where, and one sentence for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MANIFEST = {
    "schema_version": 1,
    "run_id": "r1",
    "created_utc": "2026-11-23T07:40:00Z",
    "tool_version": "0.1.0",
    "command": ["pagedbench", "run"],
    "seed": 1,
    "machine": {
        "hostname": "h",
        "os": "Linux",
        "cpu": "c",
        "cores": 2,
        "memory_bytes": 1 << 30,
        "python": "3.11",
        "packages": {},
    },
    "engines": [{"name": "paged", "url": "http://127.0.0.1:1"}],
    "cells": [
        {
            "cell_id": "paged.chat.c1.r0",
            "engine": "paged",
            "workload": {"name": "chat", "parameters": {}, "seed": 1, "digest": "d"},
            "load": {"mode": "closed", "concurrency": 1},
        }
    ],
    "status": "interrupted",
}


def write_run(path: Path, run_id: str = "r1") -> Path:
    """A run that was killed before its first request."""
    path.mkdir()
    (path / "run.json").write_text(json.dumps(MANIFEST | {"run_id": run_id}))
    return path


def report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_page_lies_in_the_run_directory_and_its_path_is_printed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    done = report(run)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(run / "report.html")
    assert "did not finish (status: interrupted)" in (run / "report.html").read_text()


def test_several_formats_and_runs_go_to_a_folder(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name) for name in ("a", "b")]
    done = report(*runs, "-f", "md", "-f", "csv", "-f", "json", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md", "report.csv", "report.json"}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["runs"] == ["a", "b"]


def test_markdown_to_stdout_for_a_job_summary(tmp_path: Path) -> None:
    done = report(write_run(tmp_path / "run"), "--format", "md", "--out", "-")
    assert done.returncode == 0
    assert done.stdout.startswith("## ")
    assert not list((tmp_path / "run").glob("report*"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["absent"], 2, "absent does not exist; give a run directory"),
        (["."], 2, "holds no run.json"),
        (["run", "--format", "pdf"], 2, "format 'pdf' is not known; choose one of html, md, csv, json"),
        (["run", "run"], 2, "name it with --out"),
        (["run", "run", "--out", "x.html"], 2, "was given twice"),
        (["run", "-f", "md", "-f", "csv", "--out", "-"], 2, "--out - takes one --format"),
        (["run", "-f", "md", "-f", "csv", "--out", "file"], 2, "several formats need a folder"),
        (["run", "--out", "file/below/x.html"], 4, "could not be written to"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    done = report(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
