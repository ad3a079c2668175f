"""A cell driven by several processes: one schedule, one clock, one set of journals."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson

from harness.load.cell import CellOutcome, CellPlan
from harness.load.client_options import ClientOptions
from harness.load.dialect import Dialect
from harness.load.progress import Progress
from harness.load.split import split_plan
from harness.load.worker import Job

monotonic_ns = time.monotonic_ns

HEAD_START_NS = 50_000_000  # from the last worker's word that it is ready to the start of the schedule
LINE_BYTES = 1 << 20
END_S = 30.0  # a stopped worker finishes its rows


class WorkerError(RuntimeError):
    """A worker died or could not write.  The message is shown to the user as it is."""


class TeamProgress(Progress):
    """The workers' progress, added up from their reports."""

    def __init__(self, asked: int) -> None:
        super().__init__(asked=asked)
        self.reports: dict[int, Mapping[str, Any]] = {}

    @property
    def tokens(self) -> int:
        return self.settled_tokens

    @property
    def flying(self) -> int:
        return sum(report["in_flight"] for report in self.reports.values())

    def take(self, worker: int, report: Mapping[str, Any]) -> None:
        self.reports[worker] = report
        self.done = sum(one["done"] for one in self.reports.values())
        self.settled_tokens = sum(one["tokens"] for one in self.reports.values())
        self.failed = sum(one["failed"] for one in self.reports.values())
        self.last_error = report["last_error"] or self.last_error


class WorkersRun:
    """Like ``CellRun``, over ``workers`` processes: ``await run()``; ``interrupt()`` ends it early."""

    def __init__(
        self, plan: CellPlan, client: ClientOptions, dialect: Dialect, journals: Mapping[str, Path], workers: int
    ) -> None:
        self.progress = TeamProgress(asked=len(plan.requests))
        self._jobs = [
            Job(number, part, client, dialect, journals) for number, part in enumerate(split_plan(plan, workers))
        ]
        self._children: list[asyncio.subprocess.Process] = []
        self._is_stopped = False

    def interrupt(self) -> None:
        """Tell every worker to cancel what is in flight and to send nothing more."""
        self._is_stopped = True
        for child in self._children:
            if child.stdin is not None and child.returncode is None:
                child.stdin.write(b"stop\n")

    async def run(self) -> CellOutcome:
        """Raises :class:`WorkerError`."""
        try:
            self._children = list(await asyncio.gather(*(self._spawn(job) for job in self._jobs)))
            for number, child in enumerate(self._children):
                await self._read(number, child, "ready")
            start = monotonic_ns() + HEAD_START_NS
            if self._is_stopped:
                self.interrupt()
            for child in self._children:
                assert child.stdin is not None
                child.stdin.write(f"start {start}\n".encode())
            outcomes = await asyncio.gather(
                *(self._read(n, child, "outcome") for n, child in enumerate(self._children))
            )
        except asyncio.CancelledError:
            self.interrupt()
            raise
        finally:
            await self._end()
        return merge([CellOutcome(**outcome) for outcome in outcomes])

    async def _spawn(self, job: Job) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "harness.load.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )
        assert child.stdin is not None
        data = pickle.dumps(job)
        child.stdin.write(len(data).to_bytes(8) + data)
        return child

    async def _read(self, number: int, child: asyncio.subprocess.Process, wanted: Literal["ready", "outcome"]) -> Any:
        """Follow a worker's lines until one has ``wanted``."""
        assert child.stdout is not None
        while line := await child.stdout.readline():
            document = orjson.loads(line)
            if "error" in document:
                raise WorkerError(
                    f"worker {number} cannot write its rows: {document['error']}; what was written is kept"
                )
            if "done" in document:
                self.progress.take(number, document)
            if wanted in document:
                return document[wanted]
        code = await child.wait()
        raise WorkerError(f"worker {number} died (status {code}); what the others wrote is kept")

    async def _end(self) -> None:
        """Leave no process behind."""
        for child in self._children:
            if child.stdin is not None:
                child.stdin.close()  # which a worker takes as a stop
        for child in self._children:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await child.wait()
            if child.returncode is None:
                child.kill()
                await child.wait()


def merge(outcomes: Sequence[CellOutcome]) -> CellOutcome:
    """The outcome of all as one: as bad as the worst."""
    statuses = [outcome.status for outcome in outcomes]
    worst: Literal["complete", "interrupted", "failed"] = "complete"
    if "failed" in statuses:
        worst = "failed"
    elif "interrupted" in statuses:
        worst = "interrupted"
    return CellOutcome(
        t_start=min(outcome.t_start for outcome in outcomes),
        t_end=max(outcome.t_end for outcome in outcomes),
        status=worst,
        ran_dry=any(outcome.ran_dry for outcome in outcomes),
    )
