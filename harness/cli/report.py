"""``pagedbench report``: (re)build the HTML page, Markdown, CSV or JSON from run directories."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.errors import CliError, ExitCode


def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are compared in one report.")
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", metavar="FORMAT", help="html, md, csv or json; repeatable.  [default: html]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="File to write, or a folder when several formats are asked for; - is stdout.  "
            "[default: report.<format> in the run directory]",
        ),
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive", help="Charts of the page with tooltips, zoom and legend filter (about 1 MB more)."
        ),
    ] = False,
) -> None:
    """(Re)build the report of one run directory, or one report that compares several.

    Prints the path of each file written.  Exit codes: 0 done, 2 wrong usage or a directory that is not a run, 4 the
    report could not be written.
    """
    # Imported here: a report needs pyarrow and the chart libraries, `pagedbench --help` does not.
    from harness.results.reader import RunReadError
    from reports import ReportError, load_dataset, render
    from reports.build import file_name, write_whole

    asked = list(dict.fromkeys(formats or ["html"]))
    try:
        names = {format: file_name(format) for format in asked}
        targets = _targets(run_dirs, names, out)
        data = load_dataset(run_dirs)
        for format, target in targets.items():
            if target is None:
                sys.stdout.write(render(data, format, None, interactive))
                continue
            write_whole(target, render(data, format, target.parent, interactive))
            typer.echo(target)
    except (RunReadError, ReportError) as error:
        raise CliError(str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        where = error.filename or out or run_dirs[0]
        raise CliError(
            f"the report could not be written to {where}: {error.strerror}; name another place with --out",
            ExitCode.HARNESS_ERROR,
        ) from error


def _targets(run_dirs: list[Path], names: dict[str, str], out: Path | None) -> dict[str, Path | None]:
    """Where each format goes; None is stdout."""
    if out is None:
        if len(run_dirs) > 1:
            raise CliError("a report of several runs needs a place to be written to; name it with --out")
        return {format: run_dirs[0] / name for format, name in names.items()}
    if str(out) == "-":
        if len(names) > 1:
            raise CliError("--out - takes one --format; write several formats to a folder")
        return dict.fromkeys(names)
    if len(names) > 1 or out.is_dir():
        if out.is_file():
            raise CliError(f"--out {out} is a file, but several formats need a folder")
        return {format: out / name for format, name in names.items()}
    return dict.fromkeys(names, out)
