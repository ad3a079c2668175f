"""Which engines are installed: a recipe's version probe, run once."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Mapping

from harness.engines.errors import RecipeError
from harness.engines.recipe import Recipe, fill
from harness.engines.settings import Value

PROBE_TIMEOUT_S = 20.0


def installed_version(recipe: Recipe, values: Mapping[str, Value] | None = None) -> str | None:
    """Version of the engine that ``recipe`` would start, or None when it is not installed.

    A Python engine is asked for its distribution's version without importing it; a program is run with the recipe's
    version command.
    """
    values = values or {}
    try:
        if recipe.version is not None:
            words = recipe.variables(values, port=0)
            output = run([fill(part, words, recipe.name) for part in recipe.version.command])
            match = re.search(recipe.version.pattern, output or "")
            return match[1] if match else None
        if recipe.python is not None and recipe.python.package is not None:
            return distribution_version(recipe.interpreter(values), recipe.python.package)
        if recipe.program is not None:
            return "unknown" if recipe.executable(values) else None
    except RecipeError:
        return None
    return None


def require_installed(recipe: Recipe, values: Mapping[str, Value]) -> None:
    """Raises RecipeError, saying how to get it, when an engine of another Python environment is not there."""
    if recipe.python is None or recipe.python.venv is None or installed_version(recipe, values) is not None:
        return  # a program is looked up when the command is made; our own environment is the one that runs us
    where = recipe.interpreter(values)
    hint = f"; install it with: {recipe.install}" if recipe.install else ""
    raise RecipeError(
        f"recipe {recipe.name!r}: {recipe.python.package} is not installed for {where} "
        f"(set PAGEDBENCH_EXT to the folder of environments, or the setting python){hint}"
    )


def distribution_version(python: str, package: str) -> str | None:
    """Version of ``package`` in the environment of the interpreter ``python``."""
    if python == sys.executable:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    output = run([python, "-I", "-c", code])
    return output.strip() if output else None


def run(command: list[str]) -> str | None:
    """Standard output and error of a command that ends well within the time limit, else None."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout + done.stderr
