"""load_run: finished and killed runs give the same tables; contradictions give one clear sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.results.reader import KEYS, TABLES, Run, RunReadError, load_run, load_table

CELL = "paged.chat.c1.r0"
ROWS: dict[str, list[dict[str, Any]]] = {
    "requests": [
        {"cell_id": CELL, "request_index": i, "t_send": 10 + i, "t_first": 20 + i, "ok": True, "warmup": False}
        for i in range(3)
    ],
    "chunks": [{"cell_id": CELL, "request_index": 0, "chunk": i, "t": 20 + i, "tokens": 1} for i in range(4)],
    "metrics": [{"cell_id": CELL, "t": 5, "name": "kv_usage", "value": 0.5}],
    "system": [{"cell_id": CELL, "t": 5, "source": "client", "name": "cpu_percent", "label": "1", "value": 3.5}],
    "answers": [{"cell_id": CELL, "request_index": 0, "path": "v1/completions", "body": "{}", "text": "a"}],
}


def manifest(status: str = "complete") -> dict[str, Any]:
    return {
        "schema_version": 1,
        "run_id": "r1",
        "created_utc": "2026-11-23T07:40:00Z",
        "tool_version": "0.1.0",
        "command": ["pagedbench", "run"],
        "seed": 1,
        "machine": {
            "hostname": "h",
            "os": "Linux",
            "cpu": "c",
            "cores": 2,
            "memory_bytes": 1,
            "python": "3.11",
            "packages": {},
        },
        "engines": [{"name": "paged", "url": "http://127.0.0.1:1"}],
        "cells": [
            {
                "cell_id": CELL,
                "engine": "paged",
                "workload": {"name": "chat", "parameters": {}, "seed": 1, "digest": "d"},
                "load": {"mode": "closed", "concurrency": 1},
            }
        ],
        "status": status,
    }


def summary(run_id: str = "r1", cell_id: str = CELL) -> dict[str, Any]:
    none = {"n": 0}
    times = dict.fromkeys(("ttft", "ttft_queue", "ttft_schedule", "itl", "tpot", "e2e"), none)
    cell = {"cell_id": cell_id, "engine": "paged", "workload": "chat", "load": {"mode": "closed"}, "repeat": 0}
    counts = {"validity": "VALID", "requests_sent": 3, "requests_ok": 3, "requests_failed": 0}
    return {"schema_version": 1, "run_id": run_id, "cells": [cell | counts | times]}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(manifest()))
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    for name, schema in TABLES.items():
        pq.write_table(pa.Table.from_pylist(ROWS[name], schema=schema), tmp_path / f"{name}.parquet")
    return tmp_path


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(manifest("running")))
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def tables(run: Run) -> dict[str, pa.Table]:
    return {name: getattr(run, name) for name in TABLES}


def test_finished_run_has_every_table_with_the_exact_schema(finished: Path) -> None:
    run = load_run(finished)
    assert run.summary is not None
    assert run.summary.cells[0].requests_ok == 3
    for name, table in tables(run).items():
        assert table.schema.equals(TABLES[name])
        assert table.to_pylist() == pa.Table.from_pylist(ROWS[name], schema=TABLES[name]).to_pylist()


def test_killed_run_gives_the_same_tables_and_no_summary(killed: Path) -> None:
    run = load_run(killed)
    assert run.summary is None
    assert run.manifest.status == "killed"
    for name, table in tables(run).items():
        assert table.to_pylist() == pa.Table.from_pylist(ROWS[name], schema=TABLES[name]).to_pylist()


@pytest.mark.parametrize("cut", [1, 2, 9, 40])
def test_a_last_line_cut_short_is_dropped(killed: Path, cut: int) -> None:
    journal = killed / "chunks.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    # Only the newline is gone at cut 1: that row is whole and stays.
    assert load_run(killed).chunks.num_rows == (4 if cut == 1 else 3)


def test_a_kill_at_any_byte_never_raises_and_never_invents_a_row(killed: Path) -> None:
    journal = killed / "requests.jsonl"
    whole = journal.read_bytes()
    counts = []
    for size in range(len(whole) + 1):
        journal.write_bytes(whole[:size])
        counts.append(load_table(killed, "requests").num_rows)
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 3


def test_missing_and_empty_tables_are_empty(killed: Path) -> None:
    (killed / "chunks.jsonl").unlink()
    (killed / "system.jsonl").write_text("")
    run = load_run(killed)
    assert run.chunks.num_rows == run.system.num_rows == 0
    assert run.chunks.schema.equals(TABLES["chunks"])


def test_nan_and_infinity_become_null_in_both_forms(killed: Path) -> None:
    rows = [{"cell_id": CELL, "t": i, "name": "kv_usage", "value": v} for i, v in enumerate((0.5, math.nan, math.inf))]
    (killed / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_run(killed).metrics["value"].to_pylist() == [0.5, None, None]
    pq.write_table(pa.Table.from_pylist(rows, schema=TABLES["metrics"]), killed / "metrics.parquet")
    assert load_run(killed).metrics["value"].to_pylist() == [0.5, None, None]


def test_a_damaged_parquet_file_falls_back_to_its_journal(killed: Path) -> None:
    (killed / "requests.parquet").write_bytes(b"PAR1 cut short")
    assert load_run(killed).requests.num_rows == 3
    (killed / "requests.jsonl").unlink()
    with pytest.raises(RunReadError, match=r"requests\.parquet is damaged"):
        load_run(killed)


def test_columns_of_a_later_version_are_ignored(finished: Path) -> None:
    table = pa.Table.from_pylist([row | {"later": 1} for row in ROWS["metrics"]])
    pq.write_table(table, finished / "metrics.parquet")
    assert load_run(finished).metrics.schema.equals(TABLES["metrics"])


def test_a_bad_line_inside_a_journal_is_named(killed: Path) -> None:
    lines = (killed / "requests.jsonl").read_text().splitlines()
    for bad in ("{not json", '{"cell_id": "x", "t_send": "soon"}', "[1, 2]"):
        (killed / "requests.jsonl").write_text("\n".join([lines[0], bad, lines[1]]) + "\n")
        with pytest.raises(RunReadError, match=r"requests\.jsonl line 2 is not a row"):
            load_run(killed)


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))


def test_what_is_not_a_run_directory_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunReadError, match="does not exist"):
        load_run(tmp_path / "absent")
    with pytest.raises(RunReadError, match=r"holds no run\.json"):
        load_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunReadError, match="is a file"):
        load_run(tmp_path / "file")


def test_contradictions_are_named(finished: Path) -> None:
    cases: list[tuple[str, dict[str, Any] | list[Any], str]] = [
        ("run.json", manifest() | {"schema_version": 99}, "schema version 99"),
        ("run.json", manifest() | {"sed": 1}, "breaks the schema at sed"),
        ("run.json", {k: v for k, v in manifest().items() if k != "seed"}, "breaks the schema at seed"),
        ("run.json", [], "schema version None"),
        ("run.json", manifest() | {"cells": []}, "does not list"),
        ("summary.json", summary(run_id="other"), "belongs to run 'other'"),
        ("summary.json", summary(cell_id="ghost"), "'ghost' that run.json does not list"),
    ]
    for name, document, words in cases:
        before = (finished / name).read_text()
        write_json(finished / name, document)
        with pytest.raises(RunReadError) as caught:
            load_run(finished)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        (finished / name).write_text(before)
    load_run(finished)


def test_broken_json_is_named(finished: Path) -> None:
    (finished / "summary.json").write_text('{"schema_version": 1, "run_')
    with pytest.raises(RunReadError, match=r"summary\.json is not readable as JSON"):
        load_run(finished)


def test_columns_absent_or_of_another_type_are_named(finished: Path) -> None:
    whole = pq.read_table(finished / "chunks.parquet")
    pq.write_table(whole.drop_columns(["t"]), finished / "chunks.parquet")
    with pytest.raises(RunReadError, match="lacks the column 't'"):
        load_run(finished)
    spoiled = whole.set_column(whole.schema.get_field_index("t"), "t", pa.array(["soon"] * whole.num_rows))
    pq.write_table(spoiled, finished / "chunks.parquet")
    with pytest.raises(RunReadError, match="column 't' is string where int64 belongs"):
        load_run(finished)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in KEYS.items() for key in keys])
def test_rows_without_a_key_are_refused(finished: Path, name: str, key: str, on_disk: bool) -> None:
    rows = [dict(row) for row in ROWS[name]]
    rows[0][key] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=TABLES[name]), finished / f"{name}.parquet")
    with pytest.raises(RunReadError, match=f"{name}.parquet has 1 rows without '{key}'"):
        load_run(finished, chunks_on_disk=on_disk)


def test_rows_of_an_unknown_cell_are_refused(finished: Path) -> None:
    rows = [row | {"cell_id": "ghost"} for row in ROWS["metrics"]]
    pq.write_table(pa.Table.from_pylist(rows, schema=TABLES["metrics"]), finished / "metrics.parquet")
    with pytest.raises(RunReadError, match=r"'ghost', which run\.json does not list"):
        load_run(finished)
