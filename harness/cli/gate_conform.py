"""The conformance suite as a part of a gate: run on the candidate as a command of its own, folded into one check."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from harness.cli.errors import CliError
from harness.gate.builds import COMMAND_PREFIX
from harness.results.conformance import SuiteResult
from harness.results.gate import VerifiedPart

BAD_CONFIG, HARNESS_ERROR = 3, 4
VERDICTS = {0: "PASS", 1: "FAIL", 2: "NOT DECIDED"}
MAX_NAMED = 8


def conformance(where: str, cases: str, api_key: str | None, out: Path) -> VerifiedPart:
    """Run ``cases`` ("structural", "all", or ids) on the engine at ``where``.  Raises CliError when that cannot be done."""
    if where.startswith(COMMAND_PREFIX):
        raise CliError("--conform needs a candidate that is a URL or a recipe, not a command", BAD_CONFIG)
    chosen = {"structural": ["--structural"], "all": []}.get(cases, ["--cases", cases])
    command = [sys.executable, "-m", "harness.cli", "conform", "--engine", f"candidate={where}", "--json", *chosen]
    environment = os.environ | ({"PAGEDBENCH_API_KEY": api_key} if api_key else {})
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False, env=environment)
    if done.returncode not in VERDICTS:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CliError(
            f"pagedbench conform on the candidate: {last.removeprefix('pagedbench: ')}",
            done.returncode or HARNESS_ERROR,
        )
    try:
        suite = SuiteResult.model_validate_json(done.stdout)
    except ValidationError as error:
        raise CliError(f"pagedbench conform gave no result: {error.errors()[0]['msg']}", HARNESS_ERROR) from error
    return part_of(suite, done.returncode)


def part_of(suite: SuiteResult, code: int) -> VerifiedPart:
    """The suite's outcome as one line: how many cases came out how, and which MUST cases failed."""
    counts: dict[str, int] = {}
    for result in suite.results:
        counts[result.verdict] = counts.get(result.verdict, 0) + 1
    said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    failed = [result for result in suite.results if result.verdict == "FAIL" and result.level == "MUST"]
    if failed:
        named = ", ".join(result.id for result in failed[:MAX_NAMED]) + (" ..." if len(failed) > MAX_NAMED else "")
        said += f"; failed: {named} ({failed[0].reason})"
    return VerifiedPart.model_validate(
        {"name": "conformance", "verdict": VERDICTS[code], "detail": said or "no case ran"}
    )
