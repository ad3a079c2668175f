"""The examples of docs/reports.md run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "reports.md"


def test_the_notebook_example_runs(
    demo_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert '"runs/demo"' in code
    exec(code.replace('"runs/demo"', repr(str(demo_run))), {})  # noqa: S102
    printed = capsys.readouterr().out
    assert printed.startswith("VALID\n")
    assert "Output tokens/s −" in printed


def test_the_template_example_is_a_page(tmp_path: Path) -> None:
    from jinja2 import ChoiceLoader, DictLoader

    from reports.shell import environment

    (template,) = re.findall(r"```jinja\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    found = environment()
    found.globals["interactive"] = None
    assert found.loader is not None
    found.loader = ChoiceLoader([DictLoader({"paper": template}), found.loader])
    text = found.get_template("paper").render(charts=[])
    assert "<h1>The answer in one sentence.</h1>" in text
    assert text.startswith("<!doctype html>")
