"""The page: complete, self-contained, safe against hostile names, small, the same bytes when rebuilt."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.results.conformance import CaseResult, SuiteResult
from harness.results.schema import LoadInfo
from reports import ReportError, build_report, load_dataset
from reports.charts.latency import ttft_figure
from reports.charts.scatter import scatter_figure
from reports.fingerprint import machine_words
from reports.tables import delivered_rows
from tests.reports.bulk import write_bulk_run

LIMIT_TWO_ENGINES = 300_000  # bytes
VOID = {"meta", "link", "br", "path", "rect", "line", "circle"}
OPTIONAL = {"li", "tr", "td", "th", "tbody", "thead"}


class Outline(HTMLParser):
    """Collects tags, attributes and text, and checks that every element that must be closed is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def assert_self_contained(text: str) -> None:
    outline = Outline(text)
    assert outline.open == []
    assert not [tag for tag, _ in outline.tags if tag in ("script", "iframe", "img", "object", "base", "form")]
    for tag, attributes in outline.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value is not None
                assert value.startswith("#") or value == "data:," or re.fullmatch(r"(logs/)?[\w.%-]+", value), value
    style = text[text.index("<style>") : text.index("</style>")]
    assert "@import" not in style
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{i}" for i in re.findall(r'id="([^"]+)"', text)}
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, a in outline.tags if (value := a.get("href") or "").startswith("#")} <= set(ids)


def test_demo_page_is_complete_and_self_contained(demo_page: str) -> None:
    assert_self_contained(demo_page)
    words = Outline(demo_page).words
    for part in (
        "In the same KV memory (4,096 token slots),",
        "VALID",
        "One run each",
        "Outputs agree",
        "Requests at once",
        "KV waste",
        "SmolLM2-135M-Instruct, float32",
        "bench-01, AMD EPYC 9B14, 2 cores, 16.0 GiB, no GPU",
        "Comparison",
        "Time to first token",
        "Inter-token latency",
        "Over time",
        "KV memory: the waste, as a sum",
        "End to end",
        "Every request",
        "The load actually delivered",
        "OUTPUTS AGREE",
        "no interval from 1+1 repeats",
        "Half-filled last blocks alone would come to",
        "No request failed.",
        "The client's check of itself",
        "Internal fragmentation",
        "pagedbench run --engine=paged=http://127.0.0.1:8000",
        "pagedbench report run",
    ):
        assert part in words, part
    assert 'href="requests.parquet"' in demo_page
    assert len(demo_page.encode()) <= LIMIT_TWO_ENGINES


def test_every_chart_has_a_name_a_description_and_its_data(demo_page: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", demo_page, re.S)
    drawn = [f for f in figures if "<svg" in f]
    assert len(drawn) == 18
    for f in drawn:
        label = re.search(r'role="img" aria-label="([^"]+)"', f)
        assert label is not None
        assert len(label[1]) > 60
        if 'id="waste"' not in f:  # its numbers are the table that follows it
            assert re.search(r"<details>.*<table.*<td>", f, re.S)


def test_the_numbers_of_the_tiles_are_those_of_the_summary(demo_page: str, demo_draft: Any) -> None:
    words = Outline(demo_page).words
    for engine in ("paged", "contiguous"):
        cell = demo_draft.cell(engine, "concurrency")
        assert f"{cell.running_mean:,.1f}" in words
        assert f"{100 * cell.kv_waste:.1f} %" in words


def test_the_waste_arithmetic_adds_up(demo_page: str, demo_draft: Any) -> None:
    sums = re.findall(
        r"\(([\d.]+) \+ ([\d.]+) \+ ([\d.]+)\) / \(100 - ([\d.]+) - ([\d.]+)\) = ([\d.]+) / ([\d.]+) = ([\d.]+) %",
        demo_page,
    )
    order = [(w, e) for w in ("chat", "long-output", "concurrency") for e in ("paged", "contiguous")]
    for row, (workload, engine) in zip(sums, order, strict=True):
        cell = demo_draft.cell(engine, workload)
        words = ("reserved", "internal", "external", "cached", "free")
        assert [float(term) for term in row[:5]] == [round(100 * cell.kv_waste_sum[word], 1) for word in words]
        wasted, used, share = map(float, row[5:])
        assert share == pytest.approx(100 * cell.kv_waste, abs=0.06)
        assert share == pytest.approx(100 * wasted / used, abs=0.3)


def test_rebuilding_gives_the_same_bytes(demo_run: Path, demo_page: str, tmp_path: Path) -> None:
    assert build_report(demo_run).read_text() == demo_page
    elsewhere = build_report(demo_run, tmp_path / "deep" / "other.html").read_text()
    assert elsewhere.replace("requests.parquet", "") != demo_page
    assert 'href="requests.parquet"' not in elsewhere
    assert "requests.parquet" in elsewhere


def test_nobody_can_smuggle_markup_in(crowd_page: str, hostile: str) -> None:
    assert_self_contained(crowd_page)
    assert "<script" not in crowd_page
    assert hostile in Outline(crowd_page).words
    assert "49" not in re.findall(r"<dt[^>]*>([^<]*)", crowd_page)


def test_every_text_of_a_run_is_escaped(draft: Callable[..., Any], engines: Any, hostile: str, tmp_path: Path) -> None:
    run = draft([engines["paged"], engines["contiguous"]], workloads=["chat"], requests=6)
    manifest = run.manifest
    manifest.command = ["pagedbench", hostile]
    manifest.created_utc = manifest.tool_version = hostile
    manifest.machine.hostname = manifest.machine.cpu = manifest.machine.os = hostile
    manifest.machine.packages = {hostile: hostile}
    manifest.machine.gpus = [{"name": hostile}]
    manifest.slo = {hostile: 3.0}
    for info in manifest.engines:
        info.version = info.model = info.dtype = info.url = info.recipe = hostile
        info.settings = {hostile: hostile, "nested": {"a": [hostile]}}
    for cell in manifest.cells:
        cell.workload.name = cell.workload.digest = hostile
        cell.workload.parameters = {hostile: hostile}
    for summary in run.summary.cells:
        summary.workload, summary.validity, summary.reasons = hostile, "SUSPECT", [hostile]
    for row in run.tables.requests[:2]:
        row |= {"ok": False, "error_class": hostile, "error": hostile}
        run.summary.cells[0].requests_failed = 2
    text = build_report(run.write(tmp_path / "run")).read_text()
    assert_self_contained(text)
    assert "<script" not in text


def test_an_invalid_cell_shows_its_reasons_in_place_of_numbers(crowd_page: str) -> None:
    reason = "requests left late: p99 141.0 ms after their planned time"
    row = re.search(r"<tr><th scope=\"row\">[^<]*<span class=\"name\" title=\"vllm\">.*?</tr>", crowd_page, re.S)
    assert row is not None
    assert reason in row[0]
    assert row[0].count("<td") == 3  # validity, ok / sent, the reason
    assert crowd_page.count(reason) >= 3  # first screen, table, list of reasons
    assert "1 INVALID, 19 VALID of 20 cells" in Outline(crowd_page).words


def test_what_was_not_measured_is_a_dash_with_a_title(crowd_page: str) -> None:
    assert '<abbr class="null" title="not measured">–</abbr>' in crowd_page
    assert "not reported by this engine" in crowd_page
    assert "nan" not in re.findall(r">\s*(nan|None|inf)\s*<", crowd_page)


def test_errors_are_listed_by_class_with_a_message(crowd_page: str) -> None:
    section = crowd_page[crowd_page.index('id="errors"') : crowd_page.index('id="client"')]
    assert "http_5xx" in section
    assert "500 &lt;script&gt;" in section
    assert "No request failed" not in section


def odd_run(kind: str, draft: Callable[..., Any], engines: Any) -> Any:
    if kind == "one request":
        return draft([engines["paged"], engines["contiguous"]], workloads=["chat"], requests=1)
    if kind == "no requests":
        return draft([engines["paged"], engines["llama.cpp"]], workloads=["chat"], requests=0)
    run = draft([engines["paged"], engines["vllm"]], workloads=["chat"], requests=12)
    if kind == "no cells":
        run.manifest.cells, run.summary.cells = [], []
        for name in ("requests", "chunks", "metrics", "system"):
            getattr(run.tables, name).clear()
    if kind == "NaN":
        for cell in run.summary.cells:
            cell.output_tokens_per_s = cell.kv_waste = cell.running_mean = cell.ttft.p50 = math.nan
        for row in run.tables.metrics[::2] + run.tables.system[::2]:
            row["value"] = math.nan
    if kind == "clock steps":
        for i, row in enumerate(run.tables.requests):
            row["t_first"] = row["t_send"] - 5 if i % 2 else row["t_first"]
        for row in run.tables.chunks[::3]:
            row["t"] -= 10**9
    if kind == "chunks of another clock":
        for row in run.tables.chunks:
            row["t"] -= 10**15
    if kind == "constant times":
        for row in run.tables.requests:
            row |= {"t_send": 10, "t_first": 10, "t_last": 10, "t_done": 10, "t_ready": 10}
        for row in run.tables.chunks + run.tables.metrics + run.tables.system:
            row["t"] = 10
        for cell in run.manifest.cells:
            cell.t_start = cell.t_end = None
    if kind == "all failed":
        for row in run.tables.requests:
            row |= {"ok": False, "error_class": "connect", "t_first": None, "t_last": None, "status": None}
        run.tables.chunks.clear()
    return run


@pytest.mark.parametrize(
    "kind",
    [
        "one request",
        "no requests",
        "no cells",
        "NaN",
        "clock steps",
        "chunks of another clock",
        "constant times",
        "all failed",
    ],
)
def test_odd_runs_give_a_page_and_never_a_traceback(
    kind: str, draft: Callable[..., Any], engines: Any, tmp_path: Path
) -> None:
    run = odd_run(kind, draft, engines)
    computed_by_the_harness = kind in ("no requests", "all failed", "clock steps")
    text = build_report(run.write(tmp_path / "run", with_summary=not computed_by_the_harness)).read_text()
    assert_self_contained(text)
    assert not re.search(r">\s*(nan|None|inf|-inf|NaN)\s*<", text)
    assert not re.search(r'="[^"]*\b(NaN|nan|inf|undefined)\b[^"]*"', text)


def test_loads_that_differ_in_their_spacing_are_not_repeats(
    draft: Callable[..., Any], engines: Any, tmp_path: Path
) -> None:
    run = draft([engines["paged"]], workloads=["chat"], requests=4, repeats=4)
    loads = [
        LoadInfo(mode="gamma", rate=5, burstiness=0.5),
        LoadInfo(mode="gamma", rate=5, burstiness=2),
        LoadInfo(mode="ramp", rate=5, ramp_to=9, ramp_steps=2),
        LoadInfo(mode="ramp", rate=5, ramp_to=20, ramp_steps=2),
    ]
    for cell, summary, load in zip(run.manifest.cells, run.summary.cells, loads, strict=True):
        cell.load = summary.load = load
    data = load_dataset([run.write(tmp_path / "run")])
    titles = {group.title for group in data.groups}
    assert titles == {f"chat, 5 {words}" for words in (
        "requests/s, gamma 0.5", "requests/s, gamma 2", "to 9 requests/s", "to 20 requests/s",
    )}  # fmt: skip
    assert data.repeats == 1


def test_a_killed_run_gives_a_page_that_says_so(demo_draft: Any, tmp_path: Path) -> None:
    path = demo_draft.write_killed(tmp_path / "run", "interrupted")
    text = build_report(path).read_text()
    assert_self_contained(text)
    assert "did not finish (status: interrupted)" in text
    assert "requests.jsonl" in text


def test_several_runs_are_compared_in_one_page(draft: Callable[..., Any], engines: Any, tmp_path: Path) -> None:
    runs = [
        draft([engines["paged"]], workloads=["chat"], requests=8, seed=3, run_id=name).write(tmp_path / name)
        for name in ("base", "head")
    ]
    data = load_dataset(runs)
    assert [engine.label for engine in data.engines] == ["paged"]
    assert [len(cells) for group in data.groups for cells in group.cells.values()] == [2]
    other = draft([engines["paged"]], workloads=["chat"], requests=8, seed=3, run_id="new")
    other.manifest.engines[0].version = "9.9"
    other.manifest.machine.hostname = "elsewhere"
    runs.append(other.write(tmp_path / "new"))
    assert [engine.label for engine in load_dataset(runs).engines] == ["paged", "paged (new)"]
    out = build_report(runs, tmp_path / "all.html")
    text = out.read_text()
    assert_self_contained(text)
    assert "The runs come from different machines." in text
    assert "paged (new)" in text


def test_bad_requests_are_one_sentence(demo_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="needs a place"):
        build_report([demo_run, demo_run])
    with pytest.raises(ReportError, match="given twice"):
        build_report([demo_run, demo_run], tmp_path / "x.html")
    with pytest.raises(ReportError, match="choose one of html, md, csv, json"):
        build_report(demo_run, format="pdf")
    with pytest.raises(ReportError, match="name at least one"):
        load_dataset([])


def test_machine_words_name_the_gpus(demo_draft: Any) -> None:
    machine = demo_draft.manifest.machine.model_copy(update={"gpus": [{"name": "H100"}]})
    assert machine_words(machine).endswith(", H100")


def test_a_large_run_is_thinned_to_a_small_page(draft: Callable[..., Any], engines: Any, tmp_path: Path) -> None:
    small = draft([engines["paged"], engines["contiguous"]], workloads=["chat"], requests=4)
    run = write_bulk_run(small, tmp_path / "run", requests=20_000, chunks_each=20)
    began = time.process_time()
    text = build_report(run).read_text()
    print(f"20,000 requests, 400,000 chunks: {time.process_time() - began:.1f} s of CPU")
    assert "20,000" in text or "10,000" in text
    assert len(text.encode()) <= LIMIT_TWO_ENGINES


@pytest.mark.slow
def test_a_million_requests_fit_into_two_gibibytes(draft: Callable[..., Any], engines: Any, tmp_path: Path) -> None:
    small = draft([engines["paged"], engines["contiguous"]], workloads=["chat", "agents"], requests=4)
    run = write_bulk_run(small, tmp_path / "run", requests=1_000_000, chunks_each=20)
    code = (
        "import resource, sys; from pathlib import Path; from reports import build_report;"
        "build_report(Path(sys.argv[1])); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 <= 2 << 30
    assert (run / "report.html").stat().st_size <= LIMIT_TWO_ENGINES


def test_an_interactive_page_embeds_the_bundle_once_and_its_charts_as_data(demo_run: Path, tmp_path: Path) -> None:
    text = build_report(demo_run, tmp_path / "i.html", interactive=True).read_text()
    assert text.count("window.vegaEmbed=") == 1
    assert text == build_report(demo_run, tmp_path / "j.html", interactive=True).read_text()
    specs = re.findall(r'<script type="application/json" class="spec">(.*?)</script>', text)
    assert len(specs) == text.count('role="img"') == 18
    for spec in map(json.loads, specs):
        assert any(param["name"] == "hidden_engines" for param in spec["params"])
        assert "tooltip" in json.dumps(spec)
    # The bundle's own code builds tags with addresses for tooltips with pictures; the page's markup has none.
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""<(script|link|img|iframe)[^>]+(src|href)=(?!"data:,")""", markup)


def test_a_figure_shows_itself_in_a_notebook(demo_run: Path) -> None:
    data = load_dataset([demo_run])
    bundle = ttft_figure(data, data.groups[0], 360)._repr_mimebundle_()
    spec = bundle["application/vnd.vegalite.v6+json"]
    assert "#0072b2" in json.dumps(spec)
    assert "#0a0001" not in json.dumps(spec)
    assert bundle["text/plain"].startswith("TTFT, chat, 32 at once. ")


def test_slow_requests_are_named(draft: Callable[..., Any], engines: Any, tmp_path: Path) -> None:
    run = draft([engines["paged"]], workloads=["chat"], requests=40)
    victim = run.tables.requests[17]
    victim["t_first"] = victim["t_send"] + 10**11
    data = load_dataset([run.write(tmp_path / "run")])
    shown = scatter_figure(data, data.groups[0], 360, 10)
    ((caption, table),) = shown.tables
    assert caption == "Requests far off"
    assert table.rows[0][1] == f"#{victim['request_index']}"
    assert f">#{victim['request_index']}<" in shown.svg


def test_the_load_that_was_delivered_is_told(draft: Callable[..., Any], engines: Any, tmp_path: Path) -> None:
    run = draft([engines["paged"]], workloads=["chat"], requests=64)
    cell = run.manifest.cells[0]
    cell.load = LoadInfo(mode="poisson", rate=10.0)
    run.summary.cells[0].load = cell.load
    for row in run.tables.requests:
        row["t_sched"] = 10**12 + row["request_index"] * 10**8
        row["t_send"] = 10**12 + row["request_index"] * 2 * 10**8  # half of the asked rate
    data = load_dataset([run.write(tmp_path / "run")])
    (row,) = delivered_rows(data)
    assert (row.asked, row.delivered, row.share, row.sent) == ("10.0", "5.00", "50.0 %", "64")


def test_conformance_results_beside_the_run_are_on_the_first_screen(
    draft: Callable[..., Any], engines: Any, tmp_path: Path
) -> None:
    run = draft([engines["paged"]], workloads=["chat"], requests=4)
    path = run.write(tmp_path / "run")
    assert "ANSWERS NOT CHECKED" in build_report(path).read_text()
    case = {"id": "A-1", "family": "A", "level": "MUST", "title": "t", "source": "s", "oracle": "o", "reason": ""}
    for verdict, badge in (("PASS", "CONFORMS"), ("FAIL", "CONFORMANCE FAILED"), ("INCONCLUSIVE", "INCONCLUSIVE")):
        suite = SuiteResult(
            tool_version="0", started="2026-01-01T00:00:00Z", seconds=1.0, engine=run.manifest.engines[0],
            results=[CaseResult.model_validate(case | {"verdict": verdict})],
        )  # fmt: skip
        (path / "conformance-paged.json").write_text(suite.model_dump_json())
        assert badge in build_report(path).read_text()
