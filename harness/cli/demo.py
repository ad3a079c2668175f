"""``pagedbench demo``: a real small model, paged against contiguous KV memory, three workloads, one report."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.cli.display import LiveDisplay
from harness.cli.errors import CliError, ExitCode
from harness.cli.execute import execute, write_report
from harness.cli.headline import headline_table, reasons
from harness.cli.run import INTERRUPTED
from harness.load.plan import RunPlan, make_plan
from harness.results.schema import CellSummary

MODEL = "smollm2"
BLOCK_SIZE = 16
# A contiguous policy keeps this many slots for every request, whatever it will need.
MAX_MODEL_LEN = 1024
# 46,080 bytes a token (fp32): 4,368 slots, so contiguous reservation holds 4 requests.
KV_MEMORY = "192MiB"

# Sized for about four minutes of load on two cores; lengths are short for that, which costs the paged policy part of a
# block for each request (the sum is printed).
WORKLOADS = [
    {
        "name": "chat",
        "parameters": {"scale": 0.25, "system_prompts": 3, "system_tokens": 48, "concurrency": 20},
        "rounds": 2,
    },
    {
        "name": "long-output",
        "parameters": {"input_mean": 80, "output_mean": 232, "output_cv": 0.4, "concurrency": 14},
        "rounds": 2,
    },
    {"name": "concurrency", "parameters": {"input": 64, "output": 48, "levels": [1, 4, 16]}, "rounds": 2},
]


def demo(
    kv_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="KV pool of either policy, bytes or with a unit.")
    ] = KV_MEMORY,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run directory, new or empty.  [default: runs/demo-<time>]")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document (the summary) on stdout.")] = False,
) -> None:
    """Serve a real small model twice from the same KV memory, paged and contiguous, and compare in one report.

    Takes about four minutes on two cores.  The report's path is the last line.  Exit codes: 0 done, 2 wrong usage,
    3 the engine did not start, 4 the harness failed, 130 interrupted.  A busy machine makes cells SUSPECT or INVALID;
    the report says so, and the demo still ends with 0.
    """
    out = out or Path("runs") / f"demo-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    display = LiveDisplay()
    fetch_model(display)
    summary, interrupted = execute(demo_plan(kv_memory, seed), out, display)
    path = write_report(out)
    if as_json:
        typer.echo(summary.model_dump_json(indent=2))
    else:
        Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160).print(
            headline_table(summary.cells)
        )
        for line in [*reasons(summary.cells), *comparison(summary.cells)]:
            typer.echo(line)
        typer.echo(str(path or out))
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def demo_plan(kv_memory: str, seed: int) -> RunPlan:
    """Both policies with the same pool, the three workloads."""
    common = {"model": MODEL, "kv_memory": kv_memory, "block_size": BLOCK_SIZE, "max_model_len": MAX_MODEL_LEN}
    engines = [
        {"name": policy, "recipe": "reference", "settings": {**common, "policy": policy}}
        for policy in ("paged", "contiguous")
    ]
    return make_plan({"engines": engines, "workloads": WORKLOADS, "seed": seed}, "the demo's plan")


def fetch_model(display: LiveDisplay) -> None:
    """Have the model in the cache before any engine's start is timed."""
    from reference_engine.models.embedded import ensure_embedded_model, model_path
    from reference_engine.models.errors import ModelLoadError

    if not model_path().is_file():
        display.note(f"fetching the model {MODEL} (98 MB, once)")
    try:
        ensure_embedded_model()
    except ModelLoadError as error:
        raise CliError(str(error), ExitCode.HARNESS_ERROR) from error


def comparison(cells: list[CellSummary]) -> list[str]:
    """A sentence a load level: what the same memory held and gave under either policy, and where the rest went."""
    paged = {key(cell): cell for cell in cells if cell.engine == "paged"}
    lines = []
    for other in cells:
        mine = paged.get(key(other)) if other.engine == "contiguous" else None
        if mine is None:
            continue
        lines.append(
            f"{mine.workload}, {mine.load.concurrency} asked at once: paged held {count(mine.running_max)} requests at "
            f"once, contiguous {count(other.running_max)}{times(mine.running_max, other.running_max)}; output tokens/s "
            f"{count(mine.output_tokens_per_s)} against {count(other.output_tokens_per_s)}"
            f"{times(mine.output_tokens_per_s, other.output_tokens_per_s)}; KV used "
            f"{share(mine.kv_utilisation)} against {share(other.kv_utilisation)}; "
            f"same texts {share(mine.tokens_identical_to.get(other.cell_id))}"
        )
        lines.append(f"    waste paged: {waste_sum(mine)}")
        lines.append(f"    waste contiguous: {waste_sum(other)}")
    return lines


def waste_sum(cell: CellSummary) -> str:
    """The waste and the sum it comes from; for blocks also the slots that each request leaves free in its last one."""
    shares = cell.kv_waste_sum
    if cell.kv_waste is None or not shares:
        return "not known"
    in_use = 1 - shares["cached"] - shares["free"]
    parts = [
        f"{word} {shares[name] / in_use:.1%}"
        for word, name in (("reserved for later", "reserved"), ("internal", "internal"), ("external", "external"))
    ]
    text = f"{cell.kv_waste:.1%} of the slots in use = {' + '.join(parts)}"
    if cell.engine == "paged" and cell.running_mean and cell.kv_reserved:
        slots = shares["internal"] * cell.kv_reserved / cell.running_mean
        text += f"; internal is {slots:.1f} slots a request, the free end of its last block of {BLOCK_SIZE}"
    return text


def key(cell: CellSummary) -> tuple[str, int | None, int]:
    return cell.workload, cell.load.concurrency, cell.repeat


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def times(mine: float | None, other: float | None) -> str:
    return f" ({mine / other:.1f}x)" if mine is not None and other else ""
