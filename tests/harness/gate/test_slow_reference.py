"""The reference engine with a known slowdown: every step that computes is lengthened by exactly its share."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.harness.gate import slow_reference

engine = pytest.importorskip("reference_engine.engine", reason="the reference engine needs torch")
PROGRAM = Path(slow_reference.__file__)
COMPUTES = SimpleNamespace(runner=None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still but for the engine's step (2 s) and for sleeps, which it keeps."""
    state = SimpleNamespace(now=100.0, slept=[])

    def run(self: Any, plan: Any) -> str:
        state.now += 2.0
        return f"outputs of {plan.name}"

    def sleep(seconds: float) -> None:
        state.slept.append(seconds)
        state.now += seconds

    # Undone after the test, with what slow_down puts in their place.
    monkeypatch.setattr(engine.Engine, "run", run)
    monkeypatch.setattr(slow_reference.Profile, "step_seconds", lambda self, plan, block_size: 3.0)
    monkeypatch.setattr(time, "perf_counter", lambda: state.now)
    monkeypatch.setattr(time, "sleep", sleep)
    return state


def test_a_step_takes_its_share_longer_and_gives_the_same(clock: SimpleNamespace) -> None:
    slow_reference.slow_down(0.05)
    plan = SimpleNamespace(name="a step", is_empty=False)
    assert engine.Engine.run(COMPUTES, plan) == "outputs of a step"
    assert clock.slept == pytest.approx([0.1])
    assert clock.now == pytest.approx(102.1)


def test_an_empty_step_and_a_share_of_zero_cost_nothing(clock: SimpleNamespace) -> None:
    slow_reference.slow_down(0.05)
    engine.Engine.run(COMPUTES, SimpleNamespace(name="nothing", is_empty=True))
    assert clock.slept == []
    slow_reference.slow_down(0.0)
    engine.Engine.run(COMPUTES, SimpleNamespace(name="nothing", is_empty=True))
    assert clock.now == pytest.approx(104.0)


def test_a_simulated_step_is_a_longer_sleep_and_not_followed_by_one(clock: SimpleNamespace) -> None:
    slow_reference.slow_down(0.05)
    simulated = SimpleNamespace(runner=object.__new__(slow_reference.SimulatedRunner))
    engine.Engine.run(simulated, SimpleNamespace(name="a step", is_empty=False))
    assert clock.slept == []
    profile = object.__new__(slow_reference.Profile)
    assert profile.step_seconds(SimpleNamespace(), 16) == pytest.approx(3.15)


def test_the_share_comes_first_and_the_rest_is_the_servers() -> None:
    words = ["slow_reference.py", "0.02", "--port", "8000"]
    assert slow_reference.share_of(words) == 0.02
    assert words == ["slow_reference.py", "--port", "8000"]


@pytest.mark.parametrize("words", [[], ["--port"], ["-0.1"], ["nan"], ["inf"]])
def test_a_missing_or_senseless_share_is_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        slow_reference.share_of(["slow_reference.py", *words])
    assert left.value.code == 2
    assert "name the slowdown first" in capsys.readouterr().err


def test_the_servers_loop_goes_through_the_slow_step() -> None:
    """``Engine.run`` is what the server calls; were it another function, the slowdown would be none."""
    found = subprocess.run(
        [sys.executable, str(PROGRAM), "0.05", "--help"], capture_output=True, text=True, timeout=120, check=False,
        cwd=PROGRAM.parents[3], env={"PYTHONPATH": str(PROGRAM.parents[3]), "PATH": ""},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "--port" in found.stdout
    loop = (PROGRAM.parents[3] / "reference_engine" / "server" / "loop.py").read_text(encoding="utf-8")
    assert "self._engine.run(plan)" in loop
