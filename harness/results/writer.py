"""Writing a run directory so that a kill at any moment loses nothing that had finished a second before.

While the run goes on, every row is one JSON line in a journal (``requests.jsonl`` ...), flushed as it is written,
with the column names of the schema; ``run.json`` is replaced as a whole.  At the end journals become Parquet.
``reader.py`` reads either.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow.parquet as pq
from pydantic import BaseModel

from harness.results.reader import TABLES, load_table
from harness.results.schema import RunManifest, Summary


class RunWriteError(OSError):
    """The run directory cannot be written.  The message names the path and is shown to the user as it is."""


class Journal:
    """One append-only file of JSON lines.  Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file: BinaryIO = path.open("ab")

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows and hand them to the operating system, which keeps them if this process dies."""
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        with self._lock:
            self._file.write(lines)
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class RunWriter:
    """The run directory of a run that is going on."""

    def __init__(self, path: Path, manifest: RunManifest) -> None:
        """Create the directory.  Raises :class:`RunWriteError` when it cannot be written or holds another run."""
        self.path = path
        self.manifest = manifest
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / "run.json").exists():
                raise RunWriteError(f"{path} already holds a run; choose another --out")
            self.save_manifest()
            self._journals = {name: Journal(path / f"{name}.jsonl") for name in TABLES}
        except RunWriteError:
            raise
        except OSError as error:
            raise RunWriteError(f"cannot write the run directory {path}: {error.strerror or error}") from error

    def save_manifest(self) -> None:
        """Replace ``run.json`` by the manifest as it is now."""
        write_document(self.path / "run.json", self.manifest)

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows (mappings with the table's column names) to a table.  Any thread may call this."""
        try:
            self._journals[table].write(rows)
        except OSError as error:
            raise RunWriteError(
                f"cannot write {self.path / table}.jsonl ({error.strerror or error}); what was written so far is kept"
            ) from error

    def close(self) -> None:
        """Turn the journals into Parquet and save the manifest."""
        for journal in self._journals.values():
            journal.close()
        compact(self.path)
        self.save_manifest()


def compact(path: Path) -> None:
    """Replace the journals of the run directory ``path`` by Parquet tables.  A journal goes only when its table is
    whole.
    """
    for name in TABLES:
        journal, parquet = path / f"{name}.jsonl", path / f"{name}.parquet"
        if not journal.exists():
            continue
        part = path / f".{name}.parquet.part"
        try:
            pq.write_table(load_table(path, name), part, compression="zstd")
            os.replace(part, parquet)
            journal.unlink()
        except OSError as error:
            raise RunWriteError(f"cannot write {parquet}: {error.strerror or error}; the journal is kept") from error


def write_summary(path: Path, summary: Summary) -> None:
    """Write ``summary.json`` of the run directory ``path``."""
    write_document(path / "summary.json", summary)


def write_document(file: Path, document: BaseModel) -> None:
    """Write a document so that a reader sees the old one or the new one, never half of it."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)
