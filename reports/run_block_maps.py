"""Block maps in the report of a run: where an engine logged its plans into the run, the step that held the most.

A run has such a log when the reference engine was launched with ``log_plans={logs}/NAME.plans.jsonl``; the file then lies
in ``RUN/logs``.  Logs grow to gigabytes, so steps are looked at in ``SAMPLES`` places evenly spread over the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reports.block_map import BlockMap, block_map, draw_block_map, rows_of
from reports.charts.figure import Figure, Table
from reports.dataset import Dataset
from reports.words import count, plural

SUFFIX = ".plans.jsonl"
SAMPLES = 200  # steps that are looked at
DRAWN = 480  # blocks that are drawn; all of them are counted
MAX_LINE = 1 << 24  # bytes; a longer line is not a step


def block_map_figures(data: Dataset) -> list[Figure]:
    """One figure for every plan log of every run."""
    logs = [log for run in data.runs for log in sorted((run.run.path / "logs").glob(f"*{SUFFIX}")) if log.is_file()]
    return [_figure(index, log) for index, log in enumerate(logs)]


def fullest_step(log: Path) -> dict[str, Any] | None:
    """Of the steps looked at, the first that holds the most blocks; None when there is none that says who holds what."""
    best: tuple[int, dict[str, Any]] | None = None
    size = log.stat().st_size
    with log.open("rb") as file:
        for place in sorted({size * i // SAMPLES for i in range(SAMPLES)}):
            file.seek(max(0, place - 1))
            if place:
                file.readline(MAX_LINE)  # the rest of a line that began before this place
            held, line = _read(file.readline(MAX_LINE))
            if line is not None and (best is None or held > best[0]):
                best = held, line
    return None if best is None else best[1]


def _read(text: bytes) -> tuple[int, dict[str, Any] | None]:
    """Blocks that a line of the log holds, and the line; None when it is none, or was cut short."""
    try:
        line = json.loads(text)
        found = block_map(line)
    except (ValueError, RecursionError):
        return 0, None
    return sum(1 for block in found.blocks if block.holders), line


def _figure(index: int, log: Path) -> Figure:
    name = log.name.removesuffix(SUFFIX)
    title = f"{name}: who held which KV block"
    try:
        line = fullest_step(log)
    except OSError as error:
        return Figure(
            f"blocks-{index}", title, "Not read.", "", notes=[f"{log.name} cannot be read: {error.strerror}."]
        )
    if line is None:
        return Figure(f"blocks-{index}", title, "Nothing to draw.", "", notes=[f"{log.name} holds no step to draw."])
    found = block_map(line)
    held = sum(1 for block in found.blocks if block.holders)
    description = (
        f"Step {found.step}, the fullest of those looked at: {count(held)} of {count(len(found.blocks))} blocks held, "
        f"{count(found.shared)} of them by more than one sequence."
    )
    picture = draw_block_map(found, DRAWN).replace("<svg ", '<svg focusable="false" ', 1)
    return Figure(
        f"blocks-{index}", title, description, picture, [("Blocks by request", _table(found))], _notes(found, log)
    )


def _table(found: BlockMap) -> Table:
    rows = [
        [f"{row['letter']} {row['name']}", *(count(row[name]) for name in ("held", "shared", "reserved"))]
        for row in rows_of(found)
    ]
    return Table(["request", "blocks held", "of them shared", "reserved beside"], rows)


def _notes(found: BlockMap, log: Path) -> list[str]:
    held = sum(1 for block in found.blocks if block.holders)
    notes = [
        f"Step {found.step}: {count(held)} of {plural(len(found.blocks), 'block')} of {found.block_size} tokens held, "
        f"{count(found.shared)} shared. Colour and letter: the request. A number: so many sequences share the block. "
        "Thick edge: written by this step. Dashed: reserved, still empty."
    ]
    if len(found.blocks) > DRAWN:
        notes.append(
            f"The first {DRAWN} blocks are drawn; pagedbench blockmap logs/{log.name} --step {found.step} draws all."
        )
    return notes
