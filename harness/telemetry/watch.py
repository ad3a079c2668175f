"""All telemetry of one cell: started before the load, stopped after it, rows handed on as they come."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from harness.engines.descendants import tree
from harness.telemetry.foreign import ForeignSampler
from harness.telemetry.nvml import NvmlSampler
from harness.telemetry.periodic import Periodic
from harness.telemetry.process import ProcessSampler
from harness.telemetry.scrape import Scraper

SCRAPE_PERIOD_S = 0.22
SYSTEM_PERIOD_S = 1.0
DEVICE_PERIOD_S = 0.1

Append = Callable[[str, Iterable[Mapping[str, Any]]], None]  # table name, rows


class Watch:
    """Samples an engine, its processes, the devices and ourselves while the ``with`` block runs.

    ``append(table, rows)`` is called from telemetry threads with rows that carry ``cell_id``.
    """

    def __init__(
        self,
        cell_id: str,
        append: Append,
        *,
        scrapers: Sequence[Scraper] = (),
        pids: Callable[[], Sequence[int]] | None = None,
        devices: NvmlSampler | None = None,
    ) -> None:
        self._scrapers = scrapers
        self._cell_id = cell_id
        self._append = append
        system = [ProcessSampler(lambda: [os.getpid()], source="client").sample]
        if pids is not None:
            # Only where the engine is ours from its start, a descendant of this process, can it be told from others.
            system += [ProcessSampler(pids).sample, ForeignSampler(lambda: tree(os.getpid())).sample]
        # One thread for all of them: each wake-up takes a core from an engine that computes on every core.
        self._threads = [Periodic("system", SYSTEM_PERIOD_S, self._rows("system", *system))]
        for scraper in scrapers:
            self._threads.append(Periodic("scrape", SCRAPE_PERIOD_S, self._rows("metrics", scraper.sample)))
        if devices is not None and devices.devices:
            self._threads.append(Periodic("devices", DEVICE_PERIOD_S, self._rows("system", devices.sample)))

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in self._threads:
            thread.stop()
        for scraper in self._scrapers:
            scraper.close()

    async def __aenter__(self) -> Watch:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As ``__exit__``, while the event loop goes on: the last samples may need it."""
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    @property
    def error(self) -> Exception | None:
        """What ended a telemetry thread early (a full disk, a bug), or None."""
        return next((thread.error for thread in self._threads if thread.error is not None), None)

    def _rows(self, table: str, *samples: Callable[[], Iterable[dict[str, Any]]]) -> Callable[[], None]:
        def work() -> None:
            rows = [{"cell_id": self._cell_id, **row} for sample in samples for row in sample()]
            if rows:
                self._append(table, rows)

        return work
