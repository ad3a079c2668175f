"""From a Vega-Lite chart to a small SVG that takes its colours from the page.

vl-convert draws deterministically; what it writes is then reduced: decoration for tools is dropped (the figure carries
its own title and description), coordinates are rounded to a tenth of a pixel, ids are made unique within the page, and
every placeholder colour (``reports.style``) becomes a class: light, dark and print are the style sheet's business.
"""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

from reports.style import CLASSES

_SVG = "{http://www.w3.org/2000/svg}"
_KEEP = {"d", "transform", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "fill", "stroke", "stroke-width"}
_KEEP |= {"stroke-dasharray", "stroke-dashoffset", "fill-opacity", "stroke-opacity", "opacity", "text-anchor"}
_KEEP |= {"font-size", "font-weight", "clip-path", "id", "cx", "cy", "r", "stroke-linejoin", "stroke-linecap"}
_DEFAULTS = {"opacity": "1", "stroke-width": "0", "font-weight": "normal", "fill-opacity": "1", "stroke-opacity": "1"}
_PLACE = re.compile(r"translate\((-?[\d.]+),(-?[\d.]+)\)")
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")


class ChartError(RuntimeError):
    """A chart that cannot be drawn; the page is written without it and shows this message."""


def render(spec: dict[str, Any], prefix: str) -> str:
    """Draw a Vega-Lite specification; ``prefix`` makes the ids of the SVG unique within the page.

    Returns markup that starts with ``<svg viewBox=... aria-hidden="true"``.  Raises :class:`ChartError`.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise ChartError("vl-convert-python is not installed (pip install 'pagedbench[report]')") from error
    try:
        svg = vl_convert.vegalite_to_svg(json.dumps(spec, allow_nan=False))
    except ValueError as error:
        first, _, rest = str(error).partition("\n")
        raise ChartError(f"{first} {rest.partition(chr(10))[0]}".strip()) from error
    return reduce(svg, prefix)


def reduce(svg: str, prefix: str) -> str:
    """The same picture with less markup, and classes in place of placeholder colours."""
    root = ElementTree.fromstring(svg)
    # vl-convert numbers ids on from one chart to the next; numbered anew, a chart does not depend on those before it.
    ids = {old: f"{prefix}-{i}" for i, old in enumerate(e.get("id", "") for e in root.iter() if e.get("id"))}
    view_box = root.get("viewBox", "0 0 0 0")
    picture = ElementTree.Element("g")
    picture.extend(kept for child in root for kept in _reduce(child, ids) if not _is_backdrop(child))
    width = view_box.split()[2]
    _share_marks(picture, f"{prefix}-m")
    body = "".join(_write(child) for child in picture)
    return f'<svg viewBox="{view_box}" width="{width}" aria-hidden="true" focusable="false">{body}</svg>'


def _is_backdrop(element: ElementTree.Element) -> bool:
    return element.tag == f"{_SVG}rect" and element.get("fill") in ("white", "transparent")


def _reduce(element: ElementTree.Element, ids: dict[str, str]) -> list[ElementTree.Element]:
    """``element`` reduced, or its children where it carries nothing itself, or nothing where it draws nothing."""
    tag = element.tag.removeprefix(_SVG)
    if "background" in (element.get("class") or "").split() and element.get("stroke") in (None, "transparent"):
        return []
    children = [kept for child in element for kept in _reduce(child, ids)]
    attributes = _attributes(element, ids)
    if tag == "g":
        if not children:
            return []
        if not attributes:
            return children
    if tag == "text" and not (element.text or "").strip() and not children:
        return []
    if tag in ("path", "line", "rect", "circle") and not _draws(element):
        return []
    reduced = ElementTree.Element(tag, attributes)
    reduced.text = element.text
    reduced.extend(children)
    return [reduced]


def _share_marks(root: ElementTree.Element, prefix: str) -> None:
    """Marks that differ in their place only are written once and then used: a scatter shrinks to a third."""
    first: dict[tuple[tuple[str, str], ...], tuple[ElementTree.Element, tuple[float, float], str]] = {}
    for mark in list(root.iter("path")):
        place = _PLACE.fullmatch(mark.get("transform", ""))
        if place is None:
            continue
        look = tuple(sorted((key, value) for key, value in mark.attrib.items() if key != "transform"))
        x, y = float(place[1]), float(place[2])
        if look not in first:
            first[look] = (mark, (x, y), f"{prefix}{len(first)}")
            continue
        original, (x0, y0), mark_id = first[look]
        original.set("id", mark_id)
        mark.tag = "use"
        mark.attrib.clear()
        mark.attrib.update({"href": f"#{mark_id}", "x": _short(x - x0), "y": _short(y - y0)})


def _short(value: float) -> str:
    text = f"{value:.1f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _draws(element: ElementTree.Element) -> bool:
    if element.tag == f"{_SVG}path" and (element.get("d") or "") in ("", "M0,0h0v0h0Z"):
        return False
    return element.get("opacity") != "0"


def _attributes(element: ElementTree.Element, ids: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    classes: list[str] = []
    for key, value in element.attrib.items():
        if key not in _KEEP or _DEFAULTS.get(key) == value:
            continue
        if key in ("fill", "stroke"):
            if value in CLASSES:
                classes.append(f"{key[0] if key == 'fill' else 'k'}-{CLASSES[value]}")
                continue
            if value == "transparent":
                value = "none"
        elif key == "id":
            value = ids[value]
        elif key == "clip-path":
            value = f"url(#{ids[value.removeprefix('url(#').removesuffix(')')]})"
        elif key in ("d", "transform", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "cx", "cy", "r"):
            value = _NUMBER.sub(_rounded, value)
        if key == "transform" and value == "translate(0,0)":
            continue
        found[key] = value
    if classes:
        found["class"] = " ".join(classes)
    return found


def _rounded(match: re.Match[str]) -> str:
    return _short(float(match[0]))


def _write(element: ElementTree.Element) -> str:
    # ElementTree escapes ">" in text and attributes, so " />" is only ever the end of an empty element.
    return ElementTree.tostring(element, encoding="unicode").replace(" />", "/>")
