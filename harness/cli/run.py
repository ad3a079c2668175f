"""``pagedbench run``: workloads x engines -> a run directory and a report."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from harness.cli.display import LiveDisplay
from harness.cli.errors import CliError, ExitCode
from harness.cli.execute import execute, write_report
from harness.cli.headline import headline_table, reasons
from harness.cli.options import arrivals, client, goal, output, what
from harness.load.plan import PlanError, RunPlan, load_plan, make_plan, parse_engine, parse_slo
from harness.results.conformance import suites_in
from harness.results.reader import RunReadError, load_run
from harness.results.schema import Summary

INTERRUPTED = 130


def run(
    file: what.PlanFile = None,
    engine: what.Engines = None,
    workload: what.Workloads = None,
    model: what.Model = None,
    tokenizer: what.Tokenizer = None,
    max_model_len: what.MaxModelLen = None,
    concurrency: arrivals.Concurrency = None,
    rate: arrivals.Rate = None,
    arrival: arrivals.Arrivals = None,
    burstiness: arrivals.Burstiness = None,
    ramp_to: arrivals.RampTo = None,
    ramp_steps: arrivals.RampSteps = None,
    duration: arrivals.Duration = None,
    num_requests: arrivals.NumRequests = None,
    warmup: arrivals.Warmup = None,
    repeats: arrivals.Repeats = None,
    seed: arrivals.Seed = None,
    slo: goal.Slo = None,
    find_max: goal.FindMax = None,
    verify: goal.Verify = False,
    verify_answers: goal.VerifyAnswers = None,
    reference_model: goal.ReferenceModel = None,
    reference_url: goal.ReferenceUrl = None,
    api_key: client.ApiKey = None,
    header: client.Header = None,
    workers: client.Workers = None,
    transport: client.Transport = None,
    timeout_first: client.FirstTimeout = None,
    timeout_idle: client.IdleTimeout = None,
    timeout_total: client.TotalTimeout = None,
    out: output.RunDirectory = None,
    resume: output.Resume = None,
    as_json: output.AsJson = False,
    no_report: output.NoReport = False,
) -> None:
    """Drive engines with workloads; write a run directory and a report.

    Without --concurrency and --rate each workload brings its own load levels.  Exit codes: 0 every cell valid or
    suspect, 2 wrong usage, 3 an engine could not be reached or started, 4 the harness failed, 5 a cell is INVALID (with
    --find-max: a search is INCONCLUSIVE; with --verify: answers were wrong), 130 interrupted.
    """
    asked: dict[str, Any] = {
        "workloads": workload,
        "concurrency": arrivals.numbers("--concurrency", concurrency, int),
        "rate": arrivals.numbers("--rate", rate, float),
        "arrivals": arrival,
        "burstiness": burstiness,
        "ramp_to": ramp_to,
        "ramp_steps": ramp_steps,
        "headers": client.headers_of(header),
        "workers": workers,
        "transport": transport,
        "timeouts": client.timeouts_of(timeout_first, timeout_idle, timeout_total),
        "duration": duration,
        "num_requests": num_requests,
        "warmup": warmup,
        "repeats": repeats,
        "seed": seed,
        "find_max": find_max,
        "verify": goal.verify_of(verify, verify_answers, reference_model, reference_url),
        "tokenizer": tokenizer,
        "max_model_len": max_model_len,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    try:
        if resume is not None:
            if file is not None or given or engine or slo or model or out is not None:
                raise PlanError("--resume goes on with the run as it was asked; give no plan and no other options")
            plan = stored_plan(resume)
        else:
            plan = asked_plan(file, given, engine, slo)
    except PlanError as error:
        raise CliError(str(error)) from error
    if model is not None:
        for one in plan.engines:
            one.model = one.model or model
    run_plan(plan, resume or out, api_key=api_key, as_json=as_json, report=not no_report, resume=resume is not None)


def asked_plan(file: Path | None, given: dict[str, Any], engine: list[str] | None, slo: list[str] | None) -> RunPlan:
    """The plan of a YAML file, with the options on top.  Raises PlanError."""
    values = load_plan(file) if file is not None else {}
    if engine:
        given["engines"] = [parse_engine(text) for text in engine]
    if slo:
        given["slo"] = parse_slo(slo)
    values |= given
    if not values.get("engines"):
        raise PlanError("name at least one engine: --engine NAME=URL, or --engine NAME=recipe:reference")
    return make_plan(values, str(file) if file is not None else "the options")


def stored_plan(run_dir: Path) -> RunPlan:
    """The plan of a run that was made before.  Raises PlanError."""
    try:
        stored = load_run(run_dir).manifest.plan
    except RunReadError as error:
        raise PlanError(f"cannot resume: {error}") from None
    if stored is None:
        raise PlanError(f"{run_dir} does not say what was asked, so it cannot be resumed; run again")
    return make_plan(stored, str(run_dir / "run.json"))


def run_plan(
    plan: RunPlan, out: Path | None, *, api_key: str | None, as_json: bool, report: bool, resume: bool = False
) -> None:
    """Run, print, and leave with the exit code of the contract."""
    out = out or Path("runs") / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    display = LiveDisplay()
    summary, interrupted = execute(plan, out, display, api_key=api_key, resume=resume)
    path = write_report(out) if report else None
    if as_json:
        typer.echo(summary.model_dump_json(indent=2))
    else:
        Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160).print(
            headline_table(summary.cells)
        )
        for line in reasons(summary.cells):
            typer.echo(line)
        for search in summary.searches:
            typer.echo(f"{search.engine}, {search.workload}: {search.sentence}")
        typer.echo(str(path or out))
    leave(summary, interrupted, answers_were_wrong=any(suite.exit_code == 1 for suite in suites_in(out, "verify")))


def leave(summary: Summary, interrupted: bool, *, answers_were_wrong: bool = False) -> None:
    """End the command with the exit code that a run earned."""
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if answers_were_wrong:
        raise typer.Exit(ExitCode.INVALID_RUN)
    # A search accounts for its own cells: one that cannot be believed decides nothing, and it says when that was all.
    invalid = [cell.validity == "INVALID" for cell in summary.cells]
    if any(search.inconclusive for search in summary.searches) or (any(invalid) and not summary.searches):
        raise typer.Exit(ExitCode.INVALID_RUN)
