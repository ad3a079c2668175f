"""Driving: the order, what is repeated, when it ends; with runs written by a stand-in for the load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.gate.builds import Build, BuildError, choose_reset, plan_of
from harness.gate.design import orders_of
from harness.gate.drive import Driver, RunFailed
from harness.gate.samples import SampleError
from harness.gate.thresholds import Thresholds, VoidAsked
from harness.load.plan import RunPlan
from harness.results.gate import GateRecord, VerifiedPart
from tests.harness.gate.conftest import write_run

BUILDS = (Build("baseline", "recipe:reference"), Build("candidate", "recipe:reference,block_size=32"))
Run = Callable[[RunPlan, Path], bool]


class Fake:
    """Writes a run for each plan; ``itl_ms`` by engine; ``failing``: runs of the candidate whose requests fail."""

    def __init__(self, candidate_ms: float = 10.0, failing: set[int] | None = None, digest: str = "d") -> None:
        self.candidate_ms, self.failing, self.digest = candidate_ms, failing or set(), digest
        self.calls: list[str] = []
        self.candidates = 0

    def __call__(self, plan: RunPlan, out: Path) -> bool:
        name = plan.engines[0].name
        self.calls.append(name)
        failed = 0
        digest = "d" * 64
        if name == "candidate":
            failed = 12 if self.candidates in self.failing else 0
            self.candidates += 1
            digest = self.digest * 64
        itl = self.candidate_ms if name == "candidate" else 10.0
        write_run(out, engine=name, itl_ms=itl, failed=failed, digest=digest, seed=len(self.calls))
        return False


def driver(tmp_path: Path, run: Run, looks: list[int] | None = None, seed: int = 0) -> Driver:
    limits = Thresholds(void=VoidAsked(foreign_cpu=None))
    limits.pairs.looks = looks or [8, 12, 20]
    return Driver(
        builds=BUILDS,
        shared={"workloads": ["concurrency:levels=2"]},
        thresholds=limits,
        seed=seed,
        reset="process",
        out=tmp_path,
        run_once=run,
        note=lambda _: None,
        save=lambda _: None,
        tool_version="0",
        created_utc="2026",
    )


def verdict(record: GateRecord) -> str:
    assert record.result is not None
    return record.result.verdict


def test_pairs_alternate_as_the_seed_says_and_end_when_decided(tmp_path: Path) -> None:
    run = Fake(candidate_ms=15)
    record = driver(tmp_path, run, seed=3).run()
    assert verdict(record) == "FAIL"
    assert len(record.pairs) == 12
    names = {"A": "baseline", "B": "candidate"}
    assert run.calls == [names[letter] for order in orders_of(3, 12) for letter in order]


def test_blocks_are_abba_or_baab_and_do_not_depend_on_their_number() -> None:
    orders = orders_of(5, 40)
    blocks = {"".join(orders[i : i + 2]) for i in range(0, 40, 2)}
    assert blocks == {"ABBA", "BAAB"}
    assert orders_of(5, 7) == orders[:7]


def test_a_void_pair_is_repeated_and_does_not_count(tmp_path: Path) -> None:
    record = driver(tmp_path, Fake(failing={2})).run()
    attempts = [(pair.index, pair.attempt, pair.is_void) for pair in record.pairs]
    assert (2, 0, True) in attempts
    assert (2, 1, False) in attempts
    assert record.result is not None
    assert record.result.attempts_void == 1
    assert record.result.pairs_used >= 8


def test_a_candidate_that_always_fails_its_requests_fails(tmp_path: Path) -> None:
    run = Fake(failing=set(range(99)), candidate_ms=1)
    record = driver(tmp_path, run).run()
    assert verdict(record) == "FAIL"
    assert run.candidates == 3
    assert record.result is not None
    assert "failed in every one of 3 runs" in record.result.headline


def test_an_engine_that_never_starts_ends_the_gate(tmp_path: Path) -> None:
    def refuse(plan: RunPlan, out: Path) -> bool:
        raise RunFailed("engine 'baseline' did not start", 3)

    with pytest.raises(RunFailed, match="did not start"):
        driver(tmp_path, refuse).run()


def test_a_candidate_that_dies_later_is_void_then_broken(tmp_path: Path) -> None:
    run = Fake()

    def dies(plan: RunPlan, out: Path) -> bool:
        if plan.engines[0].name == "candidate" and run.candidates >= 1:
            raise RunFailed("engine 'candidate' was killed by SIGSEGV\nlog", 3)
        return run(plan, out)

    record = driver(tmp_path, dies).run()
    assert verdict(record) == "FAIL"
    assert record.result is not None
    assert "SIGSEGV" in record.result.headline
    assert len(record.pairs) == 4


def test_different_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="different requests"):
        driver(tmp_path, Fake(digest="e")).run()


def test_interrupted_keeps_what_was_measured(tmp_path: Path) -> None:
    run = Fake()

    def stop(plan: RunPlan, out: Path) -> bool:
        return True if len(run.calls) >= 5 else run(plan, out)

    record = driver(tmp_path, stop).run()
    assert record.is_interrupted
    assert len(record.pairs) == 2
    assert verdict(record) == "INCONCLUSIVE"


def test_a_candidate_that_fails_conformance_is_not_timed(tmp_path: Path) -> None:
    run = Fake()
    gate = driver(tmp_path, run)
    gate.checks.append(VerifiedPart(name="conformance", verdict="FAIL", detail="failed: STR-01"))
    record = gate.run()
    assert verdict(record) == "FAIL"
    assert run.calls == []
    assert record.result is not None
    assert "STR-01" in record.result.headline


def test_seeds_of_fresh_processes_and_of_servers_that_stay() -> None:
    build = Build("baseline", "http://127.0.0.1:1")

    def seed(reset: str, prompts: str) -> int:
        return plan_of(build, {}, Path(), run=0, seed=7, reset=reset, prompts=prompts).seed  # type: ignore[arg-type]

    assert seed("process", "0/0") == seed("process", "1/0") == 7
    assert seed("prompts", "0/0") == seed("prompts", "0/0") != seed("prompts", "1/0")


def test_the_run_number_fills_its_placeholder() -> None:
    asked = Build("candidate", "recipe:emulator,seed=4{run}").engine(Path(), 12)
    assert asked["settings"] == {"seed": "412"}


def test_a_command_becomes_a_recipe(tmp_path: Path) -> None:
    asked = Build("candidate", "cmd:serve --port {port} --flag 'a b'").engine(tmp_path, 0)
    text = Path(asked["recipe"]).read_text()
    assert '"a b"' in text
    with pytest.raises(BuildError, match="port"):
        Build("candidate", "cmd:serve").engine(tmp_path, 0)


def test_resets_that_cannot_be_done_are_refused() -> None:
    urls = (Build("baseline", "http://a"), Build("candidate", "http://b"))
    assert choose_reset(urls, None) == "prompts"
    assert choose_reset(BUILDS, None) == "process"
    with pytest.raises(BuildError):
        choose_reset(urls, "process")
    with pytest.raises(BuildError):
        choose_reset(BUILDS, "cache")
