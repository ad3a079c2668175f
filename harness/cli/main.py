"""The ``pagedbench`` command: a table of subcommands, each imported only when it runs, so that ``--help`` stays fast."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from harness.cli.errors import CliError, ExitCode

# What a wrong option raises: click's UsageError, which newer versions of typer carry within.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


class Entry(NamedTuple):
    """Where a subcommand lives (``module:function``) and the line that ``pagedbench --help`` shows for it."""

    target: str
    summary: str
    usage_exit: int = 2  # status after a wrong option; commands whose 2 is a verdict leave with another


class SubCommand(TyperCommand):
    """A subcommand that leaves with its own status when it is used wrongly."""

    usage_exit = 2

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            error.exit_code = self.usage_exit  # type: ignore[attr-defined]
            raise


COMMANDS: dict[str, Entry] = {
    "demo": Entry(
        "harness.cli.demo:demo", "Real small model, paged against contiguous KV, three workloads, one report."
    ),
    "serve": Entry("harness.cli.serve:serve", "Serve a model with the reference engine (OpenAI API)."),
    "run": Entry("harness.cli.run:run", "Drive engines with workloads; write a run directory and a report."),
    "conform": Entry(
        "harness.cli.conform:conform", "Ask whether an engine keeps its promises: the conformance suite.", usage_exit=3
    ),
    "compare": Entry("harness.cli.compare:compare", "Compare runs metric by metric, with intervals."),
    "report": Entry("harness.cli.report:report", "Rebuild the report of run directories (HTML, Markdown, CSV, JSON)."),
    "emulate": Entry(
        "harness.cli.emulate:emulate", "Serve an engine with exact scripted times, for calibration and tests."
    ),
    "gate": Entry(
        "harness.cli.gate:gate", "Judge a candidate against a baseline: pass, fail, inconclusive.", usage_exit=3
    ),
    "history": Entry("harness.cli.history:history", "Keep gates and show the trend of their metrics.", usage_exit=3),
    "calibrate": Entry("harness.cli.calibrate:calibrate", "Measure this machine's own client error and ceiling."),
    "engines": Entry("harness.cli.engines:engines", "List the engines that can be launched and what is installed."),
    "workloads": Entry(
        "harness.cli.workloads:workloads", "Print the exact schedule and digests that a workload gives."
    ),
    "probe-memory": Entry(
        "harness.cli.probe_memory:probe_memory", "Measure an engine's KV capacity from outside, without its metrics."
    ),
    "validate": Entry(
        "harness.cli.validate:validate", "Check a YAML file without running it; print its schedule and digests."
    ),
    "simulate": Entry("harness.cli.simulate:simulate", "Run the scheduler and policies in virtual time; fit profiles."),
    "blockmap": Entry("harness.cli.blockmap:blockmap", "Draw who holds each KV block at one step of a plan log."),
    "paper": Entry("harness.cli.paper:paper", "Reproduce the PagedAttention paper's memory figures by simulation."),
    "kernels": Entry("harness.cli.kernels:kernels", "Check and time the attention kernels on this device."),
}


def load(entry: Entry) -> Callable[..., Any]:
    """Import a subcommand's function."""
    module_name, _, function = entry.target.partition(":")
    return getattr(importlib.import_module(module_name), function)


class LazyGroup(TyperGroup):
    """A group that knows its subcommands' names and summaries without importing them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else TyperCommand(cmd_name, short_help=entry.summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, placeholder, rest = super().resolve_command(ctx, args)
        if placeholder is None or name is None:
            return name, placeholder, rest
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name, cls=SubCommand)(load(COMMANDS[name]))
        command = typer.main.get_command(single)
        if isinstance(command, SubCommand):
            command.usage_exit = COMMANDS[name].usage_exit
        return name, command, rest


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure whether LLM serving engines keep their promises about KV memory: capacity, speed and unchanged answers.",
)


def show_version(value: bool) -> None:
    """Print the version and leave (``--version``)."""
    if value:
        from importlib.metadata import version

        typer.echo(f"pagedbench {version('pagedbench')}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=show_version
    ),
) -> None:
    """Options before the subcommand."""


def main() -> None:
    """Entry point of the console script.  A CliError becomes one sentence on stderr and its exit code."""
    try:
        app()
    except CliError as error:
        print(f"pagedbench: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("pagedbench: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (``pagedbench ... | head``).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        print(
            f"pagedbench: this command needs the package {error.name!r}; install it with: pip install 'pagedbench[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(ExitCode.HARNESS_ERROR)


# Which optional group brings a package that a subcommand may find missing.
EXTRAS = {
    "scipy": "conform",
    "jsonschema": "conform",
    "torch": "engine",
    "tokenizers": "engine",
    "safetensors": "engine",
    "gguf": "engine",
    "huggingface_hub": "engine",
    "altair": "report",
    "vl_convert": "report",
    "triton": "gpu",
    "ray": "ray",
    "ruptures": "gate",
}


if __name__ == "__main__":
    main()
