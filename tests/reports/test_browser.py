"""The page in a real browser with the network off: nothing fetched, nothing logged, nothing clipped or overlapping."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from reports import build_report
from tests.reports.browser import Page, findings, is_missing

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(is_missing, reason="chromium and chromedriver are not installed"),
]

# Texts of one chart that lie on each other by more than a pixel or two, or outside of their chart.
TEXT_DEFECTS = """
const defects = [];
for (const svg of document.querySelectorAll('.plot svg')) {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(t => ({t: t.textContent, r: t.getBoundingClientRect()}));
  for (const {t, r} of texts)
    if (r.left < frame.left - 2 || r.right > frame.right + 2 || r.top < frame.top - 2 || r.bottom > frame.bottom + 2)
      defects.push(`${svg.closest('figure').id}: "${t}" is clipped`);
  for (let i = 0; i < texts.length; i++)
    for (let j = i + 1; j < texts.length; j++) {
      const a = texts[i].r, b = texts[j].r;
      const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (w > 1 && h > 3) defects.push(`${svg.closest('figure').id}: "${texts[i].t}" lies on "${texts[j].t}"`);
    }
}
return defects;
"""

# WCAG contrast of every class of text against what is painted behind it.
CONTRAST = """
const lum = c => {
  const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (a, b) => { const [x, y] = [lum(a), lum(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
const low = [];
for (const e of document.querySelectorAll('h1, h2, p, a, dt, dd, th, td, summary, small, .badge, li, pre')) {
  if (!e.textContent.trim() || !e.getClientRects().length) continue;
  const r = ratio(getComputedStyle(e).color, back(e));
  if (r < 4.5) low.push(`${e.tagName} "${e.textContent.trim().slice(0, 30)}" ${r.toFixed(2)}`);
}
for (const e of document.querySelectorAll('.plot path[class^="k-s"], .plot path[class^="f-s"], .tile .bar i')) {
  const s = getComputedStyle(e), c = e.tagName === 'I' ? s.backgroundColor : s.stroke !== 'none' ? s.stroke : s.fill;
  const r = ratio(c, back(e.closest('figure, .tile')));
  if (r < 3) low.push(`mark ${e.getAttribute('class')} ${c} ${r.toFixed(2)}`);
}
return [...new Set(low)];
"""


@pytest.fixture(scope="module", params=["demo", "crowd"])
def page(request: pytest.FixtureRequest) -> Path:
    """Two engines under three workloads; five engines under four, one name hostile."""
    request.getfixturevalue(f"{request.param}_page")
    run: Path = request.getfixturevalue(f"{request.param}_run")
    return run / "report.html"


def test_nothing_is_fetched_and_nothing_is_logged(browser: Page, page: Path) -> None:
    browser.show(page)
    assert browser.driver.get_log("browser") == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.run("return document.scripts.length") == 0


def test_the_first_screen_holds_the_answer(browser: Page, page: Path) -> None:
    browser.show(page, 1280, 720)
    bottoms = browser.run(
        "return ['h1', '.badge', '.points', '.tile:last-child', '.print-line']"
        ".map(s => [s, document.querySelector(s).getBoundingClientRect().bottom])"
    )
    assert [(name, bottom) for name, bottom in bottoms if bottom > 720] == []
    assert browser.run("return document.querySelectorAll('.tile').length") == 6


@pytest.mark.parametrize("width", [1280, 800, 390])
def test_nothing_sticks_out_at_any_width(browser: Page, page: Path, width: int) -> None:
    browser.show(page, width, 900)
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_no_text_of_a_chart_is_clipped_or_overlapped(browser: Page, page: Path) -> None:
    browser.show(page)
    assert browser.run("return document.querySelectorAll('.plot svg text').length") > 100
    assert browser.run(TEXT_DEFECTS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_have_contrast(browser: Page, page: Path, scheme: str) -> None:
    browser.show(page, scheme=scheme)
    dark = browser.run("return getComputedStyle(document.documentElement).backgroundColor") != "rgb(247, 248, 249)"
    assert dark == (scheme == "dark")
    assert browser.run(CONTRAST) == []


def test_the_comparison_fits_a_desktop(browser: Page, demo_run: Path, demo_page: str) -> None:
    browser.show(demo_run / "report.html")
    width, room = browser.run(
        "const e = document.querySelector('#compare .scroll'); return [e.scrollWidth, e.clientWidth]"
    )
    assert width <= room


def test_the_page_can_be_used_with_the_keyboard(browser: Page, demo_run: Path, demo_page: str) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.show(demo_run / "report.html")
    focused = browser.driver.switch_to.active_element
    focused.send_keys(Keys.TAB)
    assert browser.run("return document.activeElement.className") == "skip"
    assert browser.run("return document.activeElement.getBoundingClientRect().left") >= 0
    summary = browser.driver.find_element("css selector", "figure summary")
    browser.run("document.querySelector('figure summary').focus()")
    summary.send_keys(Keys.ENTER)
    assert browser.run("return document.querySelector('figure details').open") is True
    reachable = browser.run("return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)")
    assert reachable is True


def test_it_prints_on_a4(browser: Page, demo_run: Path, demo_page: str) -> None:
    browser.show(demo_run / "report.html", scheme="dark")
    options = {"printBackground": True, "preferCSSPageSize": True}
    pdf = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", options)["data"])
    assert 2 <= len(re.findall(rb"/Type\s*/Page[^s]", pdf)) <= 6
    browser.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    try:
        browser.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 703, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
        )
        assert browser.run("return document.documentElement.scrollWidth") <= 703
        assert browser.run("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.run(TEXT_DEFECTS) == []
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Page, page: Path, scheme: str) -> None:
    browser.show(page, scheme=scheme)
    assert findings(browser) == []


def test_axe_finds_nothing_where_charts_must_be_scrolled(browser: Page, page: Path) -> None:
    browser.show(page, width=390)
    assert findings(browser) == []


def test_axe_would_find_something(browser: Page, demo_run: Path, demo_page: str, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(demo_page.replace('<html lang="en">', "<html>").replace("--muted: #59636e", "--muted: #c9d0d7"))
    browser.show(spoilt)
    found = " ".join(findings(browser))
    assert "html-has-lang" in found
    assert "color-contrast" in found


@pytest.fixture(scope="module")
def live_page(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's page with its charts interactive."""
    return build_report(demo_run, tmp_path_factory.mktemp("live") / "live.html", interactive=True)


def wait_for_charts(browser: Page) -> int:
    """Scroll through the page until every chart with a specification is alive; returns their number."""
    script = """
    const done = arguments[arguments.length - 1], wanted = document.querySelectorAll('script.spec').length;
    let tries = 0;
    const step = () => {
      for (const f of document.querySelectorAll('figure:not(:has(.live))')) { f.scrollIntoView({behavior: 'instant'}); break; }
      const alive = document.querySelectorAll('.plot.live svg').length;
      if (alive === wanted || tries++ > 400) done(alive); else setTimeout(step, 50);
    };
    step();
    """
    browser.driver.set_script_timeout(120)
    return int(browser.driver.execute_async_script(script))


def test_the_interactive_page_is_offline_silent_and_within_its_size(browser: Page, live_page: Path) -> None:
    assert live_page.stat().st_size <= 1_500_000
    browser.show(live_page)
    assert wait_for_charts(browser) == live_page.read_text().count('class="spec"') == 18
    # Vega-Lite warns of every layered facet with its own y axes, whatever its data; the bars are such facets.
    logged = [entry["message"] for entry in browser.driver.get_log("browser")]
    assert [message for message in logged if "faceted independent scales that union domain" not in message] == []
    assert [url for url in browser.requests() if not url.startswith(("data:", "blob:"))] == [live_page.as_uri()]


def test_the_legend_filters_the_interactive_charts(browser: Page, live_page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.show(live_page)
    wait_for_charts(browser)
    count = "return document.querySelectorAll('#ttft-0 .live .mark-line path[d]:not([d=\"\"])').length"
    before = browser.run(count)
    button = browser.driver.find_element("css selector", "#latency .key button")
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "false"
    browser.driver.execute_async_script("setTimeout(arguments[0], 500)")
    assert browser.run(count) < before
    assert browser.run("return document.querySelectorAll('.key button[aria-pressed=false]').length") > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_interactive_page(browser: Page, live_page: Path, scheme: str) -> None:
    browser.show(live_page, scheme=scheme)
    wait_for_charts(browser)
    assert findings(browser) == []
