"""Where a machine's calibration is kept between runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pydantic import ValidationError

from harness.results.schema import Calibration


def calibration_file() -> Path:
    """Where this machine's calibration is kept: ``$XDG_CACHE_HOME/pagedbench/calibration.json``."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "pagedbench" / "calibration.json"


def load_calibration() -> Calibration | None:
    """The stored calibration of this machine, or None where there is none (or it is of another machine)."""
    try:
        found = Calibration.model_validate_json(calibration_file().read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.hostname == platform.node() and found.cores == os.cpu_count() else None


def save_calibration(found: Calibration) -> Path:
    """Store it.  Raises OSError."""
    file = calibration_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)
    return file
