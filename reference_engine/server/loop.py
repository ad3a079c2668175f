"""The engine's thread, and the way between it and the event loop.

::

    event loop thread                                   engine thread
    submit -> Ticket ---------- inbox ----------------> admit: engine.add for each request of the call
    release (done or gone) ---- inbox ----------------> engine.abort
    Ticket.next <- deliver <--- one call a step ------- engine.step

Commands are taken before every step, so an abort frees its blocks within one step.  A step's results cross over with a
single ``call_soon_threadsafe``, however many sequences it holds.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reference_engine.engine import Engine
from reference_engine.outputs import EngineStats, SequenceOutput
from reference_engine.request import Request, RequestRejected
from reference_engine.server.errors import ApiError, rejection
from reference_engine.server.worker import EngineThread

logger = logging.getLogger(__name__)

# Outputs that may wait for a client that reads slower than the engine writes; with more, its call is given up.
MAX_BACKLOG = 4096
# Statistics are copied at most this often while the engine is busy, and whenever it falls idle.
STATS_INTERVAL = 0.02  # seconds


class Ticket:
    """One API call's place in the engine: its requests and the outputs that nobody has taken yet.  Event loop only."""

    def __init__(self, requests: list[Request], show_special_tokens: bool, loop: asyncio.AbstractEventLoop) -> None:
        self.requests = requests
        self.show_special_tokens = show_special_tokens
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.open = sum(request.params.n for request in requests)  # continuations that have not ended
        self._loop = loop
        self._pending: list[SequenceOutput] = []
        self._error: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> list[SequenceOutput]:
        """All outputs that have come since the last call, at least one.  Raises ApiError if the call failed."""
        while not self._pending:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter
        taken, self._pending = self._pending, []
        return taken

    def put(self, output: SequenceOutput) -> None:
        if output.error is not None:
            self.fail(ApiError(output.error, status=500))
            return
        if output.finish_reason is not None:
            self.open -= 1
        self._pending.append(output)
        self._wake()

    @property
    def is_drained(self) -> bool:
        """All continuations have ended and all outputs were taken."""
        return not self.open and not self._pending

    @property
    def is_overrun(self) -> bool:
        return len(self._pending) > MAX_BACKLOG and self.open > 0  # what is complete grows no more

    def fail(self, error: ApiError) -> None:
        self._error = error
        self._pending = []
        if not self.accepted.done():
            self.accepted.set_exception(error)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(frozen=True, slots=True)
class _Add:
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class _Abort:
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Ask:
    question: Callable[[Engine], Any]
    answer: asyncio.Future[Any]


class _Stop:
    pass


Command = _Add | _Abort | _Ask | _Stop


class EngineLoop:
    """Runs an engine in a thread of its own.  Its methods belong to the event loop that made it."""

    def __init__(self, engine: Engine, thread: EngineThread, on_failure: Callable[[], None] | None = None) -> None:
        """``thread`` is the one that built the engine; the loop takes it over and ends it.

        ``on_failure`` is called on the event loop if the engine breaks down; every call then fails with 500.
        """
        self.times = engine.times
        self.limits = engine.limits
        self.stats: EngineStats = engine.stats()
        self.failure: str | None = None
        self._engine = engine
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._tickets: dict[str, Ticket] = {}
        self._stats_due = 0.0
        self._thread = thread
        thread.start(self._run)

    # --- on the event loop ---

    @property
    def num_open(self) -> int:
        """Requests that have not been released."""
        return len(self._tickets)

    def submit(self, requests: list[Request], *, show_special_tokens: bool = False) -> Ticket:
        """Hand over a call.  Await ``accepted`` (ApiError if refused), then ``next``; ``release`` it in any case."""
        ticket = Ticket(requests, show_special_tokens, self._loop)
        if self.failure is not None:
            raise ApiError(self.failure, status=503)
        for request in requests:
            self._tickets[request.request_id] = ticket
        self._inbox.put(_Add(ticket))
        return ticket

    def release(self, ticket: Ticket) -> None:
        """The call is over: done, refused, or its client gone.  What still runs is aborted before the next step."""
        known = [request.request_id for request in ticket.requests if self._tickets.pop(request.request_id, None)]
        if known and ticket.open:
            self._inbox.put(_Abort(tuple(known)))

    def fail_all(self, error: ApiError) -> None:
        """Give up every call."""
        for ticket in set(self._tickets.values()):
            ticket.fail(error)

    async def ask(self, question: Callable[[Engine], Any]) -> Any:
        """``question(engine)``, answered by the engine's thread between two steps."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._inbox.put(_Ask(question, answer))
        return await answer

    def stop(self) -> None:
        """End the thread after the step in flight."""
        self._inbox.put(_Stop())
        self._thread.join(timeout=10)

    def _deliver(self, outputs: list[SequenceOutput]) -> None:
        tickets, touched = self._tickets, dict[Ticket, None]()
        for output in outputs:
            ticket = tickets.get(output.request_id)
            if ticket is not None:
                ticket.put(output)
                touched[ticket] = None
        for ticket in touched:
            if ticket.is_overrun:
                ticket.fail(ApiError(f"the client did not read {MAX_BACKLOG} tokens; the call is given up", status=500))
                self.release(ticket)

    # --- on the engine's thread ---

    def _run(self) -> None:
        try:
            while self._obey():
                plan = self._engine.plan()
                # Now, too: a step can take long, and until it ends this is what runs and holds blocks.
                self._refresh_stats(force=False)
                outputs = self._engine.run(plan)
                # Before the outputs go out: who has its answer and then reads the metrics finds it counted.
                self._refresh_stats(force=not self._engine.has_work)
                if outputs:
                    self._post(self._deliver, outputs)
        except Exception as error:
            logger.exception("the engine broke down")
            self._post(self._break_down, f"the engine broke down: {type(error).__name__}: {error}")

    def _obey(self) -> bool:
        """Carry out the commands that wait; without work, wait for one.  False when told to stop."""
        while True:
            try:
                command = self._inbox.get(block=not self._engine.has_work)
            except queue.Empty:
                return True
            if isinstance(command, _Stop):
                return False
            self._carry_out(command)
            if not self._engine.has_work:
                self._refresh_stats(force=True)

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, _Add):
            self._admit(command.ticket)
        elif isinstance(command, _Abort):
            for request_id in command.request_ids:
                self._engine.abort(request_id)
        elif isinstance(command, _Ask):
            try:
                self._post(_answer, command.answer, command.question(self._engine), None)
            except Exception as error:
                self._post(_answer, command.answer, None, error)

    def _admit(self, ticket: Ticket) -> None:
        """Add a call's requests.  If one is refused the call fails, and its ``release`` aborts those before it."""
        try:
            for request in ticket.requests:
                self._engine.add(request, show_special_tokens=ticket.show_special_tokens)
        except RequestRejected as error:
            self._post(ticket.fail, rejection(error))
        else:
            self._post(_accept, ticket)

    def _refresh_stats(self, *, force: bool) -> None:
        now = time.monotonic()
        if force or now >= self._stats_due:
            self.stats = self._engine.stats()
            self._stats_due = now + STATS_INTERVAL

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            logger.debug("the event loop has ended; a result of the engine is dropped")

    def _break_down(self, message: str) -> None:
        self.failure = message
        self.fail_all(ApiError(message, status=500))
        if self._on_failure is not None:
            self._on_failure()


def _accept(ticket: Ticket) -> None:
    if not ticket.accepted.done():
        ticket.accepted.set_result(None)


def _answer(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
