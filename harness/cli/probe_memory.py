"""``pagedbench probe-memory``: how many tokens an engine's KV pool holds, measured from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.capacity.estimate import Capacity
from harness.capacity.rounds import WORDS, MemoryProbe, Target
from harness.cli.errors import CliError, ExitCode
from harness.cli.execute import run_loop
from harness.cli.options import client, what
from harness.engines.errors import EngineError, RecipeError
from harness.load.engine_room import context_limit, ready_engine, token_counter
from harness.load.plan import EngineAsked, PlanError, RunPlan, make_plan, parse_engine
from workloads.request import WorkloadError
from workloads.tokens import CountError

SCHEMA_VERSION = 1
DEFAULT_CONTEXT = 2048  # tokens, where an engine does not tell its own
LONGEST = 8192  # tokens of a request; longer ones would only take longer


def probe_memory(
    engine: what.Engines = None,
    budget: Annotated[float, typer.Option(metavar="S", help="Seconds for each engine.")] = 300.0,
    max_concurrency: Annotated[int, typer.Option(metavar="N", help="Most requests at once.")] = 256,
    model: what.Model = None,
    tokenizer: what.Tokenizer = None,
    max_model_len: what.MaxModelLen = None,
    api_key: client.ApiKey = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write capacity.json and the engines' logs there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Measure KV capacity from outside, for engines that tell nothing: no metric is used, only when tokens come.

    Rounds of unique long requests are sent together, ever more, until some stand still (preempted) or have to wait.
    The engine should have nothing else to do.  Exit codes: 0 measured, 1 only a lower bound was found, 2 wrong usage,
    3 an engine could not be reached or started, 4 the harness failed.
    """
    if not engine:
        raise CliError("name at least one engine: --engine NAME=URL, or --engine NAME=recipe:reference")
    if budget <= 0 or max_concurrency < 1:
        raise CliError("--budget must be above 0 seconds and --max-concurrency at least 1")
    try:
        values: dict[str, Any] = {"engines": [parse_engine(text) for text in engine]}
        values |= {"tokenizer": tokenizer, "max_model_len": max_model_len}
        plan = make_plan(values, "the options")
    except PlanError as error:
        raise CliError(str(error)) from error
    for asked in plan.engines:
        asked.model = asked.model or model
    notes = _Stderr()
    logs = out or Path(tempfile.mkdtemp(prefix="pagedbench-"))
    work = measure_all(plan, logs, notes, budget, max_concurrency, api_key)
    try:
        results = run_loop(work, notes.interrupt, notes)  # type: ignore[arg-type]
    except RecipeError as error:
        raise CliError(str(error)) from error
    except EngineError as error:
        raise CliError(str(error), ExitCode.UNREACHABLE) from error
    except (WorkloadError, CountError) as error:
        raise CliError(str(error)) from error
    document = {"schema_version": SCHEMA_VERSION, "engines": results}
    if out is not None:
        write(out / "capacity.json", document)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        for result in results:
            typer.echo(sentence(result))
    if any(result["tokens"] is None for result in results):
        raise typer.Exit(1)


class _Stderr:
    """Notes on stderr; Ctrl-C ends the probe at once."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def interrupt(self) -> None:
        raise KeyboardInterrupt


async def measure_all(
    plan: RunPlan, logs: Path, notes: _Stderr, budget: float, most: int, api_key: str | None
) -> list[dict[str, Any]]:
    """One engine after another."""
    return [await measure(asked, plan, logs / "logs", notes, budget, most, api_key) for asked in plan.engines]


async def measure(
    asked: EngineAsked, plan: RunPlan, logs: Path, notes: _Stderr, budget: float, most: int, api_key: str | None
) -> dict[str, Any]:
    """The capacity of one engine as plain values."""
    with contextlib.ExitStack() as stack:
        async with ready_engine(asked, logs, notes.note, api_key=api_key) as engine:
            info = engine.found.info
            counter = await token_counter(plan, engine.found, stack, notes.note, api_key=api_key)
            context = min(plan.max_model_len or info.max_model_len or DEFAULT_CONTEXT, LONGEST)
            limit = context_limit(plan, engine.found)
            target = Target(info.url, engine.dialect, counter, min(context, limit or context), api_key)
            probe = MemoryProbe(target, budget, most, notes.note)
            started = time.monotonic()
            found = await probe.run()
            seconds = time.monotonic() - started
            crash = await asyncio.to_thread(engine.crash)
            if crash is not None:
                notes.note(crash)
    return result(asked.name, found, info.settings.get("kv_slots_reserved"), seconds, len(probe.rounds))


def result(name: str, found: Capacity, told: Any, seconds: float, rounds: int) -> dict[str, Any]:
    """One engine's answer.  ``told`` is the engine's own number, which played no part."""
    own = float(told) if isinstance(told, (int, float)) and told else None
    return {
        "engine": name,
        "limit": found.limit,
        "tokens": found.tokens,
        "low": found.low,
        "high": found.high,
        "block_size": found.block_size,
        "told_by_engine": own,
        "difference": None if own is None or found.tokens is None else found.tokens / own - 1,
        "rounds": rounds,
        "seconds": round(seconds, 1),
    }


def sentence(result: dict[str, Any]) -> str:
    """The answer in words."""
    told, why = result["told_by_engine"], WORDS[result["limit"]]
    if result["tokens"] is None:
        text = f"{result['engine']}: at least {result['low']} tokens ({why})"
    else:
        text = f"{result['engine']}: {result['tokens']} tokens, {result['low']} to {result['high']} ({why})"
    if told:
        text += f"; the engine says {told:.0f}"
        text += "" if result["difference"] is None else f", {result['difference']:+.1%}"
    return f"{text}; {result['rounds']} rounds in {result['seconds']:.0f} s"


def write(file: Path, document: dict[str, Any]) -> None:
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        os.replace(part, file)
    except OSError as error:
        raise CliError(f"cannot write {file}: {error.strerror or error}", ExitCode.HARNESS_ERROR) from error
