"""The block map: which request holds which physical block at one step of a plan log.

::

    one square a block, in the order of the pool     colour and letter: the request       number: holders of a shared block
    thick edge: written by this step                 dashed: reserved, still empty      bare: free, or cached without a holder

A log is what ``pagedbench serve --log-plans FILE`` writes, one JSON object a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from reports.shell import render_page
from reports.style import SERIES

CELL, COLUMNS = 18, 48
MAX_BLOCKS = 10_000_000  # a pool is never larger; a log that says so is damaged
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class BlockMapError(ValueError):
    """The log has no such step, or is not a log.  The message is for the user."""


@dataclass(slots=True)
class Block:
    """Who holds one physical block."""

    holders: list[int] = field(default_factory=list)  # seq_ids
    reserved: bool = False
    written: bool = False


@dataclass(frozen=True, slots=True)
class BlockMap:
    """All blocks at one step."""

    step: int
    block_size: int
    blocks: list[Block]
    requests: dict[int, str]  # seq_id -> request

    @property
    def shared(self) -> int:
        """Blocks with more than one holder."""
        return sum(1 for block in self.blocks if len(block.holders) > 1)


def read_step(lines: Iterable[str], step: int | None) -> dict[str, Any]:
    """The log's line of ``step``, or its last one.  Raises BlockMapError."""
    found: dict[str, Any] | None = None
    first = last = None
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            at = line["step"]
        except (ValueError, KeyError, TypeError):
            raise BlockMapError(f"line {number} is not a step plan; give a file that serve --log-plans wrote") from None
        first = at if first is None else first
        last = at
        if step is None or at == step:
            found = line
    if found is None:
        raise BlockMapError(
            "the log is empty" if last is None else f"the log has the steps {first} to {last}, but not {step}"
        )
    if "num_blocks" not in found:
        raise BlockMapError("the log does not say who holds what; it was written by an older version")
    return found


def block_map(line: Mapping[str, Any]) -> BlockMap:
    """The map of one line of a log.  Raises BlockMapError for one that contradicts itself."""
    try:
        return _block_map(line)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise BlockMapError(f"a step's blocks do not fit together ({type(error).__name__}: {error})") from None


def _block_map(line: Mapping[str, Any]) -> BlockMap:
    if not 0 <= line["num_blocks"] <= MAX_BLOCKS:
        raise ValueError(f"{line['num_blocks']} blocks")
    size = line["block_size"]
    blocks = [Block() for _ in range(line["num_blocks"])]
    tables = {int(seq): table for seq, table in line["held"].items()}
    for part in line["seqs"]:
        tables[part["seq_id"]] = part["block_table"]
        end = part["start"] + len(part["tokens"])
        for block in part["block_table"][part["start"] // size : -(-end // size)]:
            blocks[block].written = True
    for seq, table in sorted(tables.items()):
        for block in table:
            if block >= 0:
                blocks[block].holders.append(seq)
    for seq, reserved in line["reserved"].items():
        for block in reserved:
            blocks[block].holders.append(int(seq))
            blocks[block].reserved = True
    return BlockMap(line["step"], size, blocks, {int(seq): name for seq, name in line["owners"].items()})


def draw_block_map(found: BlockMap, limit: int | None = None) -> str:
    """SVG of the map, coloured by the classes of the pages' style sheet; of the first ``limit`` blocks, or of all."""
    names = sorted(set(found.requests.values()), key=list(found.requests.values()).index)
    rank = {name: index for index, name in enumerate(names)}
    blocks = found.blocks[:limit]
    rows = -(-len(blocks) // COLUMNS)
    width, height = COLUMNS * CELL + 2, rows * CELL + 2
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="Block map of step {found.step}" '
        'text-anchor="middle" font-size="10">'
    ]
    for index, block in enumerate(blocks):
        x, y = index % COLUMNS * CELL + 1, index // COLUMNS * CELL + 1
        parts.append(_cell(found, block, index, x, y, rank))
    parts.append("</svg>")
    return "".join(parts)


def _cell(found: BlockMap, block: Block, index: int, x: int, y: int, rank: Mapping[str, int]) -> str:
    box = f'x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}"'
    if not block.holders:
        return f'<rect {box} class="f-none k-grid"><title>block {index}: no holder</title></rect>'
    name = found.requests.get(block.holders[0], f"sequence {block.holders[0]}")
    number = rank.get(name, 0)
    css = SERIES[number % len(SERIES)].css
    fill = "f-none" if block.reserved else f"f-{css}"
    look = "k-text" if block.written else f"k-{css}"
    extra = ' stroke-width="2.5"' if block.written else ""
    extra += ' stroke-dasharray="2 2"' if block.reserved else ""
    state = "reserved, " if block.reserved else "written by this step, " if block.written else ""
    held = ", ".join(f"{found.requests.get(seq, '?')} (sequence {seq})" for seq in block.holders)
    label = str(len(block.holders)) if len(block.holders) > 1 else LETTERS[number % len(LETTERS)]
    weight = ' font-weight="700"' if len(block.holders) > 1 else ""
    ink = "f-text" if block.reserved else "f-onlive"
    return (
        f'<g><rect {box} class="{fill} {look}"{extra}/>'
        f'<text x="{x + CELL // 2 - 1}" y="{y + CELL // 2 + 3}"{weight} class="{ink}">{label}</text>'
        f"<title>block {index}: {state}{escape(held)}</title></g>"
    )


def rows_of(found: BlockMap) -> list[dict[str, Any]]:
    """One row a request: letter, style class, name, blocks ``held``, of them ``shared``, and ``reserved`` beside."""
    counts: dict[str, list[int]] = {}
    for block in found.blocks:
        for name in {found.requests.get(seq, f"sequence {seq}") for seq in block.holders}:
            row = counts.setdefault(name, [0, 0, 0])
            row[0] += not block.reserved
            row[1] += len(block.holders) > 1
            row[2] += block.reserved
    names = sorted(set(found.requests.values()), key=list(found.requests.values()).index)
    return [
        {"letter": LETTERS[index % len(LETTERS)], "css": SERIES[index % len(SERIES)].css, "name": name,
         "held": counts.get(name, [0, 0, 0])[0], "shared": counts.get(name, [0, 0, 0])[1],
         "reserved": counts.get(name, [0, 0, 0])[2]}
        for index, name in enumerate(names)
    ]  # fmt: skip


def render_block_map(line: Mapping[str, Any]) -> str:
    """The page of one step as HTML."""
    found = block_map(line)
    held = sum(1 for block in found.blocks if block.holders)
    context = {"map": found, "rows": rows_of(found), "held": held, "total": len(found.blocks)}
    return render_page("block_map.html.j2", {**context, "picture": Markup(draw_block_map(found))})
