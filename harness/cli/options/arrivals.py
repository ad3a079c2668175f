"""How much load, released when: levels, lengths of cells, seeds."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from harness.cli.errors import CliError

Concurrency = Annotated[
    list[str] | None,
    typer.Option("--concurrency", metavar="N[,N...]", help="Requests in flight, closed loop; a cell for each."),
]
Rate = Annotated[
    list[str] | None,
    typer.Option("--rate", metavar="R[,R...]", help="Planned arrivals in requests/s; a cell for each."),
]
Arrivals = Annotated[
    Literal["poisson", "constant", "gamma", "ramp"] | None,
    typer.Option("--arrivals", help="How --rate is planned.  [default: poisson]"),
]
Burstiness = Annotated[
    float | None,
    typer.Option("--burstiness", metavar="SHAPE", help="gamma: below 1 in bursts, 1 as Poisson, above 1 smoother."),
]
RampTo = Annotated[
    float | None, typer.Option("--ramp-to", metavar="R", help="ramp: requests/s at the end; --rate is the start.")
]
RampSteps = Annotated[
    int | None,
    typer.Option("--ramp-steps", metavar="N", help="ramp: a staircase of N stretches.  [default: 0, a line]"),
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
