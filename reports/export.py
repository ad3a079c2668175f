"""The cells of a report for other programs: one CSV row a cell, or one JSON document with the verdict."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from reports.dataset import Cell, Dataset
from reports.verdict import Verdict, plain

SCHEMA_VERSION = 1


def cell_record(cell: Cell) -> dict[str, Any]:
    """One cell as a flat record; nested fields are joined by a dot, what was not measured is null."""
    record: dict[str, Any] = {
        "run_id": cell.tables.run.manifest.run_id,
        "cell_id": cell.info.cell_id,
        "engine": cell.engine.label,
        "workload": cell.info.workload.name,
        "load_mode": cell.info.load.mode,
        "concurrency": cell.info.load.concurrency,
        "rate": cell.info.load.rate,
        "repeat": cell.info.repeat,
        "validity": None,
        "reasons": None,
    }
    if cell.summary is None:
        return record
    known = {"cell_id", "engine", "workload", "load", "repeat", "reasons"}
    record["reasons"] = "; ".join(cell.summary.reasons)
    record |= _flat(cell.summary.model_dump(mode="json", exclude=known))
    return record


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            record |= _flat(value, f"{prefix}{key}.")
        else:
            record[f"{prefix}{key}"] = None if isinstance(value, float) and not math.isfinite(value) else value
    return record


def to_csv(data: Dataset, verdict: Verdict) -> str:
    """One row a cell; a value that was not measured is an empty field."""
    records = [cell_record(cell) for cell in data.cells]
    columns = list(dict.fromkeys(key for record in records for key in record))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: inert(value) for key, value in record.items()} for record in records)
    return out.getvalue()


def inert(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets a quote in front."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def to_json(data: Dataset, verdict: Verdict) -> str:
    """The verdict and every cell as one JSON document."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "runs": [run.run.manifest.run_id for run in data.runs],
        "verdict": {
            "headline": plain(verdict.headline),
            "points": [plain(point) for point in verdict.points],
            "validity": verdict.badge,
            "validity_detail": verdict.badge_text,
            "reasons": [
                {"run_id": r.cell.tables.run.manifest.run_id, "cell_id": r.cell.info.cell_id, "text": r.text}
                for r in verdict.reasons
            ],
            "differences": verdict.differences,
        },
        "cells": [cell_record(cell) for cell in data.cells],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
