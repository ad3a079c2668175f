"""From a chart for paper to one for a screen: the same specification with tooltips, zoom and a filter by engine.

Nothing is drawn twice: the static picture and the interactive chart come from one Vega-Lite specification.
"""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from reports.style import CLASSES

HIDDEN = "hidden_engines"  # the parameter that the page's legend sets
_LINES = ("line", "area")
_PLACEHOLDER = re.compile(r"#0[abc][0-9a-f]{4}")
_PROPERTY = re.compile(r"--([\w-]+):\s*(#[0-9a-f]{3,6})")


def enliven(spec: dict[str, Any]) -> dict[str, Any]:
    """A copy of a top-level specification, made interactive."""
    found = copy.deepcopy(spec)
    _inline(found)
    zoomed = [0]
    _view(found, zoomed, inside_facet=False)
    found.setdefault("params", []).append({"name": HIDDEN, "value": []})
    return found


def _inline(node: Any) -> None:
    """Data given as JSON text becomes rows: shorter in the page, and readable in it."""
    if isinstance(node, dict):
        data = node.get("data")
        if isinstance(data, dict) and isinstance(data.get("values"), str):
            node["data"] = {"values": json.loads(data["values"])}
        for rows in (node.get("datasets") or {}).values():
            _inline(rows)
        for value in node.values():
            _inline(value)
    elif isinstance(node, list):
        for value in node:
            _inline(value)


def _view(node: dict[str, Any], zoomed: list[int], inside_facet: bool) -> None:
    for key in ("vconcat", "hconcat", "concat"):
        for child in node.get(key, []):
            _view(child, zoomed, inside_facet)
    if isinstance(node.get("spec"), dict):
        _view(node["spec"], zoomed, inside_facet=True)
    layers = node["layer"] if isinstance(node.get("layer"), list) else [node] if "mark" in node else []
    if not layers:
        return
    targets = [_target(layer) for layer in layers if _mark(layer) in _LINES and _has(layer, "engine")]
    # Layers on the same rows are filtered together: Vega-Lite then sees one source, and facets keep their sizes.
    is_shared = isinstance(node.get("layer"), list) and not any("data" in layer for layer in layers)
    if is_shared and any(_has(layer, "engine") for layer in layers):
        node.setdefault("transform", []).append(_shown_engines())
    for layer in layers:
        _unit(layer, is_filtered=is_shared)
    if targets and isinstance(node.get("layer"), list):
        node["layer"].extend(targets)
    if not inside_facet and _is_quantitative(layers[0]):
        zoomed[0] += 1
        zoom = {"name": f"zoom_{zoomed[0]}", "select": "interval", "bind": "scales"}
        layers[0].setdefault("params", []).append(zoom)


def _mark(layer: dict[str, Any]) -> str:
    mark = layer.get("mark")
    return str(mark.get("type") if isinstance(mark, dict) else mark)


def _has(layer: dict[str, Any], field: str) -> bool:
    return any(isinstance(c, dict) and c.get("field") == field for c in layer.get("encoding", {}).values())


def _is_quantitative(layer: dict[str, Any]) -> bool:
    encoding = layer.get("encoding", {})
    return all(isinstance(encoding.get(c), dict) and encoding[c].get("type") == "quantitative" for c in ("x", "y"))


def _shown_engines() -> dict[str, str]:
    return {"filter": f"indexof({HIDDEN}, datum.engine) < 0"}


def _unit(layer: dict[str, Any], is_filtered: bool) -> None:
    mark = layer.get("mark")
    mark = mark if isinstance(mark, dict) else {"type": mark}
    if mark.get("type") != "text":
        mark["tooltip"] = {"content": "data"}
    layer["mark"] = mark
    if not is_filtered and _has(layer, "engine"):
        layer.setdefault("transform", []).append(_shown_engines())


def _target(line: dict[str, Any]) -> dict[str, Any]:
    """Invisible points on a line, so that any of its values can be read and not only its first."""
    encoding = {key: copy.deepcopy(value) for key, value in line["encoding"].items() if key in ("x", "y", "color")}
    target = {"mark": {"type": "point", "filled": True, "size": 90, "opacity": 0}, "encoding": encoding}
    if "data" in line:
        target["data"] = line["data"]
    _unit(target, is_filtered="data" not in line)
    return target


def as_script(spec: dict[str, Any]) -> str:
    """JSON that cannot end the ``<script>`` it stands in."""
    return json.dumps(spec, allow_nan=False, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


@cache
def palette(theme: str) -> dict[str, str]:
    """The colours of the style sheet by the names of its custom properties; ``theme`` is light or dark."""
    css = (files("reports") / "templates" / "report.css").read_text(encoding="utf-8")
    light, dark = css.split("prefers-color-scheme: dark", 1)
    found = dict(_PROPERTY.findall(light))
    return found if theme == "light" else found | dict(_PROPERTY.findall(dark.split("}", 1)[0]))


def coloured(text: str, theme: str) -> str:
    """A specification as text with the placeholders replaced by the colours of a theme, for places without the page."""
    colours = palette(theme)

    def paint(match: re.Match[str]) -> str:
        css = CLASSES.get(match[0])
        return match[0] if css is None else colours["on-live" if css == "onlive" else css]

    return _PLACEHOLDER.sub(paint, text)
