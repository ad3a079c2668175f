"""``pagedbench history`` as a command."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from harness.cli.main import app
from harness.gate.record_file import write_record
from tests.harness.gate.test_history import record

runner = CliRunner()


def test_add_then_show(tmp_path: Path) -> None:
    for day in range(1, 4):
        write_record(record(day), tmp_path / f"{day}.json")
    files = [str(tmp_path / f"{day}.json") for day in range(1, 4)]
    folder = ["--history", str(tmp_path / "h")]
    assert runner.invoke(app, ["history", "add", *files, *folder]).exit_code == 0
    said = runner.invoke(app, ["history", "show", *folder, "--out", str(tmp_path / "page")])
    assert said.exit_code == 0
    assert "3 gates" in said.output
    assert "nine times in ten" in said.output
    assert (tmp_path / "page" / "history.html").is_file()
    document = json.loads(runner.invoke(app, ["history", "show", *folder, "--json"]).output)
    assert document["gates"] == 3
    again = runner.invoke(app, ["gate", "--explain", *folder])
    assert "up to 20 pairs" in again.output


def test_an_empty_history_is_one_sentence(tmp_path: Path) -> None:
    done = runner.invoke(app, ["history", "show", "--history", str(tmp_path)])
    assert "no gate in" in str(done.exception)
