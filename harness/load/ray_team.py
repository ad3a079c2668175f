"""A cell driven from several machines: our workers as Ray actors, one schedule, rows merged as if by one process.

The parts are those of ``split.py``, so that all machines together send exactly what one would have sent.  Every worker's clock
is told in ours (``clocks.py``); offsets and their uncertainty are recorded as telemetry of the client.  Rows are fetched
a few times a second and written to the run's journals here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from harness.load.cell import CellOutcome, CellPlan, Sink
from harness.load.client_options import ClientOptions
from harness.load.clocks import Offset, boot_id, in_our_time, measure_offset
from harness.load.dialect import Dialect
from harness.load.ray_actor import LoadActor
from harness.load.ray_address import parse_workers
from harness.load.split import split_plan
from harness.load.workers import TeamProgress, WorkerError, merge

monotonic_ns = time.monotonic_ns

FETCH_S = 0.25
HEAD_START_NS = 500_000_000  # for the word to start to reach every machine
READY_S = 120.0


class RayRun:
    """Like ``CellRun``, over Ray actors: ``await run()``; ``interrupt()`` ends it early."""

    def __init__(self, plan: CellPlan, client: ClientOptions, dialect: Dialect, sink: Sink, workers: str) -> None:
        self.progress = TeamProgress(asked=len(plan.requests))
        self._plan = plan
        self._client = client
        self._dialect = dialect
        self._sink = sink
        self._address, self._number = parse_workers(workers)
        self._actors: list[Any] = []
        self._is_stopped = False

    def interrupt(self) -> None:
        """Tell every worker to cancel what is in flight and to send nothing more."""
        self._is_stopped = True
        for actor in self._actors:
            actor.stop.remote()

    async def run(self) -> CellOutcome:
        """Raises :class:`WorkerError` when Ray or a worker fails."""
        try:
            import ray
        except ImportError:
            raise WorkerError("workers on Ray need the package 'ray'; pip install 'pagedbench[ray]'") from None
        try:
            await asyncio.to_thread(self._connect, ray)
            return await self._drive(ray)
        except ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()
            raise WorkerError(f"a worker on Ray failed: {first[-1] if first else error}") from error
        except (ConnectionError, TimeoutError) as error:
            raise WorkerError(f"Ray cannot be reached at {self._address or 'RAY_ADDRESS'}: {error}") from error
        finally:
            for actor in self._actors:
                ray.kill(actor)
            self._actors = []

    def _connect(self, ray: Any) -> None:
        if not ray.is_initialized():
            ray.init(address=self._address, log_to_driver=False, logging_level="error", configure_logging=False)

    async def _drive(self, ray: Any) -> CellOutcome:
        machines = sum(node["Alive"] for node in ray.nodes())
        parts = split_plan(self._plan, self._number or max(1, machines))
        # One core each, spread over the machines: a client that shares its core is not to be believed.
        kind = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(LoadActor)
        self._actors = [kind.remote(number, part, self._client, self._dialect) for number, part in enumerate(parts)]
        await self._get(ray, [actor.ready.remote() for actor in self._actors], READY_S)
        offsets = [await asyncio.to_thread(self._offset, ray, actor) for actor in self._actors]
        self._note_offsets(offsets)
        start = monotonic_ns() + HEAD_START_NS
        if self._is_stopped:
            self.interrupt()
        await self._get(
            ray,
            [actor.start.remote(start + offset.ns) for actor, offset in zip(self._actors, offsets, strict=True)],
        )
        outcomes = await self._follow(ray, offsets)
        self._note_offsets([await asyncio.to_thread(self._offset, ray, actor) for actor in self._actors])
        return merge(outcomes)

    async def _follow(self, ray: Any, offsets: list[Offset]) -> list[CellOutcome]:
        """Fetch rows until every worker has an outcome."""
        outcomes: dict[int, CellOutcome] = {}
        while len(outcomes) < len(self._actors):
            await asyncio.sleep(FETCH_S)
            going = [number for number in range(len(self._actors)) if number not in outcomes]
            reports = await self._get(ray, [self._actors[number].fetch.remote() for number in going])
            for number, report in zip(going, reports, strict=True):
                self.progress.take(number, report["progress"])
                self._write(report["rows"], offsets[number].ns)
                if report["outcome"] is not None:
                    outcome = CellOutcome(**report["outcome"])
                    outcomes[number] = CellOutcome(
                        t_start=outcome.t_start - offsets[number].ns,
                        t_end=outcome.t_end - offsets[number].ns,
                        status=outcome.status,
                        ran_dry=outcome.ran_dry,
                    )
        return [outcomes[number] for number in sorted(outcomes)]

    def _write(self, rows: Mapping[str, list[dict[str, Any]]], offset_ns: int) -> None:
        for table, part in rows.items():
            self._sink.append(table, in_our_time(table, part, offset_ns))

    def _offset(self, ray: Any, actor: Any) -> Offset:
        where = ray.get(actor.where.remote())
        if where["boot_id"] is not None and where["boot_id"] == boot_id():
            return Offset(0, 0)
        return measure_offset(lambda: ray.get(actor.clock.remote()), monotonic_ns)

    def _note_offsets(self, offsets: list[Offset]) -> None:
        t = monotonic_ns()
        self._sink.append(
            "system",
            [
                {
                    "cell_id": self._plan.cell_id,
                    "t": t,
                    "source": "client",
                    "name": name,
                    "label": str(number),
                    "value": float(value),
                }
                for number, offset in enumerate(offsets)
                for name, value in (("clock_offset_ns", offset.ns), ("clock_uncertainty_ns", offset.uncertainty_ns))
            ],
        )

    @staticmethod
    async def _get(ray: Any, references: list[Any], timeout_s: float | None = None) -> list[Any]:
        """The values of references, while the loop goes on."""
        values: list[Any] = await asyncio.to_thread(ray.get, references, timeout=timeout_s)
        return values
