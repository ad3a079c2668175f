"""The machine's CPU time that went to others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness.telemetry import foreign
from harness.telemetry.foreign import ForeignSampler


class Machine:
    """Two CPUs and three processes whose clocks the test turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10.0
        self.cpus = [
            SimpleNamespace(user=100.0, nice=0.0, system=50.0, steal=0.0, idle=5.0, guest=70.0) for _ in range(3)
        ]
        self.used = {1: 7.0, 2: 9.0}
        self.allowed = [0, 1]
        monkeypatch.setattr(foreign.time, "monotonic_ns", lambda: round(self.now * 1e9))
        monkeypatch.setattr(foreign.psutil, "cpu_times", lambda percpu: [SimpleNamespace(**vars(c)) for c in self.cpus])
        monkeypatch.setattr(foreign.psutil, "Process", self.process)

    def process(self, pid: int) -> Any:
        if pid not in self.used:
            raise psutil.NoSuchProcess(pid)
        times = SimpleNamespace(user=self.used[pid], system=0.0, children_user=99.0)
        return SimpleNamespace(cpu_times=lambda: times, cpu_affinity=lambda: self.allowed)


def told(sampler: ForeignSampler) -> dict[str, float]:
    return {row["name"]: row["value"] for row in sampler.sample()}


def test_what_is_busy_and_not_ours_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    sampler = ForeignSampler(lambda: [1, 2, 3])
    assert list(sampler.sample()) == []
    machine.now += 2
    machine.cpus[0].user += 1.0
    machine.cpus[0].guest += 1.0  # part of user, not to be counted twice
    machine.cpus[1].system += 0.6
    machine.cpus[1].steal += 0.4
    machine.cpus[2].user += 2.0  # a CPU that ours may not use
    machine.used[1] += 0.3
    machine.used[2] += 0.1
    rows = list(sampler.sample())
    assert {row["t"] for row in rows} == {10 * 10**9}
    assert {row["name"]: row["value"] for row in rows} == pytest.approx(
        {"foreign_cpu_percent": 100 * (1.6 - 0.4) / 4, "stolen_cpu_percent": 10.0}
    )


def test_processes_come_and_go_and_clocks_are_coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    ours = [1]
    sampler = ForeignSampler(lambda: ours)
    list(sampler.sample())
    machine.now += 1
    machine.cpus[0].user += 0.5
    machine.used |= {3: 0.51}  # came since, with a tick more than its CPU was booked
    ours.append(3)
    assert told(sampler)["foreign_cpu_percent"] == 0.0
    del machine.used[3]
    machine.now += 1
    machine.cpus[0].user += 1.0
    assert told(sampler)["foreign_cpu_percent"] == pytest.approx(50.0)
    assert told(sampler) == {}, "no time passed"


def test_a_real_hog_is_foreign_until_it_is_ours() -> None:
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        process = psutil.Process(hog.pid)
        sampler = ForeignSampler(lambda: [os.getpid()])
        began = time.monotonic()
        list(sampler.sample())
        used = process.cpu_times().user
        while process.cpu_times().user - used < 0.5:
            time.sleep(0.05)
        percent = told(sampler)["foreign_cpu_percent"]
        # Our clock starts before the sampler's and ends after it: a pause between the two makes the share smaller only.
        share = 0.5 / (time.monotonic() - began) / len(os.sched_getaffinity(0))
        assert percent > 80 * share
    finally:
        hog.kill()
        hog.wait()
