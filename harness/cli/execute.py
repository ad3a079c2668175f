"""Running a plan to its report: shared by ``pagedbench run`` and ``pagedbench demo``."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from harness.cli.errors import CliError, ExitCode
from harness.engines.errors import EngineError, RecipeError
from harness.load.plan import RunPlan
from harness.load.session import Display, Session, Verifier
from harness.load.workers import WorkerError
from harness.results.schema import Summary
from harness.results.writer import RunWriteError
from workloads.request import WorkloadError
from workloads.tokens import CountError

T = TypeVar("T")
SECRET_OPTIONS = ("--api-key",)


def execute(
    plan: RunPlan, out: Path, display: Display, *, api_key: str | None = None, resume: bool = False
) -> tuple[Summary, bool]:
    """Run ``plan`` into ``out``, or go on with the run there.  Returns the summary and whether the user interrupted.

    Raises CliError with the exit code of the contract; what was measured before is kept in ``out``.
    """
    try:
        verifier = verifier_of(plan, out, display, api_key)
        session = Session(
            plan, out, display, command=redact(sys.argv), api_key=api_key, resume=resume, verifier=verifier
        )
        summary = run_loop(session.run(), session.interrupt, display)
    except RecipeError as error:
        raise CliError(str(error)) from error
    except EngineError as error:
        raise CliError(str(error), ExitCode.UNREACHABLE) from error
    except (WorkloadError, CountError) as error:
        raise CliError(str(error)) from error
    except (RunWriteError, WorkerError) as error:
        raise CliError(str(error), ExitCode.HARNESS_ERROR) from error
    return summary, session.was_interrupted


def verifier_of(plan: RunPlan, out: Path, display: Display, api_key: str | None) -> Verifier | None:
    """Who judges the answers of the run, when that was asked for."""
    if plan.verify is None:
        return None
    from harness.cli.verify import RunVerifier

    return RunVerifier(plan.verify, out, display.note, seed=plan.seed, api_key=api_key)


def run_loop(work: Coroutine[Any, Any, T], interrupt: Callable[[], None], display: Display) -> T:
    """Run a coroutine on uvloop where there is one; the first Ctrl-C ends it early, the second at once."""
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        asked = 0

        def on_signal() -> None:
            nonlocal asked
            asked += 1
            if asked == 1:
                display.note("interrupted: keeping what was measured (press Ctrl-C again to stop at once)")
                interrupt()
            else:
                task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        return await work

    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            return runner.run(main())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


def redact(command: Sequence[str]) -> list[str]:
    """The command line for the record, without secrets."""
    shown: list[str] = []
    hide = False
    for word in command:
        option, equals, _ = word.partition("=")
        if hide:
            shown.append("***")
        elif option in SECRET_OPTIONS and equals:
            shown.append(f"{option}=***")
        else:
            shown.append(word)
        hide = not hide and word in SECRET_OPTIONS
    return shown


def write_report(run_dir: Path) -> Path | None:
    """The HTML report of a run, or None when what it needs is not installed."""
    try:
        from reports import ReportError, build_report
    except ModuleNotFoundError:
        return None
    try:
        return build_report(run_dir)
    except (ReportError, OSError) as error:
        raise CliError(
            f"the run is complete in {run_dir}, but its report failed: {error}", ExitCode.HARNESS_ERROR
        ) from error
