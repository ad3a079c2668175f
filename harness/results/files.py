"""Names of the files of a run directory, and whether a process still writes it.

A run that is resumed begins a new *generation*: the rows of its complete cells become ``requests.before-1.parquet``,
new rows go to ``requests.1.jsonl``.  ``generation`` in ``run.json`` says which files count; it is replaced as a whole,
so that a kill at any moment leaves either the old files valid or the new ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock, nobody is ever seen to be alive
    fcntl = None  # type: ignore[assignment]

GENERATION_KEY = b"generation"
LOCK = ".lock"


def parquet_of(path: Path, table: str) -> Path:
    """The whole table of a run that was closed."""
    return path / f"{table}.parquet"


def journal_of(path: Path, table: str, generation: int) -> Path:
    """Where rows go while the run is on."""
    return path / (f"{table}.jsonl" if generation == 0 else f"{table}.{generation}.jsonl")


def before_of(path: Path, table: str, generation: int) -> Path:
    """Rows of the cells that were complete when the run was resumed."""
    return path / f"{table}.before-{generation}.parquet"


class RunLock:
    """Held while a process writes a run directory.  The system lets go of it however the process ends."""

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError when another process holds it."""
        self._file: BinaryIO = (path / LOCK).open("ab")
        self._path = path / LOCK
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._file.close()
                raise

    def release(self) -> None:
        """Let go, and leave no file behind."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()


def is_written_now(path: Path) -> bool:
    """Whether a process on this machine holds the run directory open for writing."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
