"""Writing a run directory so that a kill at any moment loses nothing that had finished a second before.

While the run goes on, every row is one JSON line in a journal (``requests.jsonl`` ...), flushed as it is written,
with the column names of the schema; ``run.json`` is replaced as a whole.  At the end journals become Parquet.
``reader.py`` reads either.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from harness.results.files import GENERATION_KEY, RunLock, before_of, journal_of, parquet_of
from harness.results.reader import TABLES, RunReadError, load_run, load_table
from harness.results.schema import RunManifest, Summary


class RunWriteError(OSError):
    """The run directory cannot be written.  The message names the path and is shown to the user as it is."""


class Journal:
    """One append-only file of JSON lines.  Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file: BinaryIO = path.open("ab", buffering=0)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows and hand them to the operating system, which keeps them if this process dies.

        Raises OSError; a line that a full disk cut short is then taken back, so that later ones do not follow it.
        """
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        with self._lock:
            written = 0
            try:
                while written < len(lines):
                    written += self._file.write(lines[written:])
            except OSError:
                self._take_back(written)
                raise

    def _take_back(self, written: int) -> None:
        """Remove the start of a write that a full disk cut short, unless another process has written since."""
        with contextlib.suppress(OSError):
            end = os.lseek(self._file.fileno(), 0, os.SEEK_CUR)
            if written and os.fstat(self._file.fileno()).st_size == end:
                self._file.truncate(end - written)

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
                raise RunWriteError(f"{path} already holds a run; choose another --out, or go on with --resume {path}")
            self._begin()
        except RunWriteError:
            raise
        except OSError as error:
            raise RunWriteError(f"cannot write the run directory {path}: {error.strerror or error}") from error

    @classmethod
    def resume(cls, path: Path) -> RunWriter:
        """Go on with a run: the rows of its complete cells stay, those of the others are put aside.

        Rows of cells that did not end go to ``unfinished/``, so that nothing is lost and nothing counts twice.
        Raises :class:`RunWriteError`.
        """
        writer = cls.__new__(cls)
        writer.path = path
        try:
            run = load_run(path)
            if run.manifest.status == "running":
                raise RunWriteError(f"{path} is being written by another process; wait for its end")
            writer.manifest = run.manifest
            put_aside(path, run.manifest)
            writer._begin()
            drop_old_files(path, run.manifest.generation)
        except RunReadError as error:
            raise RunWriteError(f"cannot resume: {error}") from error
        except RunWriteError:
            raise
        except OSError as error:
            raise RunWriteError(f"cannot resume the run in {path}: {error.strerror or error}") from error
        return writer

    def _begin(self) -> None:
        """Take the lock, commit the manifest, open the journals.  Raises OSError."""
        try:
            self._lock = RunLock(self.path)
        except BlockingIOError:
            raise RunWriteError(f"{self.path} is being written by another process; choose another --out") from None
        self.save_manifest()
        generation = self.manifest.generation
        self._journals = {name: Journal(journal_of(self.path, name, generation)) for name in TABLES}

    @property
    def journals(self) -> dict[str, Path]:
        """The files that rows go to now, for processes that append to them too (whole lines at a time)."""
        return {name: journal_of(self.path, name, self.manifest.generation) for name in TABLES}

    def save_manifest(self) -> None:
        """Replace ``run.json`` by the manifest as it is now.  Raises :class:`RunWriteError`."""
        try:
            write_document(self.path / "run.json", self.manifest)
        except OSError as error:
            raise RunWriteError(
                f"cannot write {self.path / 'run.json'} ({error.strerror or error}); what was written so far is kept"
            ) from error

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows (mappings with the table's column names) to a table.  Any thread may call this."""
        try:
            self._journals[table].write(rows)
        except OSError as error:
            raise RunWriteError(
                f"cannot write {self.path / table}.jsonl ({error.strerror or error}); what was written so far is kept"
            ) from error

    def close(self) -> None:
        """Turn the journals into Parquet and save the manifest.  Raises :class:`RunWriteError`; all is kept then."""
        for journal in self._journals.values():
            journal.close()
        try:
            # The manifest first: however little room is left, it says how the run ended.
            self.save_manifest()
            compact(self.path, self.manifest.generation)
        finally:
            self._lock.release()


def compact(path: Path, generation: int = 0) -> None:
    """Replace the journals of the run directory ``path`` by Parquet tables.  A journal goes only when its table is
    whole.
    """
    for name in TABLES:
        journal, before = journal_of(path, name, generation), before_of(path, name, generation)
        if not journal.exists() and not before.exists():
            continue
        parquet = parquet_of(path, name)
        try:
            write_table(load_table(path, name, generation), parquet, generation)
            journal.unlink(missing_ok=True)
            before.unlink(missing_ok=True)
        except OSError as error:
            raise RunWriteError(f"cannot write {parquet}: {error.strerror or error}; the journal is kept") from error


def write_table(table: pa.Table, file: Path, generation: int) -> None:
    """Write a Parquet file so that it is there whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    marked = table.replace_schema_metadata({GENERATION_KEY: b"%d" % generation})
    try:
        pq.write_table(marked, part, compression="zstd")
        os.replace(part, file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def put_aside(path: Path, manifest: RunManifest) -> None:
    """Begin the next generation of a run: change ``manifest`` and write the files that it will begin with."""
    complete = [cell for cell in manifest.cells if cell.status == "complete"]
    kept = pa.array([cell.cell_id for cell in complete], pa.string())
    aside = path / "unfinished"
    for name in TABLES:
        table = load_table(path, name, manifest.generation)
        counts = pc.is_in(table["cell_id"], value_set=kept)
        rest = table.filter(pc.invert(counts))
        if rest.num_rows:
            aside.mkdir(exist_ok=True)
            write_table(rest, aside / f"{name}-{manifest.generation}.parquet", manifest.generation)
        write_table(table.filter(counts), before_of(path, name, manifest.generation + 1), manifest.generation + 1)
    manifest.cells = complete
    manifest.generation += 1
    manifest.status, manifest.ended = "running", None


def drop_old_files(path: Path, generation: int) -> None:
    """Remove what no longer counts, after the manifest of the new generation is in place."""
    (path / "summary.json").unlink(missing_ok=True)
    for name in TABLES:
        parquet_of(path, name).unlink(missing_ok=True)
        journal_of(path, name, generation - 1).unlink(missing_ok=True)
        before_of(path, name, generation - 1).unlink(missing_ok=True)


def write_summary(path: Path, summary: Summary) -> None:
    """Write ``summary.json`` of the run directory ``path``.  Raises :class:`RunWriteError`."""
    try:
        write_document(path / "summary.json", summary)
    except OSError as error:
        raise RunWriteError(
            f"cannot write {path / 'summary.json'} ({error.strerror or error}); the tables are complete"
        ) from error


def write_document(file: Path, document: BaseModel) -> None:
    """Write a document so that a reader sees the old one or the new one, never half of it."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(part, file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
