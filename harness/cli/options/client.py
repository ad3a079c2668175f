"""How requests are sent: keys, headers, timeouts."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from harness.cli.errors import CliError

ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="PAGEDBENCH_API_KEY", metavar="KEY", help="Bearer key; is not stored."),
]
Header = Annotated[
    list[str] | None,
    typer.Option("--header", metavar="NAME:VALUE", help="Header of every request; repeatable; is stored in the run."),
]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N|ray[://HOST:PORT][,N]",
        help="Processes that drive the load, here or on a Ray cluster; the schedule is one.  [default: 1]",
    ),
]
Transport = Annotated[
    Literal["native", "aiohttp"] | None,
    typer.Option("--transport", help="native: own sockets, stamped by the kernel.  [default: native]"),
]
FirstTimeout = Annotated[
    float | None, typer.Option("--timeout-first", metavar="S", help="To the first byte.  [default: 300]")
]
IdleTimeout = Annotated[
    float | None, typer.Option("--timeout-idle", metavar="S", help="Between two bytes.  [default: 120]")
]
TotalTimeout = Annotated[
    float | None, typer.Option("--timeout-total", metavar="S", help="For a whole answer.  [default: 1800]")
]


def headers_of(texts: list[str] | None) -> dict[str, str] | None:
    """``NAME:VALUE`` texts as a mapping."""
    if not texts:
        return None
    fields: dict[str, str] = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise CliError(f"--header {text!r} should read NAME:VALUE")
        fields[name.strip()] = value.strip()
    return fields


def timeouts_of(first: float | None, idle: float | None, total: float | None) -> dict[str, float] | None:
    """The time limits that were given."""
    given = {"first": first, "idle": idle, "total": total}
    return {name: limit for name, limit in given.items() if limit is not None} or None
