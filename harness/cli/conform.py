"""``pagedbench conform``: the conformance suite against one engine or several."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.conform_display import print_list, print_summary, watcher_for
from harness.cli.conform_outputs import write_outputs
from harness.cli.errors import CliError
from harness.cli.execute import redact
from harness.conformance.context import Options
from harness.conformance.runner import UnknownCaseError, run_suite, select
from harness.engines.catalogue import find
from harness.engines.errors import EngineError, RecipeError
from harness.engines.launch import RunningEngine, launched
from harness.engines.probe import probe_launched
from harness.load.plan import EngineAsked, PlanError, parse_engine
from harness.results.conformance import SuiteResult

LEVELS = ("MUST", "SHOULD", "INFO")
UNREACHABLE, HARNESS_ERROR, USAGE = 3, 4, 3


def conform(
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WHERE", help="NAME=URL or NAME=recipe:KIND[,key=value...]; repeatable."),
    ] = None,
    cases: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID[,ID...]", help="Case ids or families (API-04, PFX); repeatable.  [default: all but soaks]"
        ),
    ] = None,
    level: Annotated[
        str, typer.Option(metavar="LEVEL", help="Lowest level that is run: MUST, SHOULD or INFO.")
    ] = "INFO",
    structural: Annotated[bool, typer.Option("--structural", help="Only the fast subset of structural cases.")] = False,
    soak: Annotated[bool, typer.Option("--soak", help="Also the soak of 30 minutes.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A failed SHOULD fails the run, too.")] = False,
    list_cases: Annotated[bool, typer.Option("--list", help="List the cases and leave.")] = False,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Model id to ask for.  [default: the server's first]")
    ] = None,
    reference_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The engine's model for a naive fp32 engine that judges it: directory, .gguf or built-in name.",
        ),
    ] = None,
    reference_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A naive fp32 engine that already runs, instead.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Precision of the engine, where it does not tell: sets the limits."),
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Precision of the KV cache, where it differs from the weights'.")
    ] = None,
    effort: Annotated[
        float, typer.Option(metavar="X", min=0.05, max=20.0, help="Scales sample sizes; 1 is the documented strength.")
    ] = 1.0,
    timeout: Annotated[float, typer.Option(metavar="S", min=1.0, help="Limit of one call [s].")] = 60.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of prompts and samples.")] = 0,
    api_key: Annotated[
        str | None, typer.Option(envvar="PAGEDBENCH_API_KEY", metavar="KEY", help="Bearer key; is not stored.")
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Run the suite against the reference engine with each of its faults.")
    ] = False,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="ID[,ID...]", help="With --prove: only these faults or variants; repeatable."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="With --prove: every case on every fault, not only until one kills it.")
    ] = False,
    each_case: Annotated[
        bool,
        typer.Option(
            "--each-case", help="With --prove: then also every MUST case on the faults it claims, until it kills."
        ),
    ] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="With --prove: draw again what the matrix in --out already holds.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the HTML page.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write conformance.json, .html and junit.xml there, and engine logs."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Run the conformance suite against an engine.

    Exit codes: 0 pass, 1 a MUST failed, 2 nothing failed but something is inconclusive, 3 engine unreachable or bad
    configuration, 4 the suite itself failed.
    """
    if level.upper() not in LEVELS:
        raise CliError(f"--level {level!r} is not known; choose one of {', '.join(LEVELS)}", USAGE)
    levels = LEVELS[: LEVELS.index(level.upper()) + 1]
    ids = [part for text in cases or [] for part in text.split(",")] or None
    options = Options(
        model=model,
        api_key=api_key,
        timeout_s=timeout,
        seed=seed,
        effort=effort,
        levels=levels,
        soak=soak,
        strict=strict,
        structural_only=structural,
        dtype=dtype,
        kv_dtype=kv_dtype,
    )
    try:
        chosen = select(ids, options)
    except UnknownCaseError as error:
        raise CliError(str(error), USAGE) from None
    if list_cases:
        print_list(chosen, as_json=as_json)
        return
    if prove:
        from harness.cli.prove import Wanted, prove_suite

        options.reference_url = reference_url
        faults = tuple(part for text in fault or [] for part in text.split(",") if part)
        wanted = Wanted(faults, full=full, each_case=each_case, redo=redo)
        raise typer.Exit(prove_suite(options, chosen, wanted, out=out, as_json=as_json))
    if not engine:
        raise CliError("name at least one engine: --engine NAME=URL, or --engine NAME=recipe:reference", USAGE)
    if reference_model and reference_url:
        raise CliError("--reference-model and --reference-url both name the reference; give one of them", USAGE)
    try:
        asked = [EngineAsked.model_validate(parse_engine(text)) for text in engine]
    except (PlanError, ValueError) as error:
        raise CliError(first_line(error), USAGE) from None
    logs = (out or Path("runs") / "conform-logs").resolve()
    results = run_all(asked, ids, options, reference_model, reference_url, logs)
    write_outputs(results, out=out, junit=junit, html=html)
    if as_json:
        typer.echo(results[0].model_dump_json(indent=2) if len(results) == 1 else documents(results))
    else:
        for result in results:
            print_summary(result)
    raise typer.Exit(worst(results))


def documents(results: list[SuiteResult]) -> str:
    """Several results as one JSON document."""
    import json

    return json.dumps({"schema_version": 1, "suites": [result.model_dump(mode="json") for result in results]}, indent=2)


def worst(results: list[SuiteResult]) -> int:
    """The exit code of several runs: a failure beats the suite's own error, which beats unreachable and inconclusive."""
    codes = {result.exit_code for result in results}
    return next(code for code in (1, 4, 3, 2, 0) if code in codes)


def first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:3]).replace("Value error, ", "")


def run_all(
    asked: list[EngineAsked],
    ids: list[str] | None,
    options: Options,
    reference_model: str | None,
    reference_url: str | None,
    logs: Path,
) -> list[SuiteResult]:
    """Every engine in turn.  Raises CliError."""

    async def main() -> list[SuiteResult]:
        async with AsyncExitStack() as stack:
            options.reference_url = reference_url
            if reference_model is not None:
                options.reference_url = await stack.enter_async_context(reference(reference_model, logs))
            return [await run_one(one, ids, options, logs) for one in asked]

    try:
        return run_with_interrupt(main)
    except RecipeError as error:
        raise CliError(str(error), USAGE) from error
    except EngineError as error:
        raise CliError(str(error), UNREACHABLE) from error
    except OSError as error:
        raise CliError(f"cannot write under {logs}: {error}", HARNESS_ERROR) from error


def run_with_interrupt(main: Callable[[], Awaitable[list[SuiteResult]]]) -> list[SuiteResult]:
    """Run ``main``; the first Ctrl-C ends the current suite, which keeps what it found."""
    import signal

    async def guarded() -> list[SuiteResult]:
        task = asyncio.ensure_future(main())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt, task)
        return await task

    def interrupt(task: asyncio.Future[Any]) -> None:
        print("interrupted: keeping what was found", file=sys.stderr)
        task.cancel()

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@asynccontextmanager
async def reference(model: str, logs: Path) -> AsyncIterator[str]:
    """A naive fp32 engine with ``model``; its URL.  It judges and is not measured, so it may share a device."""
    settings = {"model": model, "attention": "naive", "dtype": "float32", "prefix_caching": "false", "threads": "1"}
    async with launched(find("reference"), settings, logs, name="naive-reference", share_device=True) as running:
        yield running.url


class Launched:
    """An engine of ours that a case may restart."""

    def __init__(self, asked: EngineAsked, logs: Path) -> None:
        self._asked = asked
        self._logs = logs
        self._stack = AsyncExitStack()
        self.engine: RunningEngine | None = None

    async def __aenter__(self) -> Launched:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def start(self) -> str:
        """Start, or stop and start again; the URL."""
        await self._stack.aclose()
        recipe = find(self._asked.recipe or "")
        self.engine = await self._stack.enter_async_context(
            launched(recipe, self._asked.settings, self._logs, name=self._asked.name)
        )
        return self.engine.url

    def pids(self) -> list[int]:
        return self.engine.pids() if self.engine is not None else []


async def run_one(asked: EngineAsked, ids: list[str] | None, options: Options, logs: Path) -> SuiteResult:
    import dataclasses

    watcher = watcher_for(asked.name)
    mine = dataclasses.replace(options, name=asked.name, model=asked.model or options.model, replay=replay_command())
    if asked.url is not None:
        return await run_suite(asked.url, ids, mine, watcher)
    async with Launched(asked, logs) as engine:
        assert engine.engine is not None
        mine.known_probe = await probe_launched(engine.engine, find(asked.recipe or ""))
        mine.restart, mine.pids = engine.start, engine.pids
        return await run_suite(engine.engine.url, ids, mine, watcher)


def replay_command() -> str:
    """This command without what chooses cases and outputs."""
    dropped = ("--cases", "--junit", "--html", "--out", "--level")
    words, kept, skip = redact(sys.argv[1:]), [], False
    for word in words:
        if skip:
            skip = False
        elif word in dropped:
            skip = True
        elif not word.startswith(tuple(f"{option}=" for option in dropped)) and word not in ("--json", "--structural"):
            kept.append(word)
    return shlex.join(["pagedbench", *kept])
