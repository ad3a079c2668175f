"""``pagedbench gate``: baseline against candidate, a verdict for CI."""

from __future__ import annotations

import datetime
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from harness.cli.errors import CliError
from harness.cli.execute import redact
from harness.cli.options.arrivals import Concurrency, Duration, NumRequests, Rate, Warmup, numbers
from harness.cli.options.client import ApiKey
from harness.cli.options.goal import Slo

BAD_CONFIG = 3
HELP_WHERE = "URL, recipe:KIND[,key=value...], 'cmd:COMMAND with {port}', or run directories; repeatable for runs."


def gate(
    baseline: Annotated[list[str] | None, typer.Option(metavar="WHERE", help=HELP_WHERE)] = None,
    candidate: Annotated[list[str] | None, typer.Option(metavar="WHERE", help="Likewise; what is judged.")] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Limits.  [default: pagedbench-gate.yaml where there is one, else built-in]"),
    ] = None,
    workload: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:key=value,...]", help="As for run.  [default: chat]")
    ] = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    duration: Duration = None,
    num_requests: NumRequests = None,
    warmup: Warmup = None,
    slo: Slo = None,
    tokenizer: Annotated[Path | None, typer.Option(metavar="PATH", help="tokenizer.json for both builds.")] = None,
    max_model_len: Annotated[int | None, typer.Option(metavar="TOKENS", help="Clip prompt + output.")] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(metavar="N[,N...]", help="Pairs of runs after which to look.  [default: the thresholds']"),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Choose --pairs by the noise that this history of gates recorded."),
    ] = None,
    reset: Annotated[
        Literal["process", "cache", "prompts"] | None,
        typer.Option(help="State between runs.  [default: process, for URLs prompts]"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the order and of the prompts.")] = 0,
    conform: Annotated[
        str | None,
        typer.Option(
            metavar="CASES", help="First run these conformance cases on the candidate: structural, all, or ids."
        ),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="GATE.json", help="Judge a stored gate again; must come out the same.")
    ] = None,
    pytest_benchmark: Annotated[
        list[Path] | None,
        typer.Option(
            "--pytest-benchmark", metavar="FILE", help="Twice: baseline and candidate JSON of pytest-benchmark."
        ),
    ] = None,
    init: Annotated[bool, typer.Option("--init", help="Write a commented thresholds file and stop.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say in words what would be decided and why, and stop.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="gate.json, .md, .html, junit.xml.  [default: gates/<time>]")
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the JUnit XML here.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also append the Markdown here ($GITHUB_STEP_SUMMARY).")
    ] = None,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document (the record) on stdout.")] = False,
) -> None:
    """Judge a candidate against a baseline: PASS, FAIL or INCONCLUSIVE, with the error rates of docs/gate.md.

    Drives two builds in interleaved pairs, judges recorded runs, or replays a stored gate.  Exit codes: 0 pass, 1 fail,
    2 inconclusive, 3 an engine is unreachable or something is wrongly configured, 4 the harness failed.
    """
    from harness.cli.gate_modes import Asked, run_gate
    from harness.gate.thresholds import DEFAULT_FILE, ThresholdsError, commented_file, load_thresholds

    if init:
        target = thresholds or Path(DEFAULT_FILE)
        if target.exists():
            raise CliError(f"{target} exists already; remove it or name another with --thresholds", BAD_CONFIG)
        target.write_text(commented_file(), encoding="utf-8")
        typer.echo(target)
        return
    values: dict[str, Any] = {
        "workloads": workload,
        "concurrency": _numbers("--concurrency", concurrency, int),
        "rate": _numbers("--rate", rate, float),
        "duration": duration,
        "num_requests": num_requests,
        "warmup": warmup,
        "tokenizer": tokenizer,
        "max_model_len": max_model_len,
    }
    try:
        if thresholds is None and Path(DEFAULT_FILE).is_file():
            thresholds = Path(DEFAULT_FILE)
        limits = load_thresholds(thresholds) if thresholds is not None else None
    except ThresholdsError as error:
        raise CliError(str(error), BAD_CONFIG) from error
    asked = Asked(
        baseline=baseline or [],
        candidate=candidate or [],
        thresholds=limits,
        shared={key: value for key, value in values.items() if value is not None},
        slo=slo or [],
        looks=_numbers("--pairs", pairs, int),
        history=history,
        reset=reset,
        seed=seed,
        conform=conform,
        replay=replay,
        pytest_benchmark=pytest_benchmark or [],
        out=out,
        junit=junit,
        markdown=markdown,
        api_key=api_key,
        as_json=as_json,
        command=redact(sys.argv),
        tool_version=_own_version(),
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    raise typer.Exit(run_gate(asked, explain=explain))


def _numbers(option: str, texts: list[str] | None, kind: type[int] | type[float]) -> list[Any] | None:
    try:
        return numbers(option, texts, kind)
    except CliError as error:
        raise CliError(str(error), BAD_CONFIG) from None


def _own_version() -> str:
    try:
        return version("pagedbench")
    except PackageNotFoundError:
        return "0+unknown"
