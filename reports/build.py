"""Build the views of one or several run directories: the HTML page, Markdown, CSV and JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from reports.dataset import Dataset, ReportError, load_dataset
from reports.export import to_csv, to_json
from reports.markdown import to_markdown
from reports.page import render_page
from reports.verdict import judge

FORMATS = {"html": "report.html", "md": "report.md", "csv": "report.csv", "json": "report.json"}


def build_report(
    run_dir: Path | Sequence[Path], out: Path | None = None, format: str = "html", interactive: bool = False
) -> Path:
    """Write a report of ``run_dir`` (several are compared in one report) and return the file's path.

    ``out`` is the file to write, by default ``report.<ext>`` in the run directory; several runs have no such place and
    need it.  ``format`` is a key of ``FORMATS``.  The same runs give the same bytes.

    Raises :class:`ReportError` for a request that cannot be met and ``RunReadError`` for a run that cannot be read.
    """
    paths = [run_dir] if isinstance(run_dir, Path) else list(run_dir)
    if out is None:
        if len(paths) != 1:
            raise ReportError("a report of several runs needs a place to be written to; name the output file")
        out = paths[0] / file_name(format)
    data = load_dataset(paths)
    write_whole(out, render(data, format, out.parent, interactive))
    return out


def file_name(format: str) -> str:
    """The default name of a report in this format."""
    if format not in FORMATS:
        raise ReportError(f"format {format!r} is not known; choose one of {', '.join(FORMATS)}")
    return FORMATS[format]


def render(data: Dataset, format: str = "html", out_dir: Path | None = None, interactive: bool = False) -> str:
    """A report as text.  ``out_dir`` is the folder it will lie in, for the links to raw data; ``interactive`` is for
    the page: tooltips, zoom and a legend filter."""
    file_name(format)
    verdict = judge(data)
    if format == "html":
        return render_page(data, verdict, out_dir, interactive)
    return {"md": to_markdown, "csv": to_csv, "json": to_json}[format](data, verdict)


def write_whole(out: Path, text: str) -> None:
    """Write ``out`` so that a reader sees the old file or the new one, never half of one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, out)
