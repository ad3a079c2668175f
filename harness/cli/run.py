"""``pagedbench run``: workloads x engines -> a run directory and a report."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from harness.cli.display import LiveDisplay
from harness.cli.errors import CliError, ExitCode
from harness.cli.execute import execute, write_report
from harness.cli.headline import headline_table, reasons
from harness.load.plan import PlanError, RunPlan, load_plan, make_plan, parse_engine, parse_slo
from harness.results.schema import Summary

INTERRUPTED = 130


def run(
    file: Annotated[
        Path | None, typer.Argument(metavar="[PLAN.yaml]", help="YAML file with the same keys; options win over it.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WHERE", help="NAME=URL or NAME=recipe:KIND[,key=value...]; repeatable."),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:key=value,...]", help="Repeatable; see pagedbench workloads.  [default: chat]"),
    ] = None,
    concurrency: Annotated[
        list[str] | None, typer.Option(metavar="N[,N...]", help="Requests in flight, closed loop; a cell for each.")
    ] = None,
    rate: Annotated[
        list[str] | None, typer.Option(metavar="R[,R...]", help="Poisson arrivals in requests/s; a cell for each.")
    ] = None,
    duration: Annotated[float | None, typer.Option(metavar="S", help="Seconds of load for each cell.")] = None,
    num_requests: Annotated[int | None, typer.Option(metavar="N", help="Measured requests of each cell.")] = None,
    warmup: Annotated[
        int | None, typer.Option(metavar="N", help="Requests before the measured ones.  [default: 0]")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(metavar="N", help="Times that every cell is run.  [default: 1]")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of prompts and arrivals.  [default: 0]")] = None,
    slo: Annotated[
        list[str] | None, typer.Option(metavar="METRIC:MS", help="Limit in ms on ttft, tpot or e2e; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run directory, new or empty.  [default: runs/<time>]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Model id to ask for.  [default: the server's first]")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="PATH", help="tokenizer.json, for engines that have no /tokenize.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Clip prompt + output.  [default: what the engines allow]")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="PAGEDBENCH_API_KEY", metavar="KEY", help="Bearer key; is not stored.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document (the summary) on stdout.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no HTML report.")] = False,
) -> None:
    """Drive engines with workloads; write a run directory and a report.

    Without --concurrency and --rate each workload brings its own load levels.  Exit codes: 0 every cell valid or
    suspect, 2 wrong usage, 3 an engine could not be reached or started, 4 the harness failed, 5 a cell is INVALID,
    130 interrupted.
    """
    asked: dict[str, Any] = {
        "workloads": workload,
        "concurrency": numbers("--concurrency", concurrency, int),
        "rate": numbers("--rate", rate, float),
        "duration": duration,
        "num_requests": num_requests,
        "warmup": warmup,
        "repeats": repeats,
        "seed": seed,
        "tokenizer": tokenizer,
        "max_model_len": max_model_len,
    }
    try:
        values = load_plan(file) if file is not None else {}
        if engine:
            asked["engines"] = [parse_engine(text) for text in engine]
        if slo:
            asked["slo"] = parse_slo(slo)
        values |= {key: value for key, value in asked.items() if value is not None}
        if not values.get("engines"):
            raise PlanError("name at least one engine: --engine NAME=URL, or --engine NAME=recipe:reference")
        plan = make_plan(values, str(file) if file is not None else "the options")
    except PlanError as error:
        raise CliError(str(error)) from error
    if model is not None:
        for one in plan.engines:
            one.model = one.model or model
    run_plan(plan, out, api_key=api_key, as_json=as_json, report=not no_report)


def run_plan(plan: RunPlan, out: Path | None, *, api_key: str | None, as_json: bool, report: bool) -> None:
    """Run, print, and leave with the exit code of the contract."""
    out = out or Path("runs") / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    display = LiveDisplay()
    summary, interrupted = execute(plan, out, display, api_key=api_key)
    path = write_report(out) if report else None
    if as_json:
        typer.echo(summary.model_dump_json(indent=2))
    else:
        Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160).print(
            headline_table(summary.cells)
        )
        for line in reasons(summary.cells):
            typer.echo(line)
        typer.echo(str(path or out))
    leave(summary, interrupted)


def leave(summary: Summary, interrupted: bool) -> None:
    """End the command with the exit code that a run earned."""
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(cell.validity == "INVALID" for cell in summary.cells):
        raise typer.Exit(ExitCode.INVALID_RUN)


def numbers(option: str, texts: list[str] | None, kind: type[int] | type[float]) -> list[int] | list[float] | None:
    """Values of a repeatable option that also takes comma-separated lists."""
    if not texts:
        return None
    try:
        return [kind(part) for text in texts for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise CliError(f"{option} takes {what} separated by commas, not {','.join(texts)!r}") from None
