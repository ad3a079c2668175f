"""``pagedbench calibrate``: how far this machine's client can be trusted, measured against an engine of known times."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.errors import CliError, ExitCode
from harness.cli.options.arrivals import numbers
from harness.results.schema import Calibration, CalibrationLevel


def calibrate(
    streams: Annotated[
        list[str] | None,
        typer.Option(metavar="N[,N...]", help="Streams at once, lowest first.  [default: 1,10,50,100,200,400]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write calibration.json there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the stored calibration and measure nothing.")] = False,
) -> None:
    """Measure this machine's client against the emulator: errors at each level, and the ceiling.

    The result is kept in the user's cache; every later run on this machine carries it.  Run it while nothing else runs.
    Exit codes: 0 measured, 2 wrong usage, 4 not even the first level was kept up with, or nothing is stored (--show).
    """
    from harness.emulator.calibration import LEVELS, CalibrationError
    from harness.emulator.calibration import calibrate as measure
    from harness.emulator.calibration_store import calibration_file, load_calibration, save_calibration
    from harness.emulator.options import EmulatorError
    from harness.emulator.process import new_event_loop

    if show:
        found = load_calibration()
        if found is None:
            raise CliError("no calibration of this machine is stored; run pagedbench calibrate", ExitCode.HARNESS_ERROR)
    else:
        levels = sorted({int(level) for level in numbers("--streams", streams, int) or LEVELS})
        if levels[0] < 1:
            raise CliError("--streams takes numbers of 1 or more")
        try:
            with asyncio.Runner(loop_factory=new_event_loop()) as runner:
                found = runner.run(measure(levels, note))
        except (CalibrationError, EmulatorError) as error:
            raise CliError(str(error), ExitCode.HARNESS_ERROR) from error
        try:
            print(f"stored in {save_calibration(found)}", file=sys.stderr)
        except OSError as error:
            print(f"not stored: {calibration_file()}: {error.strerror or error}", file=sys.stderr)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "calibration.json").write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise CliError(
                f"--out {out} cannot be written: {error.strerror or error}", ExitCode.HARNESS_ERROR
            ) from error
    typer.echo(found.model_dump_json(indent=2) if as_json else sentence(found))
    if found.ceiling_streams is None:
        raise typer.Exit(ExitCode.HARNESS_ERROR)


def note(level: CalibrationLevel) -> None:
    """One level on stderr."""
    verdict = "kept up" if level.passed else level.reason
    delivered = "-" if level.delivered is None else f"{level.delivered:.3f}"
    print(
        f"{level.streams:5d} streams  TTFT p50 {level.ttft_p50_error_ms:+.2f} ms  p99 {level.ttft_p99_error_ms:+.2f} ms  "
        f"ITL p99 {level.itl_p99_error:+.1%}  delivered {delivered}  {level.cpu_us_per_chunk:.0f} us/chunk  {verdict}",
        file=sys.stderr,
    )


def sentence(found: Calibration) -> str:
    """The calibration in one line."""
    if found.ceiling_streams is None:
        return f"this machine's client did not keep up even at the first level ({found.levels[0].reason})"
    best = next(level for level in found.levels if level.streams == found.ceiling_streams)
    return (
        f"{found.stamp} stamps; up to {found.ceiling_streams} streams ({found.ceiling_chunks_per_s:.0f} chunks/s): TTFT p50 "
        f"{best.ttft_p50_error_ms:+.2f} ms, ITL p99 {best.itl_p99_error:+.1%} against the engine's own times"
    )
