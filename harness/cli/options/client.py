"""How requests are sent: keys, headers, timeouts."""

from __future__ import annotations

from typing import Annotated

import typer

ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="PAGEDBENCH_API_KEY", metavar="KEY", help="Bearer key; is not stored."),
]
