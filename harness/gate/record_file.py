"""The gate's JSON document on disk: written whole or not at all, read strictly, judged again."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from harness.gate.judge import judge
from harness.results.gate import GATE_SCHEMA_VERSION, GateRecord


class RecordError(ValueError):
    """A file that is not a gate's record, or one that this version cannot judge.  Shown as it is."""


def to_text(record: GateRecord) -> str:
    """The document; the same record gives the same bytes."""
    return record.model_dump_json(indent=1) + "\n"


def write_record(record: GateRecord, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(to_text(record), encoding="utf-8")
    os.replace(part, path)


def read_record(path: Path) -> GateRecord:
    """The record in ``path``, or in ``path/gate.json``.  Raises RecordError with one sentence."""
    file = path / "gate.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise RecordError(
            f"cannot read {file}: {error.strerror}; give a gate.json or the folder that holds one"
        ) from None
    except ValueError as error:
        raise RecordError(f"{file} is not JSON ({error}); give the gate.json that pagedbench gate wrote") from None
    if not isinstance(document, dict) or document.get("document") != "pagedbench-gate":
        raise RecordError(f"{file} is not a gate's record; give the gate.json that pagedbench gate wrote")
    if document.get("schema_version") != GATE_SCHEMA_VERSION:
        raise RecordError(
            f"{file} has schema version {document.get('schema_version')!r} and this PagedBench reads "
            f"{GATE_SCHEMA_VERSION}; use the version that wrote it ({document.get('tool_version', 'unknown')})"
        )
    try:
        return GateRecord.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{file} breaks the schema at {where}: {first['msg']}") from None


def rejudged(record: GateRecord) -> GateRecord:
    """The same record with its result computed anew from its pairs and limits."""
    result = judge(
        record.spec,
        record.pairs,
        checks=record.checks,
        warnings=record.warnings,
        is_interrupted=record.is_interrupted,
    )
    return record.model_copy(update={"result": result})
