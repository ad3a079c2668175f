"""What counts as good."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Slo = Annotated[
    list[str] | None,
    typer.Option("--slo", metavar="METRIC:MS", help="Limit in ms on ttft, tpot or e2e; repeatable."),
]
Verify = Annotated[
    bool,
    typer.Option("--verify", help="Judge answers of the loaded run itself, once the engine is idle."),
]
VerifyAnswers = Annotated[
    int | None,
    typer.Option("--verify-answers", metavar="N", min=1, help="Answers judged of each cell.  [default: 16]"),
]
ReferenceModel = Annotated[
    str | None,
    typer.Option(
        "--reference-model",
        metavar="MODEL",
        help="With --verify: the engines' model for a naive fp32 engine that scores the answers, too: directory, .gguf or "
        "built-in name.",
    ),
]
ReferenceUrl = Annotated[
    str | None,
    typer.Option("--reference-url", metavar="URL", help="With --verify: such an engine that already runs, instead."),
]
FindMax = Annotated[
    str | None,
    typer.Option(
        "--find-max",
        metavar="rate|concurrency",
        help="Search for the highest level at which 95 % of the requests meet every --slo.",
    ),
]


def verify_of(
    wanted: bool, answers: int | None, reference_model: str | None, reference_url: str | None
) -> dict[str, Any] | None:
    """The plan's ``verify``; any of its options asks for it."""
    given = {"answers": answers, "reference_model": reference_model, "reference_url": reference_url}
    told = {key: value for key, value in given.items() if value is not None}
    return told if wanted or told else None
