"""The import walls of the house: who may import whom, read from the source and checked at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("workloads", "reference_engine", "harness", "reports")
TORCH_FREE = ("config", "request", "plan", "kv", "policies", "admission", "waiting", "scheduler")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it (function bodies too), as absolute names."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_allowed(importer: str, imported: str) -> bool:
    """The rule of the house for one import between rooms."""
    source, target = importer.split(".")[0], imported.split(".")[0]
    if importer.startswith("harness.cli"):
        return True
    if imported.startswith("harness.cli"):
        return False
    if source == target:
        return True
    if source == "harness":
        return target == "workloads"
    if source == "reports":
        return imported in ("harness", "harness.results") or imported.startswith("harness.results.")
    return False


FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_walls_hold(path: Path) -> None:
    importer = module_name(path)
    wrong = {name for name in imports_of(path) if name.split(".")[0] in ROOMS and not is_allowed(importer, name)}
    assert not wrong, f"{importer} must not import {sorted(wrong)}"


def test_the_rule_refuses_what_it_should() -> None:
    assert not is_allowed("workloads.chat", "harness.load.client")
    assert not is_allowed("reference_engine.engine", "workloads.chat")
    assert not is_allowed("harness.load.client", "reference_engine.engine")
    assert not is_allowed("harness.load.client", "harness.cli.run")
    assert not is_allowed("reports.page", "harness.load.client")
    assert is_allowed("harness.cli.serve", "reference_engine.server")
    assert is_allowed("reports.page", "harness.results.schema")


def modules_loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


def torch_free_modules() -> list[str]:
    return [
        name
        for path in FILES
        if (name := module_name(path)).startswith("reference_engine.") and name.split(".")[1] in TORCH_FREE
    ]


def test_scheduler_and_below_import_no_torch() -> None:
    modules = torch_free_modules()
    assert len(modules) > len(TORCH_FREE)
    loaded = modules_loaded_by("\n".join(f"import {name}" for name in modules))
    assert "torch" not in loaded


def test_load_client_imports_neither_torch_nor_pandas() -> None:
    modules = [name for path in FILES if (name := module_name(path)).startswith(("harness.load", "harness.telemetry"))]
    assert len(modules) > 3
    loaded = modules_loaded_by("\n".join(f"import {name}" for name in modules))
    assert not {"torch", "pandas", "altair", "transformers"} & loaded


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['pagedbench', '--help']\nfrom harness.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    loaded = modules_loaded_by(code)
    assert not {"torch", "pandas", "pyarrow", "aiohttp", "rich", "altair", "numpy"} & loaded
