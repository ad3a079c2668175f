"""Kernels run by Triton's interpreter.  Collected only in a process that was started with TRITON_INTERPRET=1.

``../test_groups.py`` starts that process as a part of the ordinary suite; by hand:
``TRITON_INTERPRET=1 pytest tests/reference_engine/kernels/interpreted``.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETING else ["test_*.py"]

if INTERPRETING:
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    import interpreter_fixes
    import memory_check

    torch.set_num_threads(1)
    interpreter_fixes.install()
    memory_check.install()

SEED = int(os.environ.get("KERNEL_SEED", "0")) or secrets.randbits(31)


def pytest_report_header() -> str:
    return f"kernel inputs: KERNEL_SEED={SEED}"


@pytest.fixture
def seed() -> int:
    """Random data differ from run to run; set KERNEL_SEED to the number in the header to repeat one."""
    return SEED
