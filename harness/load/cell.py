"""Driving one cell: release the load, keep what the wire did, settle it beside the load, write every row at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.load.client import Client
from harness.load.dialect import Dialect, Prepared, prepare
from harness.load.drivers import closed_loop, open_loop
from harness.load.exchange import Exchange
from harness.load.history import fill_answers, read_answer, wanted_answers
from harness.load.lag import LagMonitor, own_cpu_s, quiet_interpreter
from harness.load.progress import Progress
from harness.load.settle import Rules, settle_slowly
from workloads.request import Load, RequestSpec

if TYPE_CHECKING:
    from harness.load.portable import PortableClient

monotonic_ns = time.monotonic_ns

# So many failures without a success in between mean that the engine is gone; going on would only fill the disk.
MAX_FAILURES_IN_A_ROW = 100
WARM_OPEN_LOOP_CONNECTIONS = 8
BURST_S = 0.02
NOTES_A_WRITE = 50
CPU_PERIOD_NS = 500_000_000


class Sink(Protocol):
    """Where rows go (``harness.results.writer.RunWriter``)."""

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None: ...


@dataclass(frozen=True, slots=True)
class CellPlan:
    """Everything one cell needs, made before the first byte is sent.

    ``warmup`` requests come first and flow into the measured ones without a pause; their indices are negative.  With
    ``arrivals_ns`` there is one offset for each request that waits for no other, warm-up included.  ``duration_s``
    stops a closed loop that long after the first measured request; ``is_pool`` says that the number of requests was
    only a guess at what that takes.
    """

    cell_id: str
    load: Load
    warmup: tuple[RequestSpec, ...]
    requests: tuple[RequestSpec, ...]
    arrivals_ns: tuple[int, ...] | None = None
    duration_s: float | None = None
    is_pool: bool = False
    keep: frozenset[int] = frozenset()  # indices of the requests whose answers are written out, to be judged later


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """How a cell ended.  ``ran_dry``: a duration was asked and the pool of requests ran out before it."""

    t_start: int
    t_end: int
    status: Literal["complete", "interrupted", "failed"]
    ran_dry: bool = False


class CellRun:
    """One cell in progress: ``await run()``; ``interrupt()`` ends it early and keeps what was measured."""

    def __init__(
        self, plan: CellPlan, client: Client | PortableClient, dialect: Dialect, sink: Sink, *, label: str = ""
    ) -> None:
        """``label`` tells this client's own telemetry from that of others that drive the same cell."""
        self._label = label
        self.progress = Progress(asked=len(plan.requests))
        self._plan = plan
        self._client = client
        self._sink = sink
        self._rules = Rules(sends_done=dialect.sends_done)
        self._dialect = dialect
        self._specs = (*plan.warmup, *plan.requests)
        self._prepared = [prepare(spec, dialect) for spec in self._specs]
        self._wanted = wanted_answers(self._specs)
        self._answers: dict[int, str] = {}
        self._stop = asyncio.Event()
        self._timed_out = False
        self._t_start: int | None = None
        self._drive: asyncio.Task[bool] | None = None
        self._settling: asyncio.Queue[tuple[Exchange, Prepared, bool] | None] = asyncio.Queue()
        self._notes: list[dict[str, Any]] = []
        self._cpu_at = (0, 0.0)  # when the CPU time of this process was last read (ns), and what it was (s)

    def interrupt(self) -> None:
        """Cancel what is in flight and send nothing more."""
        self._stop.set()
        if self._drive is not None:
            self._drive.cancel()

    async def run(self, starts_at: Callable[[], Awaitable[int]] | None = None) -> CellOutcome:
        """Drive the cell to its end.  Raises what the sink raises (a full disk) after everything has been stopped.

        ``starts_at`` is awaited when all is ready and gives the monotonic time (ns) of the start; now, without it.
        """
        plan = self._plan
        connections = plan.load.concurrency or WARM_OPEN_LOOP_CONNECTIONS
        await self._client.warm(min(connections, max(1, len(self._specs))))
        stale_before = self._client.stale_connections
        lag = LagMonitor(self._on_lag)
        with quiet_interpreter():
            start_ns = monotonic_ns() if starts_at is None else await starts_at()
            settler = asyncio.create_task(self._settle_all())
            lag.start()
            self._drive = asyncio.create_task(self._release(start_ns))
            interrupted = False
            sent_all = False
            try:
                await asyncio.wait((self._drive, settler), return_when=asyncio.FIRST_COMPLETED)
                if settler.done():
                    self._drive.cancel()
                sent_all = await self._drive
            except asyncio.CancelledError:
                interrupted = True
                self.interrupt()
                await asyncio.gather(self._drive, return_exceptions=True)
            finally:
                self._settling.put_nowait(None)
                await lag.stop()
                await settler
        stale = self._client.stale_connections - stale_before
        self._note("stale_connections", monotonic_ns(), float(stale))
        if self._client.clock is not None:
            self._note("clock_steps", monotonic_ns(), float(self._client.clock.steps))
        self._flush_notes()
        failed = self.progress.failures_in_a_row >= MAX_FAILURES_IN_A_ROW
        return CellOutcome(
            t_start=self._t_start or monotonic_ns(),
            t_end=monotonic_ns(),
            status="failed" if failed else "interrupted" if interrupted else "complete",
            ran_dry=plan.is_pool and sent_all and not self._timed_out,
        )

    async def _release(self, start_ns: int) -> bool:
        plan = self._plan
        if plan.arrivals_ns is not None:
            return await open_loop(self._specs, plan.arrivals_ns, self._send, self._stop, start_ns)
        assert plan.load.concurrency is not None
        await asyncio.sleep((start_ns - monotonic_ns()) / 1e9)
        return await closed_loop(
            self._specs, plan.load.concurrency, self._send, self._stop, reads_may_wait=self._client.clock is not None
        )

    async def _send(self, position: int, exchange: Exchange) -> None:
        is_warmup = position < len(self._plan.warmup)
        if self._t_start is None and not is_warmup:
            self._t_start = monotonic_ns()
            if self._plan.duration_s is not None:
                asyncio.get_running_loop().call_later(self._plan.duration_s, self._time_is_up)
        prepared = self._prepared[position]
        if prepared.spec.answers:
            prepared = prepare(fill_answers(prepared.spec, self._answers), self._dialect)
        self.progress.in_flight.add(exchange)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(prepared.spec.cancel_after_s):
                    await self._client.send(exchange, prepared.path, prepared.body)
            if exchange.index in self._wanted and (answer := await read_answer(exchange)) is not None:
                self._answers[exchange.index] = answer
        finally:
            self.progress.in_flight.discard(exchange)
            self._settling.put_nowait((exchange, prepared, is_warmup))
        if self.progress.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            self._stop.set()

    def _time_is_up(self) -> None:
        self._timed_out = True
        if self._plan.load.mode == "closed":
            self._stop.set()

    async def _settle_all(self) -> None:
        """Interpret finished exchanges in slices between which the network is served, and write their rows."""
        while (item := await self._next_to_settle()) is not None:
            exchange, prepared, is_warmup = item
            steps = settle_slowly(exchange, prepared.spec, warmup=is_warmup, rules=self._rules)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    record, chunks = end.value
                    break
                await asyncio.sleep(0)
            self._sink.append("requests", [{"cell_id": self._plan.cell_id, **asdict(record)}])
            self._sink.append("chunks", self._chunk_rows(exchange.index, chunks))
            if exchange.late_reads and record.ok and not is_warmup:
                self._note("blurred_chunks", chunks[-1].t, float(sum(chunk.is_blurred for chunk in chunks)))
            if record.ok and exchange.index in self._plan.keep:
                await self._keep_answer(exchange, prepared)
            exchange.body = b""
            self.progress.settled(record)

    async def _keep_answer(self, exchange: Exchange, prepared: Prepared) -> None:
        row = {
            "cell_id": self._plan.cell_id,
            "request_index": exchange.index,
            "path": prepared.path,
            "body": prepared.body.decode(),
            "text": await read_answer(exchange) or "",
        }
        self._sink.append("answers", [row])

    async def _next_to_settle(self) -> tuple[Exchange, Prepared, bool] | None:
        """The next finished exchange, None at the end.

        Answers often end together, and the end of each lets another request go.  The first of a burst therefore rests
        until the others have come and their successors are under way.
        """
        is_first = self._settling.empty()
        item = await self._settling.get()
        if is_first and item is not None:
            await asyncio.sleep(BURST_S)
        return item

    def _chunk_rows(self, index: int, chunks: Sequence[Any]) -> Iterable[dict[str, Any]]:
        return (
            {
                "cell_id": self._plan.cell_id,
                "request_index": index,
                "chunk": number,
                "t": chunk.t,
                "tokens": chunk.tokens,
                "coalesced": chunk.coalesced,
            }
            for number, chunk in enumerate(chunks)
        )

    def _on_lag(self, t: int, lag_ns: int) -> None:
        self._note("loop_lag_ns", t, float(lag_ns))
        if self._label and t - self._cpu_at[0] >= CPU_PERIOD_NS:
            before, cpu_s = self._cpu_at, own_cpu_s()
            self._cpu_at = (t, cpu_s)
            if before[0]:
                self._note("cpu_percent", t, (cpu_s - before[1]) / (t - before[0]) * 1e11)
        if len(self._notes) >= NOTES_A_WRITE:
            with contextlib.suppress(OSError):  # the next request's row meets the same disk and reports it
                self._flush_notes()

    def _note(self, name: str, t: int, value: float) -> None:
        """Remember a row about this client; written in batches."""
        row = {
            "cell_id": self._plan.cell_id,
            "t": t,
            "source": "client",
            "name": name,
            "label": self._label,
            "value": value,
        }
        self._notes.append(row)

    def _flush_notes(self) -> None:
        rows, self._notes = self._notes, []
        self._sink.append("system", rows)
