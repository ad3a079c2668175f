"""``pagedbench workloads``: the exact schedule and digests that a spec gives, without any engine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.errors import CliError
from harness.cli.options.arrivals import numbers
from harness.load.plan import PlanError, check_workload, make_plan
from harness.load.schedule import Schedule, build_schedules
from harness.load.tokenizer_file import FileCounter
from workloads.registry import WORKLOADS
from workloads.request import WorkloadError
from workloads.tokens import CountError, TokenCounter, WordCounter
from workloads.workload import parameters

SCHEMA_VERSION = 1
SHOWN_REQUESTS = 5


def workloads(
    spec: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME[:key=value,...]]...", help="Workloads; none: list them.")
    ] = None,
    concurrency: Annotated[list[str] | None, typer.Option(metavar="N[,N...]", help="Requests in flight.")] = None,
    rate: Annotated[list[str] | None, typer.Option(metavar="R[,R...]", help="Poisson arrivals in requests/s.")] = None,
    duration: Annotated[float | None, typer.Option(metavar="S", help="Seconds of load for each cell.")] = None,
    num_requests: Annotated[int | None, typer.Option(metavar="N", help="Requests of each cell.")] = None,
    repeats: Annotated[int, typer.Option(metavar="N", help="Times that every cell is run.")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of prompts and arrivals.")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="PATH", help="tokenizer.json that counts; without it a word is a token.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(metavar="TOKENS", help="Clip prompt + output.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document with every request on stdout.")] = False,
) -> None:
    """Print the schedule that a spec gives: digests, lengths, arrival times.  Without a spec, list the workloads.

    Prompts are the same as in a run only when the same tokenizer counts them; a run records the digest that it used.
    """
    if not spec:
        list_workloads(as_json)
        return
    try:
        for one in spec:
            check_workload(one)
        values: dict[str, Any] = {
            "engines": [{"name": "none", "url": "http://none"}],
            "workloads": spec,
            "concurrency": numbers("--concurrency", concurrency, int) or [],
            "rate": numbers("--rate", rate, float) or [],
            "duration": duration,
            "num_requests": num_requests,
            "repeats": repeats,
            "seed": seed,
            "max_model_len": max_model_len,
        }
        plan = make_plan(values, "the options")
        counter: TokenCounter = WordCounter() if tokenizer is None else FileCounter(tokenizer)
        schedules = list(build_schedules(plan, counter, max_model_len))
    except (PlanError, WorkloadError, CountError) as error:
        raise CliError(str(error)) from error
    if as_json:
        documents = [document(schedule) for schedule in schedules]
        typer.echo(json.dumps({"schema_version": SCHEMA_VERSION, "schedules": documents}, indent=2))
        return
    for schedule in schedules:
        show(schedule)


def document(schedule: Schedule) -> dict[str, Any]:
    """A schedule as plain JSON values."""
    return {
        "key": schedule.key,
        "workload": schedule.workload.model_dump(),
        "load": schedule.load_info.model_dump(),
        "arrivals_ns": schedule.arrivals_ns,
        "requests": [asdict(request) for request in schedule.requests],
    }


def list_workloads(as_json: bool) -> None:
    known = {name: parameters(kind()) for name, kind in WORKLOADS.items()}
    if as_json:
        typer.echo(json.dumps({"schema_version": SCHEMA_VERSION, "workloads": known}, indent=2))
        return
    for name, defaults in known.items():
        typer.echo(f"{name}  {(WORKLOADS[name].__doc__ or '').splitlines()[0]}")
        for key, value in defaults.items():
            shown = "+".join(map(str, value)) if isinstance(value, tuple) else value
            typer.echo(f"    {key}={shown}")


def show(schedule: Schedule) -> None:
    """The head of a schedule as text."""
    facts = schedule.workload.parameters["schedule"]
    typer.echo(f"{schedule.key}  {facts['requests']} requests, digest {schedule.workload.digest}")
    typer.echo(
        f"    prompt {facts['prompt_tokens_mean']:.1f} and output {facts['output_tokens_mean']:.1f} tokens on average, "
        f"{'exact' if facts['exact'] else 'estimated'}, counted by {facts['tokenizer']}"
    )
    arrivals = iter(schedule.arrivals_ns or ())
    for request in schedule.requests[:SHOWN_REQUESTS]:
        when = f"  at {next(arrivals) / 1e9:.6f} s" if schedule.arrivals_ns and request.after is None else ""
        after = f"  after {request.after}" if request.after is not None else ""
        typer.echo(f"    {request.index:4d}  {request.prompt_tokens:5d} -> {request.output_tokens:5d}{when}{after}")
    left = len(schedule.requests) - SHOWN_REQUESTS
    if left > 0:
        typer.echo(f"    ... {left} more (--json shows all)")
