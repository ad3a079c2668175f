"""How much load, released when: levels, lengths of cells, seeds."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.errors import CliError

Concurrency = Annotated[
    list[str] | None,
    typer.Option("--concurrency", metavar="N[,N...]", help="Requests in flight, closed loop; a cell for each."),
]
Rate = Annotated[
    list[str] | None,
    typer.Option("--rate", metavar="R[,R...]", help="Poisson arrivals in requests/s; a cell for each."),
]
Duration = Annotated[float | None, typer.Option("--duration", metavar="S", help="Seconds of load for each cell.")]
NumRequests = Annotated[int | None, typer.Option("--num-requests", metavar="N", help="Measured requests of each cell.")]
Warmup = Annotated[
    int | None, typer.Option("--warmup", metavar="N", help="Requests before the measured ones.  [default: 0]")
]
Repeats = Annotated[
    int | None, typer.Option("--repeats", metavar="N", help="Times that every cell is run.  [default: 1]")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of prompts and arrivals.  [default: 0]")]


def numbers(option: str, texts: list[str] | None, kind: type[int] | type[float]) -> list[int] | list[float] | None:
    """Values of a repeatable option that also takes comma-separated lists."""
    if not texts:
        return None
    try:
        return [kind(part) for text in texts for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise CliError(f"{option} takes {what} separated by commas, not {','.join(texts)!r}") from None
