"""The common shell of all pages: one template environment, one style sheet, charts that can be made interactive.

A page is a template that extends ``base.html.j2`` and a function that calls :func:`render_page`::

    {% extends "base.html.j2" %}
    {% from "macros.html.j2" import figures %}
    {% block title %}PagedBench paper tables{% endblock %}
    {% block brand %}<span>paper tables</span>{% endblock %}
    {% block headline %}The answer in one sentence.{% endblock %}
    {% block main %}<section><h2 class="h">Waste</h2>{{ figures(waste, 2) }}</section>{% endblock %}

Charts come from ``reports.charts.figure.drawn`` (a Vega-Lite chart in, a :class:`Figure` out), engines look alike on all
pages through ``reports.charts.scales``.  Everything a template prints is escaped; a missing name is an error.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from reports.style import CLASSES, series_style
from reports.words import NULL_HTML, NULL_TEXT


class Interactive(NamedTuple):
    """The scripts of an interactive page, embedded once however many charts there are."""

    bundle: str
    page: str
    colours: str


def environment() -> Environment:
    """The template environment: everything is escaped, a missing name is an error."""
    found = Environment(
        loader=PackageLoader("reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["shown"] = lambda text: NULL_HTML if text == NULL_TEXT else text
    found.globals["style_of"] = series_style
    return found


def render_page(template: str, context: dict[str, Any], interactive: bool = False, **helpers: Any) -> str:
    """The page of ``template`` as text.  ``helpers`` are functions that its macros may call.

    ``interactive`` embeds the Vega bundle; it raises ModuleNotFoundError when vl-convert is not installed.
    """
    found = environment()
    found.globals.update(helpers)
    found.globals["interactive"] = scripts() if interactive else None
    return str(found.get_template(template).render(context))


@cache
def scripts() -> Interactive:
    """Vega, Vega-Lite and vega-embed as vl-convert carries them, and the page's own script."""
    import vl_convert

    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub wants a snippet
    page = (files("reports") / "templates" / "interactive.js").read_text(encoding="utf-8")
    # Only "</script" could end the element early; inside JavaScript strings and regular expressions "<\/" is the same.
    return Interactive(bundle.replace("</script", "<\\/script"), page, json.dumps(colour_names()))


def colour_names() -> dict[str, str]:
    """What stands for each placeholder colour of a chart: a custom property of the style sheet, or a hatch pattern."""
    return {placeholder: paint(css) for placeholder, css in CLASSES.items()}


def paint(css: str) -> str:
    """The paint of a class of ``report.css``."""
    hatched = {"internal", "reserved", "external", "held"}
    if css in hatched:
        return f"url(#hatch-{css})"
    return {"onlive": "--on-live"}.get(css, f"--{css}")
