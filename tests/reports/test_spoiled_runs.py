"""Runs spoiled at random: whatever a file says, it gives a page, or one sentence, and never a number that is none."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from harness.results.reader import RunReadError
from harness.results.schema import CellSummary
from reports.build import build_report
from reports.dataset import ReportError
from tests.reports.conftest import SCHEMAS

INTEGERS: tuple[Any, ...] = (None, 0, -1, 1, 2**62, -(2**62), 10**15)
FLOATS: tuple[Any, ...] = (None, 0.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 1e-300, -1e18)
TEXTS: tuple[Any, ...] = (None, "", "x", "<b>", "nan", "\u202e" + "long " * 200, "client", "kernel", "a|b\n|c")


def spoil_tables(rng: random.Random, run: Any) -> str:
    """Damage one column of one table, or its rows; says what was done."""
    name = rng.choice(list(SCHEMAS))
    rows: list[dict[str, Any]] = getattr(run.tables, name)
    way = rng.choice(("values", "values", "values", "one value", "shuffle", "drop", "repeat"))
    if way == "drop":
        rows[:] = [row for row in rows if rng.random() < rng.choice((0.02, 0.5, 0.98))]
        return f"{name}: rows dropped"
    if way == "repeat":
        rows += [dict(row) for row in rows if rng.random() < 0.3]
        return f"{name}: rows twice"
    column = rng.choice([field for field in SCHEMAS[name] if field.name != "cell_id"])
    if way == "shuffle":
        values = [row.get(column.name) for row in rows]
        rng.shuffle(values)
        for row, value in zip(rows, values, strict=True):
            row[column.name] = value
        return f"{name}.{column.name}: shuffled"
    kinds = {pa.int64(): INTEGERS, pa.float64(): FLOATS, pa.string(): TEXTS, pa.bool_(): (None, True, False)}
    share = rng.choice((0.05, 0.5, 1.0))
    one = rng.choice(kinds[column.type])
    of = rng.choice(sorted({row["cell_id"] for row in rows} | {""})) if rows and rng.random() < 0.5 else ""
    for row in rows:
        if row["cell_id"].startswith(of) and rng.random() < share:
            row[column.name] = one if way == "one value" else rng.choice(kinds[column.type])
    return f"{name}.{column.name}: {way} ({share:.0%} of {of or 'all cells'})"


def spoil_document(rng: random.Random, path: Path) -> str:
    """Change one leaf of a JSON document to something of any type, or take it away."""
    document = json.loads(path.read_text())
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(document)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
        done = "taken away"
    else:
        node[key] = rng.choice((*INTEGERS, *FLOATS, *TEXTS, [], {}, True))
        done = f"= {node[key]!r}"
    path.write_text(json.dumps(document))
    return f"{path.name}: {key} {done}"[:120]


def check(seed: int, draft: Callable[..., Any], engines: Any, folder: Path) -> str:
    """Spoil a run by the seed and build all its reports; says what came of it."""
    rng = random.Random(seed)
    names = rng.sample(["paged", "vllm", "llama.cpp", "contiguous"], rng.choice((1, 2)))
    run = draft(
        [engines[name] for name in names], workloads=["chat"], requests=rng.choice((1, 2, 12)), seed=seed,
        repeats=rng.choice((1, 2)),
    )  # fmt: skip
    done = [spoil_tables(rng, run) for _ in range(rng.choice((0, 1, 2, 4)))]
    path = run.write(folder / "run", with_summary=rng.random() < 0.5)
    documents = [path / name for name in ("run.json", "summary.json") if (path / name).exists()]
    done += [spoil_document(rng, rng.choice(documents)) for _ in range(rng.choice((0, 0, 1, 2)) or not done)]
    told = "; ".join(done)
    for form in ("html", "md", "csv", "json"):
        refusal = None
        try:
            text = build_report(path, folder / f"report.{form}", format=form).read_text()
        except (RunReadError, ReportError) as error:
            refusal = str(error)
        except Exception as error:
            raise AssertionError(f"{form}, seed {seed}: {told}") from error
        if refusal is not None:
            assert refusal.strip(), told
            assert "Traceback" not in refusal, told
            return f"refused: {refusal}"
        if form == "html":
            assert not re.search(r">\s*(nan|None|inf|-inf|NaN)\s*<", text.replace(">nan<", "")), told
            assert not re.search(
                r'\b(?:d|x|y|cx|cy|width|height|transform|points)="[^"]*\b(NaN|nan|inf|undefined)\b', text
            ), told
        if form == "json":
            json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in the JSON: {told}"))
    return "page"


@pytest.mark.parametrize("seed", range(12))
def test_a_spoiled_run_gives_a_page_or_a_sentence(
    seed: int, draft: Callable[..., Any], engines: Any, tmp_path: Path
) -> None:
    check(seed, draft, engines, tmp_path)


@pytest.mark.parametrize("value", [0, None])
@pytest.mark.parametrize("engines_of", [["contiguous"], ["paged", "contiguous"]])
def test_every_figure_of_a_summary_may_be_zero_or_missing(
    value: int | None, engines_of: list[str], draft: Callable[..., Any], engines: Any, tmp_path: Path
) -> None:
    """Each figure in turn, on one engine and on both: a ratio to nothing is not drawn, and nothing falls over."""
    figures = [
        name for name, field in CellSummary.model_fields.items() if field.annotation in (float | None, int | None)
    ]
    assert len(figures) > 30
    for figure in figures:
        run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"], requests=4)
        for cell in run.summary.cells:
            if cell.engine in engines_of:
                setattr(cell, figure, value)
        text = build_report(run.write(tmp_path / figure), tmp_path / f"{figure}.md", format="md").read_text()
        assert not re.search(r"\b(nan|inf|None)\b", text), figure


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hundreds_of_spoiled_runs(draft: Callable[..., Any], engines: Any, tmp_path: Path) -> None:
    outcomes = [check(seed, draft, engines, tmp_path / str(seed)) for seed in range(1000, 1400)]
    assert outcomes.count("page") > 200
