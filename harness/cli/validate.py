"""``pagedbench validate``: check a plan without running it, and print the exact schedule and digests that it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.errors import CliError
from harness.cli.options import what
from harness.cli.workloads import SCHEMA_VERSION, document, show
from harness.engines.catalogue import find
from harness.engines.errors import RecipeError
from harness.engines.installed import installed_version
from harness.load.plan import EngineAsked, PlanError, RunPlan, load_plan, make_plan
from harness.load.schedule import Schedule, build_schedules
from harness.load.tokenizer_file import FileCounter
from workloads.request import WorkloadError
from workloads.tokens import CountError, TokenCounter, WordCounter


def validate(
    file: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="YAML file of pagedbench run.")],
    tokenizer: what.Tokenizer = None,
    max_model_len: what.MaxModelLen = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document with every request on stdout.")] = False,
) -> None:
    """Check a plan without running it: nothing is launched and nothing is asked of any engine.

    Prints each engine with its command, and every cell's schedule with its digest.  Digests equal those of the run
    when the same tokenizer counts (--tokenizer, else a word is a token).  Exit codes: 0 the plan is sound, 2 it is not.
    """
    try:
        plan = make_plan(load_plan(file), str(file))
        engines = [check_engine(asked) for asked in plan.engines]
        counter = counter_of(plan, tokenizer)
        schedules = [] if plan.find_max else list(build_schedules(plan, counter, max_model_len or plan.max_model_len))
    except (PlanError, RecipeError, WorkloadError, CountError) as error:
        raise CliError(str(error)) from error
    if as_json:
        found = {"schema_version": SCHEMA_VERSION, "file": str(file), "engines": engines}
        typer.echo(json.dumps({**found, "schedules": [document(schedule) for schedule in schedules]}, indent=2))
        return
    for engine in engines:
        typer.echo(describe(engine))
    if plan.find_max is not None:
        typer.echo(f"searches the highest {plan.find_max.over} at which the SLO holds; its levels are found on the way")
    for schedule in schedules:
        show(schedule)
    typer.echo(total(plan, schedules))


def check_engine(asked: EngineAsked) -> dict[str, Any]:
    """An engine of the plan as plain values.  Raises RecipeError when it could not be started as asked."""
    if asked.recipe is None:
        return {"name": asked.name, "url": asked.url}
    recipe = find(asked.recipe)
    try:
        plan = recipe.plan(asked.settings, port=0)
    except RecipeError as error:
        if "there is no program" not in str(error):
            raise
        return {"name": asked.name, "recipe": recipe.name, "installed": None, "command": list(recipe.command)}
    version = installed_version(recipe, plan.values)
    return {"name": asked.name, "recipe": recipe.name, "installed": version, "command": list(plan.command)}


def counter_of(plan: RunPlan, tokenizer: Path | None) -> TokenCounter:
    path = tokenizer or plan.tokenizer
    return WordCounter() if path is None else FileCounter(path)


def describe(engine: dict[str, Any]) -> str:
    if "url" in engine:
        return f"{engine['name']}: runs already at {engine['url']}"
    return f"{engine['name']}: recipe {engine['recipe']}, {engine['installed'] or 'not installed'}\n    " + " ".join(
        engine["command"]
    )


def total(plan: RunPlan, schedules: list[Schedule]) -> str:
    """The size of the run in one line."""
    requests = sum(len(schedule.requests) + len(schedule.warmup) for schedule in schedules)
    tokens = sum(request.output_tokens * request.n for schedule in schedules for request in schedule.requests)
    n = len(plan.engines)
    return (
        f"{len(schedules)} cells for each of {n} engine{'' if n == 1 else 's'}: {requests} requests, "
        f"{tokens} output tokens each"
    )
