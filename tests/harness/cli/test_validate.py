"""``pagedbench validate``, and every plan in docs/examples: sound, and giving the schedule that it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli.errors import CliError
from harness.cli.validate import validate

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "docs" / "examples").glob("*.yaml"))


def printed(capsys: pytest.CaptureFixture[str], file: Path, **more: Any) -> str:
    validate(file, **{"tokenizer": None, "max_model_len": None, "as_json": False, **more})
    return capsys.readouterr().out


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_are_sound(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("PAGEDBENCH_EXT", "/ext")
    text = printed(capsys, file)
    assert "engine" in text.splitlines()[-1]
    document = json.loads(printed(capsys, file, as_json=True))
    assert document["engines"]
    for schedule in document["schedules"]:
        assert len(schedule["workload"]["digest"]) == 64
        assert schedule["requests"]


def test_there_are_examples() -> None:
    assert {"three-engines", "gpu-scale", "find-max", "kv-pressure"} <= {file.stem for file in EXAMPLES}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("engnies: [a=http://h:1]", "unknown key 'engnies'; did you mean 'engines'"),
        ("engines: [a=http://h:1]\nfind_max: {over: rate, precison: 1}", "did you mean 'precision'"),
        ("engines: [a=http://h:1]\nfind_max: rate", "needs at least one SLO"),
        ("engines: [a=http://h:1]\nfind_max: speed\nslo: {ttft: 1}", "rate"),
        ("engines: [a=http://h:1]\nfind_max: rate\nslo: {ttft: 1}\nrate: [3]", "chooses the rate itself"),
        ("engines: [a=recipe:refrence]", "did you mean 'reference'"),
        ("engines: ['a=recipe:reference,kv_memry=1']", "did you mean 'kv_memory'"),
        ("engines: ['a=${NO_SUCH_VARIABLE}']", "environment variable NO_SUCH_VARIABLE"),
        ("engines: [a=http://h:1]\nworkloads: [trace]", "needs a file"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(CliError, match=words) as caught:
        validate(file)
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)


def test_a_tokenizer_changes_the_digest_and_nothing_is_contacted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("engines: [a=http://127.0.0.1:9]\nworkloads: ['chat:scale=0.1']\nnum_requests: 4\n")
    text = printed(capsys, file)
    assert "a: runs already at http://127.0.0.1:9" in text
    assert "1 cells for each of 1 engine: 4 requests" in text
