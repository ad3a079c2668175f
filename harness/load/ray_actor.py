"""What runs on another machine: a worker's part of a cell inside a Ray actor.  Rows wait there until they are fetched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from harness.load.cell import CellPlan, CellRun
from harness.load.client_options import ClientOptions
from harness.load.clocks import boot_id
from harness.load.dialect import Dialect
from harness.load.lag import own_cpu_s


class Rows:
    """A sink that keeps rows until they are taken."""

    def __init__(self) -> None:
        self._tables: dict[str, list[dict[str, Any]]] = {}

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self._tables.setdefault(table, []).extend(dict(row) for row in rows)

    def take(self) -> dict[str, list[dict[str, Any]]]:
        taken, self._tables = self._tables, {}
        return taken


class LoadActor:
    """One worker.  ``ready`` once, ``start`` once, ``fetch`` every now and then, ``stop`` to end early."""

    def __init__(self, number: int, plan: CellPlan, client: ClientOptions, dialect: Dialect) -> None:
        self._rows = Rows()
        self._client = client.make()
        self._run_args = (plan, dialect, str(number))
        self._run: CellRun | None = None
        self._start: asyncio.Future[int] | None = None
        self._task: asyncio.Task[Any] | None = None

    def clock(self) -> int:
        """This machine's monotonic time, ns."""
        return time.monotonic_ns()

    def where(self) -> dict[str, str | None]:
        """Which machine this is."""
        import socket

        return {"host": socket.gethostname(), "boot_id": boot_id()}

    async def ready(self) -> bool:
        """Encode the requests and open the connections."""
        plan, dialect, label = self._run_args
        await self._client.__aenter__()
        self._run = CellRun(plan, self._client, dialect, self._rows, label=label)
        self._start = asyncio.get_running_loop().create_future()
        is_ready = asyncio.Event()

        async def starts_at() -> int:
            is_ready.set()
            assert self._start is not None
            return await self._start

        self._task = asyncio.create_task(self._run.run(starts_at))
        await asyncio.wait((self._task, asyncio.create_task(is_ready.wait())), return_when=asyncio.FIRST_COMPLETED)
        return True

    async def start(self, t_ns: int) -> None:
        """Begin the schedule at ``t_ns`` of this machine's clock."""
        assert self._start is not None
        self._start.set_result(t_ns)

    async def fetch(self) -> dict[str, Any]:
        """Rows since the last call, the progress, and the outcome once there is one."""
        assert self._run is not None
        assert self._task is not None
        outcome = None
        if self._task.done():
            outcome = asdict(self._task.result())
        progress = self._run.progress
        return {
            "rows": self._rows.take(),
            "progress": {
                "done": progress.done,
                "failed": progress.failed,
                "tokens": progress.tokens,
                "in_flight": len(progress.in_flight),
                "last_error": progress.last_error,
            },
            "outcome": outcome,
            "cpu_s": own_cpu_s(),
        }

    async def stop(self) -> None:
        """Cancel what is in flight and send nothing more."""
        if self._run is not None:
            self._run.interrupt()
        if self._start is not None and not self._start.done():
            self._start.cancel()
