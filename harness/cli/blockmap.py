"""``pagedbench blockmap``: which request holds which KV block at one step of a plan log, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.errors import CliError


def blockmap(
    log: Annotated[Path, typer.Argument(metavar="FILE", help="Plan log of serve --log-plans.")],
    step: Annotated[int | None, typer.Option(metavar="N", min=0, help="Step of the log. Default: the last.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Page to write. Default: blockmap-<step>.html.")
    ] = None,
) -> None:
    """Draw who holds each KV block at one step of a logged run, shared blocks marked.  Exit codes: 0 done, 2 usage."""
    from reports.block_map import BlockMapError, read_step, render_block_map

    try:
        with log.open(encoding="utf-8") as file:
            line = read_step(file, step)
        page = render_block_map(line)
    except BlockMapError as error:
        raise CliError(f"{log}: {error}") from None
    except OSError as error:
        raise CliError(f"{log}: cannot read it ({error.strerror})") from None
    path = out or Path(f"blockmap-{line['step']}.html")
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CliError(f"--out {path}: cannot write there ({error.strerror}); choose another file") from None
    typer.echo(str(path))
