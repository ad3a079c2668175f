"""The command's table of subcommands, its help, and the sentences that end it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from harness.cli.main import COMMANDS, load


def pagedbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "harness.cli", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_entry_names_a_function_that_exists(name: str) -> None:
    module, _, function = COMMANDS[name].target.partition(":")
    assert callable(getattr(import_module(module), function))
    assert callable(load(COMMANDS[name]))


def test_help_lists_every_subcommand_with_its_whole_summary() -> None:
    shown = " ".join(pagedbench("--help").stdout.split())
    for name, entry in COMMANDS.items():
        assert f"{name} {entry.summary}" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_subcommand(name: str) -> None:
    done = pagedbench(name, "--help")
    assert done.returncode == 0
    assert "Usage: pagedbench" in done.stdout or f"Usage: python -m harness.cli {name}" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("serve", "--nonsense"), "No such option"),
        (("serve", "--block-size", "many"), "--block-size"),
        (("serve", "--model", "no/such/place"), "no/such/place"),
        (("serve", "--kv-memory", "lots"), "lots"),
        (("run",), "--engine"),
        (("run", "--engine", "nonsense"), "nonsense"),
        (("report", "no-such-run"), "no-such-run"),
    ],
)
def test_bad_input_gets_a_sentence_and_a_usage_code(arguments: tuple[str, ...], sentence: str) -> None:
    done = pagedbench(*arguments)
    assert done.returncode in (2, 3)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_version() -> None:
    assert pagedbench("--version").stdout.startswith("pagedbench ")
