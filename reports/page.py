"""The HTML page: one file, no script, no external reference; what it shows is computed here, a template lays it out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from reports import calibration, compare_tables, fingerprint, memory_table, run_block_maps, shell, tables, tiles
from reports.charts import bars, latency, load_curve, memory, scatter, timeline
from reports.charts.figure import Figure
from reports.correctness import correctness
from reports.dataset import Cell, Dataset, Engine, Group, load_words
from reports.metrics import HELD, PER_GIB, RUNNING, THROUGHPUT, TPOT_CHOICES, TTFT, TTFT_CHOICES
from reports.searches import search_figures, searches
from reports.style import LEDGER, POOL, USAGE, series_style
from reports.verdict import Verdict, plain
from reports.words import DEFINITIONS, plural

# Groups that get distributions and timelines of their own; beyond that each workload shows its heaviest load.
MAX_PANELS = 4
SCATTER_POINTS = 600  # requests drawn as points over the whole page
PAGE_WIDTH = 1128  # px of the text column on a desktop


def shown_groups(data: Dataset) -> list[Group]:
    """The groups that get panels of their own: all, or the heaviest load of each workload when there are many."""
    if len(data.groups) <= MAX_PANELS:
        return data.groups
    return [data.levels(workload)[-1] for workload in data.workloads]


def panel_width(panels: int) -> int:
    """Width of one figure when ``panels`` of them share a section [px]."""
    return {0: PAGE_WIDTH - 32, 1: PAGE_WIDTH - 32, 2: 526, 4: 526}.get(panels, 336)


def level_figures(data: Dataset) -> list[Figure]:
    """Curves over the load, for every workload that ran at several."""
    swept = [workload for workload in data.workloads if len(data.levels(workload)) > 1]
    metrics = (THROUGHPUT, RUNNING, TTFT)
    return [bars.level_figure(data, workload, metric, panel_width(3)) for workload in swept for metric in metrics]


def load_curves(data: Dataset) -> list[Figure]:
    """Latency against throughput, for every workload that ran at several loads."""
    swept = [workload for workload in data.workloads if len(data.levels(workload)) > 1]
    latencies = (("ttft", TTFT_CHOICES), ("tpot", TPOT_CHOICES))
    return [
        load_curve.curve_figure(data, workload, key, choices, panel_width(2))
        for workload in swept
        for key, choices in latencies
    ]


def memory_bars(data: Dataset) -> list[Figure]:
    """Tokens held and tokens/s per GiB of the pool, where engines tell how large a slot is."""
    measured = [
        metric
        for metric in (HELD, PER_GIB)
        if any(metric.spread(group, label).values for group in data.groups for label in group.cells)
    ]
    return [bars.bar_figure(data, data.groups, metric, panel_width(2)) for metric in measured]


def bar_figures(data: Dataset) -> list[Figure]:
    """Bars, for the workloads that ran at one load."""
    flat = [group for group in data.groups if len(data.levels(group.workload)) == 1]
    return [bars.bar_figure(data, flat, metric, panel_width(2)) for metric in (THROUGHPUT, RUNNING)] if flat else []


def render_page(
    data: Dataset,
    verdict: Verdict,
    out_dir: Path | None = None,
    interactive: bool = False,
    block_maps: Sequence[Figure] | None = None,
) -> str:
    """The whole page.  ``out_dir`` is the folder it will lie in; raw files are linked when it is the run directory.

    ``interactive`` adds tooltips, zoom and a legend filter.  ``block_maps`` are figures of who held which KV block
    (by default those of the runs' own plan logs).
    """
    groups = shown_groups(data)
    width = panel_width(len(groups))
    moments = 60 if len(groups) * len(data.engines) <= 6 else 36
    points = SCATTER_POINTS // max(1, len(groups) * len(data.engines))
    ends = {group.key: timeline.end_of(group) for group in groups}
    changes = compare_tables.sections(data)
    found = searches(data)
    comparison = tables.comparison(data)
    flat = [group for group in data.groups if any(tables.mean_ledger(group, e.label) for e in data.engines)]
    context = {
        "data": data,
        "verdict": verdict,
        "title": f"PagedBench: {plain(verdict.headline)}",
        "tiles": tiles.tiles(data, verdict.group) if verdict.group is not None else [],
        "fingerprint": fingerprint.fingerprint(data),
        "metrics": tables.metrics_shown(data),
        "comparison": comparison,
        "judged": any(row.answers for block in comparison for row in block.rows),
        "correctness": correctness(data),
        "searches": found,
        "search_figures": search_figures(found, panel_width(2)),
        "changes": changes,
        "changes_summary": compare_tables.summary(changes),
        "changes_note": compare_tables.NOTE,
        "change_columns": compare_tables.COLUMNS,
        "levels": level_figures(data),
        "curves": load_curves(data),
        "bars": bar_figures(data),
        "per_gib": memory_bars(data),
        "ttft": [latency.ttft_figure(data, group, width) for group in groups],
        "itl": [latency.itl_figure(data, group, width) for group in groups],
        "e2e": [latency.e2e_figure(data, group, width) for group in groups],
        "requests": [scatter.scatter_figure(data, group, width, points) for group in groups],
        "block_maps": list(run_block_maps.block_map_figures(data) if block_maps is None else block_maps),
        "delivered": tables.delivered_rows(data),
        "timelines": [timeline.timeline_figure(data, group, width, ends[group.key], moments) for group in groups],
        "waste": bars.waste_figure(data, flat, panel_width(1)),
        "waste_rows": tables.waste_rows(data),
        "errors": tables.error_rows(data),
        "memory": memory_table.memory_table(data),
        "client": tables.client_rows(data),
        "calibrations": calibration.client_records(data),
        "calibration_columns": calibration.COLUMNS,
        "panels_left_out": len(data.groups) - len(groups),
        "columns": {0: 1, 1: 1, 2: 2, 4: 2}.get(len(groups), 3),
        "ledger": LEDGER,
        "legend": _legend(data),
        "definitions": DEFINITIONS,
        "engine_facts": [(engine, fingerprint.engine_facts(engine)) for engine in data.engines],
        "runs": fingerprint.run_facts(data, out_dir),
        "workloads": fingerprint.workload_facts(data),
        "status": {run.run.manifest.status for run in data.runs},
    }
    helpers = {
        "swatch": swatch,
        "load_title": load_title,
        "left_out": left_out,
        "change_cells": compare_tables.cells_of,
    }
    return shell.render_page("report.html.j2", context, interactive, **helpers)


def _legend(data: Dataset) -> list[Any]:
    """The layers of the KV charts that this page draws, each meaning once."""
    told = {stack.words[0].name for cell in data.cells if cell.is_valid and (stack := memory.stack(cell)) is not None}
    words = [word for layers in (LEDGER, POOL, USAGE) if layers[0].name in told for word in layers]
    return list({(word.label, word.css): word for word in words}.values())


def load_title(cell: Cell) -> str:
    """What a cell ran: workload and load."""
    return f"{cell.info.workload.name}, {load_words(cell.info.load)}"


def left_out(panels: int) -> str:
    """Says so when not every load level has a panel of its own."""
    return f" {plural(panels, 'lighter load level')} without a panel; the table has all of them." if panels else ""


_MARKER_PATHS = {
    "circle": "M15 5a4 4 0 1 1 0 8a4 4 0 1 1 0-8z",
    "square": "M11.5 5.5h7v7h-7z",
    "triangle-up": "M15 4.5l4.5 8h-9z",
    "diamond": "M15 4l4 5-4 5-4-5z",
    "cross": "M13.5 5h3v2.5H19v3h-2.5V13h-3v-2.5H11v-3h2.5z",
    "triangle-down": "M15 13.5l4.5-8h-9z",
    "triangle-right": "M19 9l-7 4.5v-9z",
    "triangle-left": "M11 9l7 4.5v-9z",
}


def swatch(engine: Engine) -> Markup:
    """An engine's line with its dash and marker, for legends."""
    style = series_style(engine.index)
    dash = " ".join(str(n) for n in style.dash)
    return Markup(
        f'<svg class="swatch" viewBox="0 0 30 18" width="30" height="18" aria-hidden="true">'
        f'<path d="M0 9H30" class="k-{style.css}" stroke-width="2" stroke-dasharray="{dash}"/>'
        f'<path d="{_MARKER_PATHS[style.marker]}" class="f-{style.css}"/></svg>'
    )
