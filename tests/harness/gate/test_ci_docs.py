"""The workflows of docs/ci.md: valid by their JSON schemas, and with commands that the tool understands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import check_jsonschema
import pytest
import yaml
from jsonschema import Draft7Validator, ValidationError
from typer.testing import CliRunner

from harness.cli.main import app

PAGE = Path(__file__).parents[3] / "docs" / "ci.md"
SCHEMAS = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"


def blocks() -> list[tuple[str, Any]]:
    found = re.findall(r"<!-- schema: ([\w-]+) -->\n```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    # GitHub's key "on" is a boolean to YAML 1.1.
    return [(name, yaml.load(text, Loader=yaml.BaseLoader)) for name, text in found]  # noqa: S506


def schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def typed(value: Any) -> Any:
    """Numbers and booleans back from the text that BaseLoader gives."""
    if isinstance(value, dict):
        return {key: typed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [typed(part) for part in value]
    if value == "":
        return None
    if value in ("true", "false"):
        return value == "true"
    return int(value) if isinstance(value, str) and value.isdigit() else value


@pytest.mark.parametrize(("name", "document"), blocks(), ids=lambda value: value if isinstance(value, str) else "")
def test_workflows_are_valid(name: str, document: Any) -> None:
    Draft7Validator(schema(name)).validate(typed(document))


def test_both_workflows_are_there_and_the_schema_refuses_a_broken_one() -> None:
    found = dict(blocks())
    assert set(found) == {"github-workflows", "gitlab-ci"}
    broken = typed(found["github-workflows"])
    broken["jobs"]["gate-cpu"]["stepz"] = []
    with pytest.raises(ValidationError):
        Draft7Validator(schema("github-workflows")).validate(broken)


def gate_commands() -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r">-\n((?:      .*\n)+)", lambda folded: folded[1].replace("\n", " ") + "\n", text)
    lines = re.findall(r"^\s*(?:- )?\s*\S*?pagedbench\"? (gate) (.*?)(?:\|\| code.*)?$", text, re.MULTILINE)
    return [[command, *shlex.split(rest, comments=True)] for command, rest in lines]


@pytest.mark.parametrize("words", gate_commands(), ids=lambda words: " ".join(words)[:40])
def test_gate_commands_are_understood(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*words, *([] if "--explain" in words or "--init" in words else ["--explain"])])
    assert done.exit_code == 0, done.output


def test_there_are_gate_commands_to_check() -> None:
    assert len(gate_commands()) >= 8
