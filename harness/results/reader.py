"""Read a run directory back, whether the run ended well or was killed midway.

A finished run holds Parquet tables; a run that was killed still holds the journals it was writing, one JSON object a
line with the same column names (``requests.jsonl`` instead of ``requests.parquet``).  Both give the same :class:`Run`.

What is missing stays missing: a table that was never begun is empty, an absent ``summary.json`` is ``None``, a NaN
becomes null.  What contradicts itself (another schema version, columns that are absent or of the wrong type, a summary
of another run) is a :class:`RunReadError` with one sentence for the user.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from harness.results.files import GENERATION_KEY, before_of, is_written_now, journal_of, parquet_of
from harness.results.schema import (
    ANSWER_COLUMNS,
    CHUNK_COLUMNS,
    METRIC_COLUMNS,
    REQUEST_COLUMNS,
    SCHEMA_VERSION,
    SYSTEM_COLUMNS,
    RunManifest,
    Summary,
)

TABLES: dict[str, pa.Schema] = {
    "requests": REQUEST_COLUMNS,
    "chunks": CHUNK_COLUMNS,
    "metrics": METRIC_COLUMNS,
    "system": SYSTEM_COLUMNS,
    "answers": ANSWER_COLUMNS,
}

# What says what a row is of; never null.
KEYS: dict[str, tuple[str, ...]] = {
    "requests": ("cell_id", "request_index"),
    "chunks": ("cell_id", "request_index", "chunk", "t"),
    "metrics": ("cell_id", "t", "name"),
    "system": ("cell_id", "t", "source", "name"),
    "answers": ("cell_id", "request_index"),
}

_CHUNK_NUMBERS = ["request_index", "chunk", "t", "tokens"]
_JOURNAL_BLOCK_BYTES = 16 << 20  # a journal line longer than this is refused by the JSON reader

M = TypeVar("M", bound=BaseModel)


class RunReadError(ValueError):
    """A run directory that cannot be read.  The message names the file and what to do; it is shown as it is."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run directory in memory.  Its tables have exactly the columns of ``harness.results.schema``, in order."""

    path: Path
    manifest: RunManifest
    summary: Summary | None
    requests: pa.Table
    chunks: pa.Table
    metrics: pa.Table
    system: pa.Table
    answers: pa.Table = field(default_factory=ANSWER_COLUMNS.empty_table)
    chunk_file: Path | None = None  # where the chunks are when they stay on disk; ``chunks`` is empty then

    def chunk_rows(self, cell_id: str) -> pa.Table:
        """The chunks of one cell, with the columns ``request_index, chunk, t, tokens``."""
        wanted = pc.field("cell_id") == cell_id
        if self.chunk_file is None:
            return self.chunks.filter(wanted).select(_CHUNK_NUMBERS)
        table = pq.read_table(self.chunk_file, columns=_CHUNK_NUMBERS, filters=wanted)
        return _conform(table, pa.schema([CHUNK_COLUMNS.field(name) for name in _CHUNK_NUMBERS]), self.chunk_file)


def load_run(path: Path, chunks_on_disk: bool = False) -> Run:
    """Read the run directory at ``path``.

    ``chunks_on_disk`` leaves the largest table where it is, to be read a cell at a time with :meth:`Run.chunk_rows`;
    chunks that are not in a whole Parquet file are read all the same.

    Raises :class:`RunReadError` when it is not a run directory, was written under another schema version, or when its
    files contradict the schema or each other.
    """
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise RunReadError(f"{path} {problem}; give a run directory, the folder that holds run.json")
    if not (path / "run.json").is_file():
        raise RunReadError(
            f"{path} holds no run.json, so it is not a run directory; give the folder `pagedbench run` wrote"
        )
    manifest = _load_document(path / "run.json", RunManifest)
    if manifest.status == "running" and not is_written_now(path):
        _say_killed(manifest)
    summary = _load_document(path / "summary.json", Summary) if (path / "summary.json").is_file() else None
    known = {cell.cell_id for cell in manifest.cells}
    if summary is not None:
        _check_summary(path, manifest, summary, known)
    chunk_file = _whole_chunks(path, manifest.generation) if chunks_on_disk else None
    names = [name for name in TABLES if name != "chunks" or chunk_file is None]
    tables = {name: load_table(path, name, manifest.generation) for name in names}
    cells = {name: table["cell_id"] for name, table in tables.items()}
    if chunk_file is not None:
        tables["chunks"] = CHUNK_COLUMNS.empty_table()
        cells["chunks"] = pq.read_table(chunk_file, columns=["cell_id"], read_dictionary=["cell_id"])["cell_id"]
    for name, column in cells.items():
        strangers = sorted(set(pc.unique(column).to_pylist()) - known, key=str)
        if strangers:
            raise RunReadError(
                f"{path / name} has rows of cell {strangers[0]!r}, which run.json does not list; "
                "the directory mixes files of different runs, keep each run in its own"
            )
    return Run(path=path, manifest=manifest, summary=summary, chunk_file=chunk_file, **tables)


def _whole_chunks(path: Path, generation: int) -> Path | None:
    """The Parquet file of the chunks when it is whole, of this generation and of the right types; else None."""
    file = parquet_of(path, "chunks")
    if not file.is_file():
        return None
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowInvalid, OSError):
        return None
    is_current = int((schema.metadata or {}).get(GENERATION_KEY, b"0")) == generation
    is_typed = all(schema.get_field_index(f.name) >= 0 and schema.field(f.name).type == f.type for f in CHUNK_COLUMNS)
    return file if is_current and is_typed and _knows_its_keys(file) else None


def _knows_its_keys(file: Path) -> bool:
    """Whether the file's own statistics say that no key of a chunk is null."""
    metadata = pq.read_metadata(file)
    columns = [
        metadata.row_group(group).column(number)
        for group in range(metadata.num_row_groups)
        for number in range(metadata.num_columns)
    ]
    counts = [c.statistics for c in columns if c.path_in_schema in KEYS["chunks"]]
    return all(found is not None and found.has_null_count and found.null_count == 0 for found in counts)


def load_table(path: Path, name: str, generation: int = 0) -> pa.Table:
    """Table ``name`` (a key of ``TABLES``) of the run directory ``path``; empty when it was never begun.

    The Parquet file wins over the journal unless it is damaged (the writer was killed while it converted) or of an
    earlier ``generation``.
    """
    schema = TABLES[name]
    parquet, journal = parquet_of(path, name), journal_of(path, name, generation)
    before = before_of(path, name, generation)
    if parquet.is_file():
        try:
            table = pq.read_table(parquet)
        except (pa.ArrowInvalid, OSError) as error:
            if not journal.is_file():
                raise RunReadError(f"{parquet} is damaged and no journal is beside it; run again ({error})") from error
        else:
            if int((table.schema.metadata or {}).get(GENERATION_KEY, b"0")) == generation:
                return _keyed(_conform(table, schema, parquet), name, parquet)
    parts = []
    if before.is_file():
        try:
            parts.append(_keyed(_conform(pq.read_table(before), schema, before), name, before))
        except (pa.ArrowInvalid, OSError) as error:
            raise RunReadError(f"{before} is damaged; run again ({error})") from error
    if journal.is_file():
        parts.append(_keyed(_conform(_read_journal(journal, schema), schema, journal), name, journal))
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _say_killed(manifest: RunManifest) -> None:
    """A run that reads "running" and that no process writes any more was killed; so was the cell that it was in."""
    manifest.status = "killed"
    manifest.ended = "the process that made this run was killed; what it had recorded until then is here"
    for cell in manifest.cells:
        if cell.status == "running":
            cell.status = "killed"


def _load_document(file: Path, model: type[M]) -> M:
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise RunReadError(f"{file} is not readable as JSON ({error}); the file is damaged, run again") from error
    version = document.get("schema_version", SCHEMA_VERSION) if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise RunReadError(
            f"{file} has schema version {version!r} and this PagedBench reads {SCHEMA_VERSION}; "
            "use the version of PagedBench that wrote it, or run again"
        )
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise RunReadError(f"{file} breaks the schema at {where}: {first['msg']}{more}") from error


def _check_summary(path: Path, manifest: RunManifest, summary: Summary, known: set[str]) -> None:
    if summary.run_id != manifest.run_id:
        raise RunReadError(
            f"{path / 'summary.json'} belongs to run {summary.run_id!r} but run.json to {manifest.run_id!r}; "
            "keep each run in its own directory"
        )
    for cell in summary.cells:
        if cell.cell_id not in known:
            raise RunReadError(f"{path / 'summary.json'} has a cell {cell.cell_id!r} that run.json does not list")


def _read_journal(file: Path, schema: pa.Schema) -> pa.Table:
    """Rows of a journal.  A line that a kill cut short is dropped; any other bad line is an error.

    That is the last line, and where several processes wrote (``--workers``), the last of the one that was killed.
    """
    data = file.read_bytes()
    body, _, tail = data.rpartition(b"\n")
    if tail.strip() and _is_object(tail):
        body = data
    if not body.strip():
        return schema.empty_table()
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    read = pa_json.ReadOptions(block_size=_JOURNAL_BLOCK_BYTES)
    try:
        return pa_json.read_json(pa.BufferReader(body), read_options=read, parse_options=options)
    except pa.ArrowInvalid:
        return _read_journal_by_line(file, body, schema)


def _read_journal_by_line(file: Path, body: bytes, schema: pa.Schema) -> pa.Table:
    """The slow way, for what the fast reader refuses: accepts NaN, drops cut lines, and finds the line to blame."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if not line.strip() or _is_cut(line):
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            pa.Table.from_pylist([row], schema=schema)
        except (ValueError, pa.ArrowException) as error:
            raise RunReadError(
                f"{file} line {number} is not a row of this table ({error}); delete that line"
            ) from error
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema)


def _is_cut(line: bytes) -> bool:
    """Whether this is the beginning of a row (which holds no other object) without its end."""
    return line.startswith(b'{"') and not line.endswith(b"}") and not _is_object(line)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _keyed(table: pa.Table, name: str, file: Path) -> pa.Table:
    """``table``, if every row says what it is of."""
    for key in KEYS[name]:
        count = table[key].null_count
        if count:
            raise RunReadError(
                f"{file} has {count} rows without {key!r}, which every row has; it is damaged, run again"
            )
    return table


def _conform(table: pa.Table, schema: pa.Schema, file: Path) -> pa.Table:
    """``table`` with exactly the columns of ``schema``; columns it does not know are dropped, NaN becomes null."""
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise RunReadError(f"{file} lacks the column {missing[0]!r}; it was written under another schema, run again")
    columns = []
    for wanted in schema:
        column = table[wanted.name]
        try:
            column = column.cast(wanted.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise RunReadError(f"{file} column {wanted.name!r} is {column.type} where {wanted.type} belongs") from error
        if pa.types.is_floating(wanted.type):
            column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, wanted.type))
        columns.append(column)
    return pa.table(columns, schema=schema)
