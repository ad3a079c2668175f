"""Charts: the specifications are valid Vega-Lite, the curves are the data's, the SVG carries no colour of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pytest

from reports import page
from reports.charts import bars, figure, latency, load_curve, memory, scales, scatter, svg, timeline
from reports.charts.figure import Figure
from reports.dataset import Dataset, Group, load_dataset
from reports.metrics import RUNNING, THROUGHPUT, TTFT, TTFT_CHOICES
from reports.style import CLASSES


@pytest.fixture(scope="module")
def demo(demo_run: Path) -> Dataset:
    return load_dataset([demo_run])


@pytest.fixture(scope="module")
def crowd(crowd_run: Path) -> Dataset:
    return load_dataset([crowd_run])


def all_figures(data: Dataset, group: Group) -> list[Figure]:
    return [
        latency.ttft_figure(data, group, 360),
        latency.itl_figure(data, group, 540),
        latency.e2e_figure(data, group, 360),
        scatter.scatter_figure(data, group, 360, 40),
        load_curve.curve_figure(data, group.workload, "ttft", TTFT_CHOICES, 540),
        timeline.timeline_figure(data, group, 360, timeline.end_of(group)),
        bars.bar_figure(data, data.groups, THROUGHPUT, 540),
        bars.waste_figure(data, data.groups, 720),
        bars.level_figure(data, group.workload, TTFT, 360),
        bars.level_figure(data, group.workload, RUNNING, 360),
    ]


def test_every_specification_is_valid_vega_lite(crowd: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "VALIDATE", True)
    for shown in all_figures(crowd, crowd.groups[0]):
        assert shown.svg.startswith("<svg viewBox=")


def test_svg_has_classes_instead_of_colours_and_nothing_of_the_web(demo: Dataset) -> None:
    for shown in all_figures(demo, demo.groups[0]):
        assert not re.search(r"#[0-9a-fA-F]{6}", shown.svg), shown.id
        assert "http" not in shown.svg
        assert "xmlns" not in shown.svg
        assert "url(#clip" not in shown.svg
        used = set(re.findall(r"\b[fk]-(\w+)", shown.svg))
        assert used <= set(CLASSES.values())
        assert {"s1", "s2"} & used or {"live"} <= used


def test_ids_are_unique_over_all_figures(demo: Dataset) -> None:
    figures = [latency.ttft_figure(demo, group, 360) for group in demo.groups]
    figures += [latency.itl_figure(demo, group, 360) for group in demo.groups]
    ids = [found for f in figures for found in re.findall(r'\bid="([^"]+)"', f.svg)]
    assert ids
    assert len(ids) == len(set(ids))
    assert len({f.id for f in figures}) == len(figures)


def test_curves_hold_the_samples_of_the_summary(demo: Dataset) -> None:
    for group in demo.groups:
        for label, (cell,) in group.cells.items():
            assert cell.summary is not None
            for samples, told in (
                (latency.ttft_samples(group, label), cell.summary.ttft),
                (latency.itl_samples(group, label), cell.summary.itl),
            ):
                assert samples.size == told.n
                assert samples.mean() == pytest.approx(told.mean)
                assert samples[-1] == pytest.approx(told.max)
                assert np.percentile(samples, 50) == pytest.approx(told.p50)


def test_quantile_is_a_sample_that_enough_do_not_exceed() -> None:
    rng = np.random.default_rng()
    samples = np.sort(rng.lognormal(0, 1, 137))
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        found = latency.quantile(samples, share)
        assert found in samples
        assert (samples <= found).mean() >= share
        assert (samples < found).mean() < share


def test_a_percentile_needs_samples_beyond_it(demo: Dataset) -> None:
    shown = latency.ttft_figure(demo, demo.groups[0], 360)
    ((_, table),) = shown.tables
    # Of 48 requests 12 lie beyond p75 and 4.8 beyond p90, fewer than five.
    assert table.columns == ["engine", "n", "min", "p10", "p25", "p50", "p75", "max"]


def test_the_ledger_stack_is_the_whole_pool_at_every_point(demo: Dataset) -> None:
    for cell in demo.cells:
        found = memory.stack(cell)
        assert found is not None
        assert found.pool == 4096
        assert np.sum(found.layers, axis=0) == pytest.approx(np.ones(found.t.size))


def test_each_engine_is_drawn_in_the_finest_words_it_tells(crowd: Dataset, hostile: str) -> None:
    group = crowd.groups[1]
    words = {}
    for label, (cell,) in group.cells.items():
        found = memory.stack(cell)
        words[label] = [word.name for word in found.words] if found else None
    assert words["paged"] == ["token_states", "internal", "reserved", "external", "cached", "free"]
    assert words[hostile] == ["live", "unfilled", "evictable", "unheld"]
    assert words["vllm"] == ["held", "unheld"]
    assert words["llama.cpp"] is None
    shown = timeline.timeline_figure(crowd, group, 360, 5.0)
    assert "llama.cpp: KV memory not reported by this engine." in shown.notes
    assert not any(caption.startswith("llama.cpp, % of") for caption, _ in shown.tables)


def test_an_invalid_cell_is_named_and_not_drawn(crowd: Dataset) -> None:
    group = crowd.groups[0]
    for shown in all_figures(crowd, group)[:4]:
        assert "vllm is INVALID here and not drawn." in shown.notes
        assert not any("vllm" in str(row[0]) for _, table in shown.tables for row in table.rows)
        assert not any("vllm" in caption for caption, _ in shown.tables)
    bar = bars.bar_figure(crowd, [group], THROUGHPUT, 540)
    ((_, table),) = bar.tables
    assert ["chat, 32 at once", "vllm", "INVALID", "–", "–"] in [list(row) for row in table.rows]


def test_preemptions_are_marked_where_the_counter_rose(
    demo_draft: Any, draft: Any, engines: Any, tmp_path: Path
) -> None:
    run = draft([engines["paged"]], workloads=["chat"])
    times = sorted(m["t"] for m in run.tables.metrics if m["name"] == "preemptions_total")
    for sample in run.tables.metrics:
        if sample["name"] == "preemptions_total":
            sample["value"] = float(sum(sample["t"] >= t for t in (times[3], times[6])))
    data = load_dataset([run.write(tmp_path / "run")])
    shown = timeline.timeline_figure(data, data.groups[0], 360, timeline.end_of(data.groups[0]))
    assert any(note.startswith("Triangles mark 2 moments") for note in shown.notes)


def test_long_series_are_thinned_and_it_is_said(draft: Any, engines: Any, tmp_path: Path) -> None:
    run = draft([engines["paged"]], workloads=["long-output"], requests=40, concurrency=[2])
    data = load_dataset([run.write(tmp_path / "run")])
    shown = timeline.timeline_figure(data, data.groups[0], 360, 9.0)
    assert any(re.fullmatch(r"KV memory: each point is the mean of up to \d+ samples\.", n) for n in shown.notes)
    assert all(len(table.rows) <= memory.POINTS for _, table in shown.tables)


def test_the_same_data_is_drawn_to_the_same_bytes(demo: Dataset) -> None:
    group = demo.groups[0]
    assert [f.svg for f in all_figures(demo, group)] == [f.svg for f in all_figures(demo, group)]


def test_without_the_drawing_library_the_page_has_its_tables(demo: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    shown = latency.ttft_figure(demo, demo.groups[0], 360)
    assert shown.svg == ""
    assert shown.tables
    from reports.verdict import judge

    text = page.render_page(demo, judge(demo))
    assert "Not drawn: vl-convert-python is not installed" in text


def test_a_chart_that_fails_says_so_and_the_rest_stands(demo: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("json.dumps", lambda *a, **k: "{")
    shown = figure.drawn("f", "t", "d", figure_of_nothing)
    assert shown.svg == ""
    assert shown.notes[0].startswith("Not drawn: ")
    assert "\n" not in shown.notes[0]


def figure_of_nothing() -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[{"x": 1}])).mark_point().encode(x="x:Q")


@pytest.mark.parametrize("high", [50.0, 800.0, 3e4, 2e7])
def test_log_ticks_are_round_inside_and_apart(high: float) -> None:
    ticks = scales.log_ticks(1.3, high, 300, 52)
    assert all(1.3 <= tick <= high for tick in ticks)
    assert {f"{tick:e}"[0] for tick in ticks} <= {"1", "2", "3", "5"}
    places = 300 * np.log10(np.array(ticks) / 1.3) / np.log10(high / 1.3)
    assert np.all(np.diff(places) >= (52 if high < 1e6 else 0))
    assert ticks


def test_reduce_rounds_and_keeps_text_escaped() -> None:
    raw = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><rect width="10" height="10" fill="white"/>'
        '<g class="x" aria-hidden="true"><defs><clipPath id="clip0"><rect width="5" height="5"/></clipPath></defs>'
        '<path d="M1.2345,2L-0.04,9.999" stroke="#0a0001" clip-path="url(#clip0)" opacity="1"/>'
        '<text>&lt;b&gt; &amp; /&gt;</text><text></text><path d=""/></g></svg>'
    )
    found = svg.reduce(raw, "p")
    assert 'd="M1.2,2L0,10"' in found
    assert 'class="k-s1"' in found
    assert 'id="p-0"' in found
    assert "url(#p-0)" in found
    assert "&lt;b&gt; &amp; /&gt;" in found
    assert "white" not in found
    assert found.count("<text") == 1


def drawn_marks(markup: str) -> list[tuple[str, float, float]]:
    """(class, x, y) of every mark of a reduced SVG in the order of drawing, uses resolved as a browser does."""
    root = ElementTree.fromstring(markup.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    originals: dict[str, ElementTree.Element] = {}
    for element in root.iter():
        if "id" in element.attrib:
            originals.setdefault(element.attrib["id"], element)  # of equal ids a browser takes the first
    found = []
    for element in root.iter():
        kind = element.tag.rpartition("}")[2]
        if kind not in ("path", "use"):
            continue
        shape = element if kind == "path" else originals[element.attrib["href"][1:]]
        place = re.fullmatch(r"translate\((.+),(.+)\)", shape.attrib["transform"])
        assert place is not None
        dx, dy = (float(element.get(axis, 0)) if kind == "use" else 0.0 for axis in "xy")
        found.append((shape.attrib["class"], float(place[1]) + dx, float(place[2]) + dy))
    return found


def test_marks_that_are_written_once_stay_where_and_as_they_were() -> None:
    """Two engines' marks, first each one's first and then the others, in two groups."""
    wanted = [("a", 1, 2), ("b", 3, 4), ("a", 5, 6), ("b", 7, 8), ("b", 9, 1), ("a", 2, 9)]
    colors = {"a": "#0a0001", "b": "#0a0002"}
    marks = "".join(f'<path d="M1,1h2" fill="{colors[c]}" transform="translate({x},{y})"/>' for c, x, y in wanted)
    raw = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><g class="x"><g>{marks}</g></g><g>{marks}</g></svg>'
    classes = {"a": f"f-{CLASSES[colors['a']]}", "b": f"f-{CLASSES[colors['b']]}"}
    reduced = svg.reduce(raw, "p")
    assert "<use" in reduced
    assert drawn_marks(reduced) == [(classes[c], float(x), float(y)) for c, x, y in wanted * 2]
    ids = re.findall(r' id="([^"]+)"', reduced)
    assert len(ids) == len(set(ids))
