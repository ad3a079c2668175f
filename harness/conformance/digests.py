"""Which version of a case or of a fault a finding was made with: digests of the source that decides it."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from harness.conformance.case import Case

HERE = Path(__file__).parent
# What draws, keeps and shows the matrix decides no verdict of a case.
APART = {
    "loaded",
    "tokens_in_text",
    "prove",
    "prove_report",
    "matrix",
    "digests",
    "blindness",
    "pytest_entry",
    "pytest_plugin",
    "__init__",
}
LENGTH = 12  # hex digits


def digest_of(case: Case) -> str:
    """Of everything that a case's verdict follows from here: its module, and what all cases share."""
    return _digest((Path(case.body.__code__.co_filename), *_shared()))


@cache
def _shared() -> tuple[Path, ...]:
    return tuple(path for path in sorted(HERE.glob("*.py")) if path.stem not in APART)


def digest_of_files(*paths: Path) -> str:
    return _digest(paths)


@cache
def _digest(paths: tuple[Path, ...]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:LENGTH]
