"""The HTML page: one file, no script, no external reference; what it shows is computed here, a template lays it out."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.results.schema import MachineInfo
from reports import tables
from reports.charts import bars, latency, memory, timeline
from reports.charts.figure import Figure
from reports.dataset import Dataset, Engine, Group, load_words
from reports.metrics import HEADLINES, RUNNING, THROUGHPUT, TTFT, Metric
from reports.style import LEDGER, POOL, USAGE, series_style
from reports.verdict import Reason, Verdict, differ, plain
from reports.words import DEFINITIONS, NULL_HTML, NULL_TEXT, byte_size, factor, plural

# Groups that get distributions and timelines of their own; beyond that each workload shows its heaviest load.
MAX_PANELS = 6
PAGE_WIDTH = 1128  # px of the text column on a desktop
RUN_FILES = (
    "run.json",
    "summary.json",
    *(f"{name}.{ext}" for ext in ("parquet", "jsonl") for name in ("requests", "chunks", "metrics", "system")),
)


@dataclass(frozen=True)
class TileRow:
    """One engine in a tile; ``fill`` is the length of its bar, 0 to 1."""

    engine: Engine
    text: str
    range: str
    fill: float


@dataclass(frozen=True)
class Tile:
    """One headline metric."""

    label: str
    unit: str
    better: str
    factor: str
    rows: list[TileRow]


def tiles(data: Dataset, group: Group) -> list[Tile]:
    """The headline metrics of the engines of one group."""
    return [_tile(data, group, metric) for metric in HEADLINES]


def _tile(data: Dataset, group: Group, metric: Metric) -> Tile:
    spreads = {e.label: metric.spread(group, e.label) for e in data.engines if e.label in group.cells}
    middles = [s.middle for s in spreads.values() if s.middle is not None]
    top = 1.0 if metric.show(0.5).endswith("%") else max(middles, default=0.0)
    rows = []
    for engine in data.engines:
        if engine.label not in spreads:
            continue
        spread = spreads[engine.label]
        shown = tables.value(spread, metric)
        text = shown.text if group.valid(engine.label) else "INVALID"
        fill = (spread.middle or 0.0) / top if top > 0 else 0.0
        rows.append(TileRow(engine, text, shown.range, min(1.0, max(0.0, fill))))
    known = sorted((s for s in spreads.values() if s.values), key=lambda s: s.middle or 0.0)
    ratio = ""
    if len(known) > 1 and differ(known[0], known[-1]) and known[0].middle:
        ratio = factor((known[-1].middle or 0.0) / known[0].middle)
    return Tile(metric.label, metric.unit if metric.unit == "ms" else "", metric.better, ratio, rows)


def shown_groups(data: Dataset) -> list[Group]:
    """The groups that get panels of their own: all, or the heaviest load of each workload when there are many."""
    if len(data.groups) <= MAX_PANELS:
        return data.groups
    return [data.levels(workload)[-1] for workload in data.workloads]


def panel_width(panels: int) -> int:
    """Width of one figure when ``panels`` of them share a section [px]."""
    return {0: 720, 1: 720, 2: 540, 4: 540}.get(panels, 360)


def throughput_figures(data: Dataset) -> list[Figure]:
    """Bars where every workload ran at one load, curves over the load where there are several."""
    figures = []
    swept = [workload for workload in data.workloads if len(data.levels(workload)) > 1]
    flat = [group for group in data.groups if group.workload not in swept]
    for workload in swept:
        figures += [bars.level_figure(data, workload, metric, panel_width(3)) for metric in (THROUGHPUT, RUNNING, TTFT)]
    if flat:
        figures += [bars.bar_figure(data, flat, metric, panel_width(2)) for metric in (THROUGHPUT, RUNNING)]
    return figures


def engine_facts(engine: Engine) -> list[tuple[str, str]]:
    """What an engine told of itself."""
    info = engine.info
    settings = ", ".join(f"{key}={value}" for key, value in sorted(info.settings.items()))
    facts = [
        ("kind", info.kind),
        ("version", info.version),
        ("model", info.model),
        ("dtype", info.dtype),
        ("max_model_len", None if info.max_model_len is None else f"{info.max_model_len:,}"),
        ("settings", settings or None),
        ("recipe", info.recipe),
        ("address", info.url or None),
    ]
    return [(key, NULL_TEXT if value is None else value) for key, value in facts]


def machine_words(machine: MachineInfo) -> str:
    """A machine in one line."""
    gpus = [str(gpu.get("name", "GPU")) for gpu in machine.gpus]
    return ", ".join(
        [
            machine.hostname,
            machine.cpu,
            f"{machine.cores} cores",
            byte_size(machine.memory_bytes),
            *(gpus or ["no GPU"]),
        ]
    )


def fingerprint(data: Dataset) -> list[tuple[str, str]]:
    """The first screen's line: which engines, model, flags, seed, machine, when."""
    runs = [run.run.manifest for run in data.runs]
    told = []
    for engine in data.engines:
        info = engine.info
        what = " ".join(word for word in (info.kind, info.version) if word) or "unknown engine"
        flags = [
            f"{key} {value}" for key, value in sorted(info.settings.items()) if isinstance(value, str | int | float)
        ]
        told.append(f"{engine.label}: {'; '.join([what, *flags[:4]])}")
    models = dict.fromkeys(e.info.model for e in data.engines if e.info.model)
    dtypes = dict.fromkeys(e.info.dtype for e in data.engines if e.info.dtype)
    return [
        ("Engines", " · ".join(told) or NULL_TEXT),
        ("Model", f"{', '.join(models) or NULL_TEXT}, {', '.join(dtypes) or 'dtype not stated'}"),
        ("Seed", ", ".join(dict.fromkeys(str(run.seed) for run in runs))),
        ("Date", ", ".join(dict.fromkeys(run.created_utc for run in runs))),
        ("Machine", " / ".join(dict.fromkeys(machine_words(run.machine) for run in runs))),
    ]


def run_facts(data: Dataset, out_dir: Path | None) -> list[dict[str, Any]]:
    """Per run: identity, command, machine, packages, and the raw files beside the page."""
    facts = []
    for one in data.runs:
        manifest = one.run.manifest
        beside = out_dir is not None and out_dir.resolve() == one.run.path.resolve()
        facts.append(
            {
                "manifest": manifest,
                "command": shlex.join(manifest.command),
                "rebuild": shlex.join(["pagedbench", "report", one.run.path.resolve().name]),
                "machine": machine_words(manifest.machine),
                "packages": ", ".join(f"{k} {v}" for k, v in sorted(manifest.machine.packages.items())),
                "files": [name for name in RUN_FILES if (one.run.path / name).is_file()],
                "linked": beside,
            }
        )
    return facts


def workload_facts(data: Dataset) -> list[dict[str, Any]]:
    """Per workload: parameters, seed, digest."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in data.cells:
        info = cell.info.workload
        parameters = ", ".join(f"{key}={value}" for key, value in sorted(info.parameters.items()))
        seen.setdefault(
            (info.name, info.digest),
            {"name": info.name, "parameters": parameters, "seed": info.seed, "digest": info.digest},
        )
    return list(seen.values())


def render_page(data: Dataset, verdict: Verdict, out_dir: Path | None = None) -> str:
    """The whole page.  ``out_dir`` is the folder it will lie in; raw files are linked when it is the run directory."""
    groups = shown_groups(data)
    width = panel_width(len(groups))
    ends = {group.key: timeline.end_of(group) for group in groups}
    flat = [group for group in data.groups if any(tables.mean_ledger(group, e.label) for e in data.engines)]
    context = {
        "data": data,
        "verdict": verdict,
        "title": f"PagedBench: {plain(verdict.headline)}",
        "tiles": tiles(data, verdict.group) if verdict.group is not None else [],
        "fingerprint": fingerprint(data),
        "metrics": tables.metrics_shown(data),
        "comparison": tables.comparison(data),
        "throughput": throughput_figures(data),
        "ttft": [latency.ttft_figure(data, group, width) for group in groups],
        "itl": [latency.itl_figure(data, group, width) for group in groups],
        "memory": [memory.memory_figure(data, group, width, ends[group.key]) for group in groups],
        "timelines": [timeline.timeline_figure(data, group, width, ends[group.key]) for group in groups],
        "waste": bars.waste_figure(data, flat, PAGE_WIDTH - 32),
        "waste_rows": tables.waste_rows(data),
        "errors": tables.error_rows(data),
        "client": tables.client_rows(data),
        "panels_left_out": len(data.groups) - len(groups),
        "columns": {0: 1, 1: 1, 2: 2, 4: 2}.get(len(groups), 3),
        "ledger": LEDGER,
        "legend": _legend(data),
        "definitions": DEFINITIONS,
        "engine_facts": [(engine, engine_facts(engine)) for engine in data.engines],
        "runs": run_facts(data, out_dir),
        "workloads": workload_facts(data),
        "status": {run.run.manifest.status for run in data.runs},
    }
    return environment().get_template("report.html.j2").render(context)


def _legend(data: Dataset) -> list[Any]:
    """The layers of the KV charts that this page draws, each meaning once."""
    told = {stack.words[0].name for cell in data.cells if cell.is_valid and (stack := memory.stack(cell)) is not None}
    words = [word for layers in (LEDGER, POOL, USAGE) if layers[0].name in told for word in layers]
    return list({(word.label, word.css): word for word in words}.values())


def by_cell(reasons: list[Reason]) -> list[list[Reason]]:
    """Reasons of the same cell together, in their order."""
    groups: dict[int, list[Reason]] = {}
    for reason in reasons:
        groups.setdefault(id(reason.cell), []).append(reason)
    return list(groups.values())


def left_out(panels: int) -> str:
    """Says so when not every load level has a panel of its own."""
    return f" {plural(panels, 'lighter load level')} without a panel; the table has all of them." if panels else ""


def environment() -> Environment:
    """The template environment: everything is escaped, a missing name is an error."""
    found = Environment(
        loader=PackageLoader("reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["groupby_cell"] = by_cell
    found.filters["shown"] = lambda text: NULL_HTML if text == NULL_TEXT else text
    found.globals["style_of"] = series_style
    found.globals["swatch"] = swatch
    found.globals["load_title"] = lambda cell: f"{cell.info.workload.name}, {load_words(cell.info.load)}"
    found.globals["left_out"] = left_out
    return found


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
