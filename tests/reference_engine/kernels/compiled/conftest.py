"""Kernels compiled ahead of time for parts that are not here.  Needs a process that does not interpret (see
../test_groups.py).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ENABLED = os.environ.get("KERNEL_GROUP") == "compiled"
collect_ignore_glob = [] if ENABLED else ["test_*.py"]

if ENABLED:
    sys.path.insert(0, str(Path(__file__).parent))
