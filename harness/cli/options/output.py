"""Where results go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunDirectory = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run directory, new or empty.  [default: runs/<time>]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document (the summary) on stdout.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no HTML report.")]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume", metavar="DIR", help="Go on with the run in DIR: its complete cells stay, the rest is run."
    ),
]
