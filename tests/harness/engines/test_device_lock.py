"""Two engines are not launched onto the GPUs together, unless that is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.engines import device_lock
from harness.engines.catalogue import find
from harness.engines.device_lock import device_held
from harness.engines.errors import LaunchError
from harness.engines.launch import uses_gpu

ROOT = Path(__file__).resolve().parents[3]


def test_the_second_engine_is_told_who_holds_the_device(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(device_lock, "lock_path", lambda: tmp_path / "lock")
    with device_held("first", share=False):
        with (
            pytest.raises(LaunchError, match=r"'second' was not started.*first, harness pid"),
            device_held("second", share=False),
        ):
            pass
        with device_held("third", share=True):
            pass
    with device_held("fourth", share=False):
        pass


def test_a_killed_holder_holds_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from harness.engines import device_lock as d\n"
        "d.lock_path = lambda: Path(sys.argv[1])\n"
        "with d.device_held('first', share=False): os.kill(os.getpid(), signal.SIGKILL)"
    )
    lock = tmp_path / "lock"
    assert subprocess.run([sys.executable, "-c", code, str(lock)], cwd=ROOT).returncode < 0
    monkeypatch.setattr(device_lock, "lock_path", lambda: lock)
    with device_held("second", share=False):
        pass


def test_which_engines_take_a_gpu() -> None:
    assert uses_gpu(find("vllm"), {})
    assert not uses_gpu(find("vllm-cpu"), {})
    assert uses_gpu(find("reference"), {"device": "cuda:0"})
    assert not uses_gpu(find("reference"), {})
    for name in ("sglang", "tgi", "lmdeploy", "tensorrt-llm"):
        assert uses_gpu(find(name), {})
