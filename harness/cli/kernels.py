"""``pagedbench kernels``: the attention kernels of the reference engine on this device, correct first, then fast."""

from __future__ import annotations

import datetime
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.errors import CliError

EXIT_WRONG = 1
EXIT_NO_TRITON = 3


def kernels(
    quick: Annotated[bool, typer.Option("--quick", help="Two headline shapes instead of the whole grid.")] = False,
    with_peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Also time SDPA, flex_attention, FlashInfer and flash-attn.")
    ] = True,
    seed: Annotated[int | None, typer.Option(help="Seed of the random inputs; drawn when not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for kernels.json and kernels.html.")] = None,
) -> None:
    """Check the attention kernels against float64, then time them against this device's own limits.

    On a CUDA device: correctness over types, head sizes and pages; time, bytes moved, bandwidth as a share of the
    copy bandwidth measured here, and the same for every importable peer.  Without one, the kernels run in Triton's
    interpreter: correctness on tiny shapes, no times.

    Exit codes: 0 all correct, 1 a kernel is wrong, 2 usage, 3 triton or torch is missing.
    """
    results = measure(quick=quick, with_peers=with_peers, seed=secrets.randbits(30) if seed is None else seed)
    if out is not None:
        write(results, out)
    if as_json:
        typer.echo(json.dumps(results, indent=1))
    else:
        from reference_engine.kernels.report import summarize

        typer.echo(summarize(results))
        for line in results["not_measured"]:
            typer.echo(f"not measured: {line}")
        if out is not None:
            typer.echo(f"written to {out}")
    if not all(row["passed"] for row in results["check"]):
        raise typer.Exit(EXIT_WRONG)


def measure(*, quick: bool, with_peers: bool, seed: int) -> dict[str, Any]:
    """Everything that can be measured on this machine, and why the rest cannot."""
    try:
        import torch

        if not torch.cuda.is_available():
            os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
        from reference_engine.kernels import measure as bench
    except ImportError as error:
        raise CliError(
            f"the kernels need the package {error.name}; install pagedbench[engine,gpu]", EXIT_NO_TRITON
        ) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: dict[str, Any] = {
        "schema": bench.SCHEMA_VERSION,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": bench.describe_environment(device),
        "seed": seed,
        "not_measured": [],
    }
    if device.type == "cpu":
        typer.echo("no CUDA device: checking the kernels in Triton's interpreter on tiny shapes", err=True)
        try:
            results["check"] = list(bench.check(bench.tiny_grid(), device, seed=seed))
        except Exception as error:
            raise CliError(f"Triton's interpreter failed here: {error}; numpy below 2.4 suits Triton 3.6") from None
        results["not_measured"] = [
            "times, bandwidth and peers: this machine has no CUDA device, and the interpreter's times mean nothing",
            "16-bit types: Triton's interpreter computes bfloat16 wrongly; the test suite checks them with that repaired",
        ]
        return results
    progress = lambda text: typer.echo(text, err=True)  # noqa: E731
    progress("measuring this device's limits")
    ceilings = bench.measure_ceilings(device)
    results["ceilings"] = ceilings.as_json()
    progress("checking against float64")
    checked = bench.check_grid()
    results["check"] = list(bench.check(checked[:6] if quick else checked, device, seed=seed))
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(bench.default_grid(quick=quick)):
        progress(f"timing {case.name}")
        rows.extend(bench.time_case(case, device, ceilings, seed=seed + number, with_peers=with_peers))
    results["attention"] = {"rows": rows, "against_peers": bench.compare_with_peers(rows)}
    skipped = sorted(
        {f"{row['kernel']}: {row['skipped']}" for row in rows if "not installed" in row.get("skipped", "")}
    )
    results["not_measured"] = skipped
    return results


def write(results: dict[str, Any], out: Path) -> None:
    """``kernels.json`` and the page with the roofline."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "kernels.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        try:
            from reports.kernels_page import render_kernels_page
        except ImportError as error:
            results["not_measured"].append(f"kernels.html: the package {error.name} is missing (pagedbench[report])")
            return
        (out / "kernels.html").write_text(render_kernels_page(results), encoding="utf-8")
    except OSError as error:
        raise CliError(f"--out {out}: cannot write there ({error.strerror}); choose another folder") from None
