"""What the fingerprint says of engines, times and commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports.dataset import load_dataset
from reports.fingerprint import command_words, date_words, fingerprint, notable_settings, raw_files


def test_settings_that_tell_engines_apart_come_first(demo_run: Path) -> None:
    data = load_dataset([demo_run])
    one, two = data.engines
    one.info.settings = {
        "block_size": 16,
        "policy": "paged",
        "kv_memory": 192 << 20,
        "secret": "x",
        "attention": "gather",
    }
    two.info.settings = one.info.settings | {"attention": "naive"}
    assert notable_settings(one, data.engines) == [
        "attention gather",
        "policy paged",
        "block_size 16",
        "kv_memory 192 MiB",
    ]
    one.info.model = "/srv/models/SmolLM2"
    assert dict(fingerprint(data))["Model"] == "SmolLM2, SmolLM2-135M-Instruct, float32"


@pytest.mark.parametrize(
    ("iso", "words"),
    [
        ("2026-11-23T08:12:27+00:00", "2026-11-23 08:12 UTC"),
        ("2026-11-23T09:12:27+01:00", "2026-11-23 08:12 UTC"),
        ("2026-11-23T07:40:00Z", "2026-11-23 07:40 UTC"),
        ("yesterday", "yesterday"),
    ],
)
def test_dates(iso: str, words: str) -> None:
    assert date_words(iso) == words


def test_commands_can_be_pasted() -> None:
    assert command_words(["/venv/bin/pagedbench", "run", "a b"]) == "pagedbench run 'a b'"
    assert command_words(["/x/harness/cli/main.py", "demo"]) == "pagedbench demo"
    assert command_words([]) == ""


def test_raw_files_are_those_that_exist(demo_draft: Any, tmp_path: Path) -> None:
    path = demo_draft.write_killed(tmp_path / "run")
    (path / "logs").mkdir()
    (path / "logs" / "engine 1.log").touch()
    found = raw_files(path)
    assert found[0] == "run.json"
    assert "requests.jsonl" in found
    assert "summary.json" not in found
    assert found[-1] == "logs/engine 1.log"
