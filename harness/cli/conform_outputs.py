"""Files of a conformance run: JSON, JUnit and the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.cli.errors import CliError
from harness.results.conformance import SuiteResult

HARNESS_ERROR = 4


def write_outputs(results: Sequence[SuiteResult], *, out: Path | None, junit: Path | None, html: Path | None) -> None:
    """Write what was asked for; ``out`` gets all of it.  Raises CliError when a file cannot be written."""
    if out is None and junit is None and html is None:
        return
    from reports.conformance import junit_xml, render_page

    files: list[tuple[Path, str]] = []
    if out is not None:
        names = [result.engine.name for result in results]
        files += [
            (out / f"conformance-{name}.json", r.model_dump_json(indent=2))
            for name, r in zip(names, results, strict=True)
        ]
        junit, html = junit or out / "junit.xml", html or out / "conformance.html"
    try:
        if junit is not None:
            files.append((junit, junit_xml(results)))
        if html is not None:
            files.append((html, render_page(results)))
        for path, text in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError(f"cannot write {error.filename}: {error.strerror}", HARNESS_ERROR) from error
