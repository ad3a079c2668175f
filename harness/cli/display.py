"""Telling the user what a run does, on stderr: a bar with live numbers on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from harness.load.progress import Progress as CellProgress
from harness.results.schema import CellInfo
from harness.telemetry.periodic import Periodic
from harness.telemetry.scrape import Scraper

BAR_PERIOD_S = 0.5
LINE_PERIOD_S = 10.0


class LiveDisplay:
    """Implements ``harness.load.session.Display``.  Refreshes on a thread of its own, away from the load loop."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._refresh: Periodic | None = None
        self._started = self._last_t = 0.0
        self._last_tokens = 0

    def note(self, sentence: str) -> None:
        self._console.print(sentence, markup=False)

    def cell_started(self, cell: CellInfo, progress: CellProgress, scrapers: Sequence[Scraper]) -> None:
        self._started = self._last_t = time.monotonic()
        self._last_tokens = 0
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[live]}"),
                console=self._console,
                transient=True,
                auto_refresh=False,
            )
            self._task = self._bar.add_task(cell.cell_id, total=progress.asked, live="")
            self._bar.start()
        period = BAR_PERIOD_S if self._console.is_terminal else LINE_PERIOD_S
        self._refresh = Periodic("display", period, lambda: self._show(cell, progress, scrapers))
        self._refresh.start()

    def cell_ended(self, cell: CellInfo, progress: CellProgress) -> None:
        if self._refresh is not None:
            self._refresh.stop()
            self._refresh = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        seconds = time.monotonic() - self._started
        line = f"{cell.cell_id}: {progress.done}/{progress.asked} requests, {progress.failed} failed, "
        line += f"{progress.settled_tokens} output tokens in {seconds:.1f} s"
        if cell.status != "complete":
            line += f", {cell.status}"
        self.note(line)
        if progress.last_error is not None:
            self.note(f"  last failure: {progress.last_error}")

    def _show(self, cell: CellInfo, progress: CellProgress, scrapers: Sequence[Scraper]) -> None:
        live = self._live(progress, scrapers)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.done, live=live, refresh=True)
        elif time.monotonic() - self._started > LINE_PERIOD_S / 2 and self._refresh is not None:
            self.note(f"{cell.cell_id}: {progress.done}/{progress.asked}  {live}")

    def _live(self, progress: CellProgress, scrapers: Sequence[Scraper]) -> str:
        """Live tokens/s since the last look, KV use as the engine tells it, failures."""
        now, tokens = time.monotonic(), progress.tokens
        rate = max(0, tokens - self._last_tokens) / max(1e-9, now - self._last_t)
        self._last_t, self._last_tokens = now, tokens
        parts = [f"{rate:.0f} tok/s", f"{progress.flying} in flight"]
        values = {name: value for scraper in scrapers for name, value in scraper.latest.items()}
        live, reserved = values.get("kv_slots_live"), values.get("kv_slots_reserved")
        if live is not None and reserved:
            parts.append(f"KV {live / reserved:.0%} live")
        elif "kv_usage" in values:
            parts.append(f"KV {values['kv_usage']:.0%} held")
        if progress.failed:
            parts.append(f"{progress.failed} failed")
        return ", ".join(parts)
