"""Start the two kernel groups, each in a process of its own.

Triton decides when it is first imported whether kernels are interpreted or compiled, so one process cannot do both,
and neither can the process that runs the rest of the suite.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need the package triton")

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def run_group(where: str, environment: dict[str, str], slow: bool, cache: Path) -> str:
    """Run the tests at ``where`` under pytest; their report if they passed, else fail with its end."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *(["--slow"] if slow else []),
            str(HERE / where),
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.fail(f"the kernel group {where} failed:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}", pytrace=False)
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", sorted(path.name for path in (HERE / "interpreted").glob("test_*.py")))
def test_interpreted_group(file: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every kernel against float64, memory and races watched, faults caught."""
    report = run_group(f"interpreted/{file}", {"TRITON_INTERPRET": "1"}, request.config.getoption("--slow"), tmp_path)
    assert "passed" in report


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_compiled_group(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every production configuration compiled for every claimed part, inside its limits."""
    environment = {"KERNEL_GROUP": "compiled", "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    report = run_group("compiled", environment, request.config.getoption("--slow"), tmp_path)
    assert "passed" in report
