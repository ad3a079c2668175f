"""``pagedbench compare``: tables between runs, or between the engines of one run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.errors import CliError, ExitCode

if TYPE_CHECKING:
    from reports.compare_tables import Section

FORMATS = ("table", "md", "csv", "json", "html")
FILES = {"md": "compare.md", "csv": "compare.csv", "json": "compare.json", "html": "compare.html"}
STYLES = {"better": "green", "worse": "red", "changed": "bold", "INVALID": "yellow"}


def compare(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="BASE [NEW...]", help="Run directories; the first is the base.")
    ],
    base: Annotated[
        str | None, typer.Option("--base", metavar="NAME", help="Engine to compare with.  [default: the first]")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", "-f", metavar="FORMAT", help="On stdout: table, md, csv, json or html.")
    ] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout; the same as -f json.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Also write compare.html, .md, .csv and .json there.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Charts of the HTML page with tooltips, zoom and legend filter.")
    ] = False,
) -> None:
    """Compare runs metric by metric: base, new, change, 95 % interval, number of repeats.

    Several runs: every engine against the engine of the same name in the first run.  One run: every engine against the
    first.  Nothing is called better or worse unless its interval says so, which takes 4 repeats on both sides.

    Exit codes: 0 compared, 2 wrong usage or a directory that is not a run, 4 the files could not be written.
    """
    # Imported here: a comparison needs pyarrow, `pagedbench --help` does not.
    from harness.results.reader import RunReadError
    from reports import ReportError, judge, load_dataset
    from reports import compare_tables as tables
    from reports.build import write_whole

    format = "json" if as_json else format
    if format not in FORMATS:
        raise CliError(f"--format {format!r} is not known; choose one of {', '.join(FORMATS)}")
    try:
        data = load_dataset(run_dirs, apart=len(run_dirs) > 1)
        found = tables.sections(data, base)
        verdict = judge(data)
        views: dict[str, Callable[[Path | None], str]] = {
            "md": lambda _: tables.to_markdown(data, verdict, base),
            "csv": lambda _: tables.to_csv(data, base),
            "json": lambda _: tables.to_json(data, verdict, base),
            "html": lambda place: _page(data, verdict, place, interactive),
        }
        if out is not None:
            for kind, name in FILES.items():
                write_whole(out / name, views[kind](out))
                print(out / name, file=sys.stderr)
        if format == "table":
            _print(found, tables.summary(found), [*verdict.differences, *tables.missing(data, base)], tables.NOTE)
        else:
            sys.stdout.write(views[format](None))
    except (RunReadError, ReportError) as error:
        raise CliError(str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CliError(
            f"the comparison could not be written to {error.filename or out}: {error.strerror}; name another --out",
            ExitCode.HARNESS_ERROR,
        ) from error


def _page(data: object, verdict: object, place: Path | None, interactive: bool) -> str:
    from reports.page import render_page

    return render_page(data, verdict, place, interactive)  # type: ignore[arg-type]


def _print(found: list[Section], summary: str, warnings: list[str], note: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from reports.compare_tables import COLUMNS, cells_of

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(Text(summary, style="bold"))
    for sentence in warnings:
        console.print(Text(f"! {sentence}", style="yellow"))
    for section in found:
        table = Table(title=Text(section.title), title_justify="left", box=None, pad_edge=False, header_style="dim")
        for i, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if i in (0, len(COLUMNS) - 1) else "right", no_wrap=i > 0)
        for row in section.rows:
            # Colour only where the interval excludes no change.
            style = STYLES.get(row.verdict, "")
            texts = [Text(text) for text in cells_of(row)]
            texts[3].stylize(style)
            texts[-1].stylize(style or "dim")
            table.add_row(*texts)
        console.print()
        console.print(table)
    console.print()
    console.print(Text(note, style="dim"))
