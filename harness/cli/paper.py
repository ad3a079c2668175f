"""``pagedbench paper``: the PagedAttention paper's memory results, simulated and on a real model, beside its numbers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.errors import CliError


def paper(
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of lengths and arrivals.")] = 0,
    processes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Simulations at once [count]. Default: 2, or fewer processors."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="The policies are measured on it, too, as pagedbench serve takes it; none: no."
        ),
    ] = "smollm2",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for paper.json and paper.html.")] = None,
) -> None:
    """Reproduce the PagedAttention paper's memory figures by simulation, and show what does not match.

    The real scheduler, block manager and memory policies run in virtual time on a cost model of an A100 with OPT-13B;
    then the same policies are measured on a small real model on this machine.  Takes two to three minutes on two cores.
    Exit codes: 0 done (whatever matches), 2 usage.
    """
    from reference_engine.simulate.paper import reproduce

    began = time.monotonic()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def progress(done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            typer.echo(f"{done} of {total} simulations, {time.monotonic() - began:.0f} s", err=True)

    document = reproduce(
        seed=seed,
        processes=processes or min(2, usable),
        model=None if model == "none" else model,
        progress=progress,
        note=lambda said: typer.echo(said, err=True),
    )
    document["wall_seconds"] = round(time.monotonic() - began, 1)
    if out is not None:
        write(document, out)
    if as_json:
        typer.echo(json.dumps(document, indent=1))
        return
    for line in lines(document):
        typer.echo(line)
    if out is not None:
        typer.echo(str(out / "paper.html"))


def lines(document: dict[str, Any]) -> list[str]:
    """The tables as text."""
    told = [
        f"{document['within']} of {document['judged']} judged numbers are within their tolerance",
        document["source"],
    ]
    for figure in document["figures"]:
        told += ["", f"{figure['figure']}  {figure['title']}"]
        for row in figure["rows"]:
            paper = "-" if row["paper"] is None else f"{row['paper']:.4g}"
            ours = "-" if row["ours"] is None else f"{row['ours']:.4g}"
            mark = {True: "ok", False: "OFF", None: ""}[row["within"]]
            told.append(
                f"  {row['case']:<44.44} {row['quantity']:<52.52} {ours:>8} paper {paper:>7} {row['unit']:<21.21} "
                f"{row['kind']:<10} {mark}"
            )
        if not figure["rows"]:
            told += [f"  {note}" for note in figure["notes"]]
    told += ["", "fitted or assumed parameters:"]
    told += [f"  {one['parameter']}: {one['value']} ({one['fitted_to']})" for one in document["fitted"]]
    return told


def write(document: dict[str, Any], out: Path) -> None:
    """``paper.json`` and the page."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "paper.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
        from reports.paper_page import render_paper_page

        (out / "paper.html").write_text(render_paper_page(document), encoding="utf-8")
    except OSError as error:
        raise CliError(f"--out {out}: cannot write there ({error.strerror}); choose another folder") from None
