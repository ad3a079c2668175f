"""The searches of ``--find-max``: the highest load under which enough requests met every SLO, and how it was found."""

from __future__ import annotations

from dataclasses import dataclass

import altair as alt

from harness.results.schema import ProbeInfo, SearchInfo
from reports.charts import scales
from reports.charts.figure import Figure, Table, drawn
from reports.dataset import Dataset, Engine
from reports.style import SLO, TEXT, series_style
from reports.words import NULL_TEXT, number, percent

UNITS = {"rate": "requests/s", "concurrency": "requests in flight"}
PROBE_COLUMNS = ["level", "met every SLO", "share", "lowest", "highest", "verdict"]


@dataclass(frozen=True)
class Search:
    """One finished search; ``engine`` is None when the run does not list the engine it names."""

    run_id: str
    name: str
    engine: Engine | None
    info: SearchInfo

    @property
    def unit(self) -> str:
        return UNITS[self.info.over]

    @property
    def best(self) -> str:
        return number(self.info.best)

    @property
    def refuted(self) -> str:
        return number(self.info.refuted)


def searches(data: Dataset) -> list[Search]:
    """Every search of every run, in the order they were made."""
    of_run = {(id(cell.tables), cell.info.engine): cell.engine for cell in data.cells}
    found = []
    for run in data.runs:
        for info in run.run.manifest.searches:
            engine = of_run.get((id(run), info.engine))
            found.append(Search(run.run.manifest.run_id, engine.label if engine else info.engine, engine, info))
    return found


def search_figures(found: list[Search], width: int) -> list[Figure]:
    """For every search: the share of requests that met every SLO at each level, with its interval and the target."""
    return [_figure(index, search, width) for index, search in enumerate(found)]


def _figure(index: int, search: Search, width: int) -> Figure:
    info = search.info
    title = f"{search.name}, {info.workload}: share of requests that met every SLO"
    probes = [probe for probe in info.probes if probe.total > 0]
    table = Table(PROBE_COLUMNS, [_probe_row(probe) for probe in info.probes])
    if not probes:
        return Figure(f"search-{index}", title, "Nothing probed.", "", notes=["No level was probed to its end."])
    look = series_style(search.engine.index if search.engine else 0)

    def build() -> scales.Layered:
        rows = [
            {"level": p.level, "share": p.good / p.total, "low": p.low, "high": p.high, "verdict": p.verdict}
            for p in probes
        ]
        levels = [p.level for p in probes]
        kind = alt.Scale(type="log", base=2, nice=False) if max(levels) > 4 * min(levels) > 0 else alt.Scale(zero=False)
        x = alt.X("level:Q", scale=kind, axis=alt.Axis(title=search.unit, grid=False, domain=True, tickCount=6))
        scale = alt.Scale(domain=[0, 1], nice=False)
        y = alt.Y("share:Q", scale=scale, axis=alt.Axis(title=None, format="%", tickCount=5))
        base = alt.Chart(scales.values(rows))
        goal = alt.Chart(scales.values([{"share": info.attainment}]))
        return alt.layer(
            goal.mark_rule(color=SLO, strokeDash=[5, 3]).encode(y=y),
            base.mark_rule(strokeWidth=2, color=look.color).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q"),
            base.mark_point(size=60, opacity=1, filled=True, color=look.color, shape=look.marker).encode(x=x, y=y),
            base.transform_filter("datum.verdict == 'fail'")
            .mark_text(text="fails", dy=14, color=TEXT, fontSize=11)
            .encode(x=x, y=alt.Y("low:Q", scale=scale)),
        ).properties(width=width - scales.MARGIN, height=170)

    description = (
        f"Share of requests that met every SLO (up) at each load probed (across), with the {percent(info.confidence)} "
        f"interval; the dashed line is the target of {percent(info.attainment)}. {info.sentence}."
    )
    return drawn(f"search-{index}", title, description, build, [("Probes", table)])


def _probe_row(probe: ProbeInfo) -> list[str]:
    share = percent(probe.good / probe.total) if probe.total else NULL_TEXT
    met = f"{probe.good:,} of {probe.total:,}"
    return [number(probe.level), met, share, percent(probe.low), percent(probe.high), probe.verdict]
