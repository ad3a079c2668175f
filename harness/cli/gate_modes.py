"""The ways in which ``pagedbench gate`` gets its pairs, and the files that it leaves."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from harness.cli.display import LiveDisplay
from harness.cli.errors import CliError, ExitCode
from harness.cli.execute import execute
from harness.cli.gate_conform import conformance
from harness.engines.errors import RecipeError
from harness.gate.bench_files import BenchFileError, bench_gate
from harness.gate.builds import Build, BuildError, Reset, check_recipe, choose_reset, is_drivable, plan_of
from harness.gate.cache_reset import ResetError
from harness.gate.drive import Driver, RunFailed
from harness.gate.history import HistoryError, looks_for
from harness.gate.history import read as read_history
from harness.gate.judge import judge
from harness.gate.record_file import RecordError, read_record, rejudged, to_text, write_record
from harness.gate.recorded import recorded_gate
from harness.gate.samples import SampleError
from harness.gate.thresholds import Thresholds, ThresholdsError
from harness.gate.words import explain as explain_spec
from harness.load.plan import PlanError, RunPlan, parse_slo
from harness.results.gate import GateRecord
from harness.results.reader import RunReadError

BAD_CONFIG = 3
HARNESS_ERROR = 4
INTERRUPTED = 130
CONFIG_ERRORS = (
    BenchFileError,
    BuildError,
    HistoryError,
    PlanError,
    RecipeError,
    RecordError,
    ResetError,
    RunReadError,
    SampleError,
    ThresholdsError,
)


@dataclass(frozen=True)
class Asked:
    """What the command line asked for."""

    baseline: list[str]
    candidate: list[str]
    thresholds: Thresholds | None
    shared: dict[str, Any]
    slo: list[str]
    looks: list[int] | None
    history: Path | None
    reset: Reset | None
    seed: int
    conform: str | None
    replay: Path | None
    pytest_benchmark: list[Path]
    out: Path | None
    junit: Path | None
    markdown: Path | None
    api_key: str | None
    as_json: bool
    command: list[str]
    tool_version: str
    created_utc: str

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return self.out or Path("gates") / self.created_utc.replace(":", "").replace("+0000", "")

    def limits(self) -> Thresholds:
        """The thresholds with ``--pairs`` in place."""
        chosen = self.thresholds or Thresholds()
        looks = self.looks
        if looks is None and self.history is not None:
            entries = read_history(self.history)
            rules = chosen.spec(
                list(dict.fromkeys(key.rpartition("/")[0] for e in entries for key in e.metrics)), []
            ).rules
            looks = looks_for(entries, {rule.key: rule.limit for rule in rules if rule.kind == "timing"})
        if looks is None:
            return chosen
        try:
            return chosen.model_copy(update={"pairs": type(chosen.pairs)(looks=looks)})
        except ValueError:
            raise CliError(
                f"--pairs takes rising numbers of pairs, at most 200, such as 8,12,20, not {looks}", BAD_CONFIG
            ) from None


def run_gate(asked: Asked, *, explain: bool) -> int:
    """Do what was asked and return the exit code.  Raises CliError."""
    try:
        if explain:
            typer.echo(explain_spec(_spec_to_explain(asked)))
            return 0
        record = _record(asked)
        result = record.result
        assert result is not None
        return _leave_files(asked, record) or result.exit_code
    except RunFailed as error:
        raise CliError(str(error), BAD_CONFIG if error.code == ExitCode.USAGE else error.code) from error
    except CONFIG_ERRORS as error:
        raise CliError(str(error), BAD_CONFIG) from error
    except OSError as error:
        raise CliError(f"cannot write {error.filename or asked.folder}: {error.strerror}", HARNESS_ERROR) from error


def _record(asked: Asked) -> GateRecord:
    if asked.replay is not None:
        stored = read_record(asked.replay)
        again = rejudged(stored)
        if stored.result is not None and again.result != stored.result:
            raise CliError(
                f"{asked.replay} was judged {stored.result.verdict} by version {stored.tool_version} and comes out "
                f"{again.result.verdict if again.result else 'unjudged'} here, with other numbers; use that version",
                HARNESS_ERROR,
            )
        return again
    if asked.pytest_benchmark:
        if len(asked.pytest_benchmark) != 2:
            raise CliError("--pytest-benchmark is given twice: baseline file, candidate file", BAD_CONFIG)
        record = bench_gate(
            asked.pytest_benchmark[0],
            asked.pytest_benchmark[1],
            asked.limits(),
            tool_version=asked.tool_version,
            created_utc=asked.created_utc,
            command=asked.command,
        )
        return record.model_copy(update={"result": judge(record.spec, record.pairs, warnings=record.warnings)})
    if not asked.baseline or not asked.candidate:
        raise CliError(
            "name both builds: --baseline WHERE --candidate WHERE (or --replay, --init, --explain)", BAD_CONFIG
        )
    drivable = [is_drivable(where) for where in (*asked.baseline, *asked.candidate)]
    if all(drivable):
        return _drive(asked)
    if any(drivable):
        raise CliError("--baseline and --candidate must both be engines, or both be recorded runs", BAD_CONFIG)
    record = recorded_gate(
        asked.baseline,
        asked.candidate,
        asked.limits(),
        tool_version=asked.tool_version,
        created_utc=asked.created_utc,
        command=asked.command,
    )
    return record.model_copy(update={"result": judge(record.spec, record.pairs, warnings=record.warnings)})


def _drive(asked: Asked) -> GateRecord:
    if len(asked.baseline) != 1 or len(asked.candidate) != 1:
        raise CliError("a driven gate has one --baseline and one --candidate", BAD_CONFIG)
    folder = asked.folder
    if folder.is_dir() and any(folder.iterdir()):
        raise CliError(f"--out {folder} is not empty; name a new folder", BAD_CONFIG)
    builds = (Build("baseline", asked.baseline[0]), Build("candidate", asked.candidate[0]))
    reset = choose_reset(builds, asked.reset)
    shared = dict(asked.shared)
    if asked.slo:
        shared["slo"] = parse_slo(asked.slo)
    for build in builds:
        check_recipe(build.engine(folder, 0))
        plan_of(build, shared, folder, run=0, seed=asked.seed, reset=reset, prompts="")
    display = LiveDisplay()

    def run_once(plan: RunPlan, out: Path) -> bool:
        try:
            return execute(plan, out, display, api_key=asked.api_key)[1]
        except CliError as error:
            raise RunFailed(str(error), error.code) from error

    checks = []
    if asked.conform is not None:
        display.note(f"checking the candidate's conformance ({asked.conform})")
        checks.append(conformance(asked.candidate[0], asked.conform, asked.api_key, folder / "conformance"))
    driver = Driver(
        builds=builds,
        shared=shared,
        thresholds=asked.limits(),
        seed=asked.seed,
        reset=reset,
        out=folder,
        run_once=run_once,
        note=display.note,
        save=lambda record: write_record(record, folder / "gate.json"),
        tool_version=asked.tool_version,
        created_utc=asked.created_utc,
        command=asked.command,
        api_key=asked.api_key,
        checks=checks,
    )
    return driver.run()


def _spec_to_explain(asked: Asked) -> Any:
    if asked.replay is not None:
        return read_record(asked.replay).spec
    return asked.limits().spec(["the workload"], ["the workload/kv_peak_tokens"])


def _leave_files(asked: Asked, record: GateRecord) -> int:
    """Write every view and print the verdict; the exit code when the user interrupted, else 0."""
    from reports.gate_junit import gate_junit
    from reports.gate_markdown import gate_markdown
    from reports.gate_page import gate_page

    views = {"gate.json": to_text(record), "gate.md": gate_markdown(record), "junit.xml": gate_junit(record)}
    views["gate.html"] = gate_page(record)
    if asked.replay is None or asked.out is not None:  # a replay leaves files only where it is told to
        asked.folder.mkdir(parents=True, exist_ok=True)
        for name, text in views.items():
            (asked.folder / name).write_text(text, encoding="utf-8")
    if asked.junit is not None:
        asked.junit.parent.mkdir(parents=True, exist_ok=True)
        asked.junit.write_text(views["junit.xml"], encoding="utf-8")
    if asked.markdown is not None:
        with asked.markdown.open("a", encoding="utf-8") as file:
            file.write(views["gate.md"])
    if asked.as_json:
        sys.stdout.write(views["gate.json"])
    else:
        assert record.result is not None
        typer.echo(record.result.headline)
        for reason in record.result.reasons:
            typer.echo(f"  {reason}")
        if asked.replay is None or asked.out is not None:
            typer.echo(asked.folder / "gate.html")
    return INTERRUPTED if record.is_interrupted else 0
