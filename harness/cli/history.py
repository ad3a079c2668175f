"""``pagedbench history``: keep gates, draw their trend, learn how many pairs the next one needs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import typer

from harness.cli.errors import CliError

BAD_CONFIG = 3
HARNESS_ERROR = 4


def history(
    action: Annotated[Literal["add", "show"], typer.Argument(help="add gates, or show the trend.")],
    gates: Annotated[list[Path] | None, typer.Argument(metavar="[GATE.json...]", help="What to add.")] = None,
    folder: Annotated[
        Path, typer.Option("--history", metavar="DIR", help="Folder of the history, or with --branch the repository.")
    ] = Path("gate-history"),
    branch: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Keep it on this git branch instead (of the repository in DIR, or here)."),
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="TEXT", help="What was judged, such as a commit.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="show: write history.html and .json here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Keep one small record a gate; show each metric's trend with change points and the pairs that it takes.

    Exit codes: 0 done, 3 something is wrongly given, 4 the history could not be written.
    """
    from harness.gate.history import HistoryError, add, add_to_branch, change_points, entry_of, read, read_branch
    from harness.gate.record_file import RecordError, read_record
    from harness.gate.trend import trends
    from reports.history_page import history_page

    repository = folder if folder != Path("gate-history") else Path()
    try:
        if action == "add":
            if not gates:
                raise CliError("name the gate.json to add", BAD_CONFIG)
            for path in gates:
                entry = entry_of(read_record(path), label)
                typer.echo(add(folder, entry) if branch is None else add_to_branch(repository, branch, entry))
            return
        if gates:
            raise CliError("history show takes no gate files; add them first", BAD_CONFIG)
        entries = read(folder) if branch is None else read_branch(repository, branch)
        if not entries:
            raise CliError(f"there is no gate in {branch or folder} yet; add one", BAD_CONFIG)
        found = trends(entries, change_points)
    except (HistoryError, RecordError) as error:
        raise CliError(str(error), BAD_CONFIG) from error
    except OSError as error:
        raise CliError(f"cannot write {error.filename}: {error.strerror}", HARNESS_ERROR) from error
    document = {
        "document": "pagedbench-history",
        "schema_version": 1,
        "gates": len(entries),
        "metrics": [trend.model_dump() for trend in found],
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "history.html").write_text(history_page(found, len(entries)), encoding="utf-8")
        (out / "history.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(document, indent=1))
        return
    typer.echo(f"{len(entries)} gates, {entries[0].created_utc} to {entries[-1].created_utc}")
    for trend in found:
        values = [point.value for point in trend.points]
        typer.echo(
            f"  {trend.label}: {len(values)} gates, median {median(values):.4g} {trend.unit}, last {values[-1]:.4g}"
        )
        for step in trend.steps:
            typer.echo(f"    {step.share:+.1%} from {step.label} on ({step.created_utc})")
        if trend.pair_spread is not None:
            need = "more than 200" if trend.pairs_needed is None else f"{trend.pairs_needed}"
            typer.echo(
                f"    pairs vary by {trend.pair_spread:.1%}: {need} pairs find {2 * trend.limit:.0%} nine times in ten"
            )
    if out is not None:
        typer.echo(out / "history.html")
