"""What counts as good."""

from __future__ import annotations

from typing import Annotated

import typer

Slo = Annotated[
    list[str] | None,
    typer.Option("--slo", metavar="METRIC:MS", help="Limit in ms on ttft, tpot or e2e; repeatable."),
]
FindMax = Annotated[
    str | None,
    typer.Option(
        "--find-max",
        metavar="rate|concurrency",
        help="Search for the highest level at which 95 % of the requests meet every --slo.",
    ),
]
