"""Whom to ask for what: engines, workloads, the model and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PlanFile = Annotated[
    Path | None, typer.Argument(metavar="[PLAN.yaml]", help="YAML file with the same keys; options win over it.")
]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine", metavar="NAME=WHERE", help="NAME=URL[,URL...] or NAME=recipe:KIND[,key=value...]; repeatable."
    ),
]
Workloads = Annotated[
    list[str] | None,
    typer.Option(
        "--workload", metavar="NAME[:key=value,...]", help="Repeatable; see pagedbench workloads.  [default: chat]"
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="ID", help="Model id to ask for.  [default: the server's first]")
]
Tokenizer = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="PATH", help="tokenizer.json, for engines that have no /tokenize.")
]
MaxModelLen = Annotated[
    int | None,
    typer.Option("--max-model-len", metavar="TOKENS", help="Clip prompt + output.  [default: what the engines allow]"),
]
