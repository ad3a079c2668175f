"""A worker process: drives its part of a cell and appends its rows to the run's own journals.

``python -m harness.load.worker`` reads a :class:`Job` from its standard input.  It says ``ready`` on its
standard output, gets ``start T`` (monotonic ns, the same clock in every process of a machine), then writes a line of
JSON with its progress every now and then, and at the end one with the outcome.  ``stop`` ends it early.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from harness.load.cell import CellPlan, CellRun
from harness.load.client_options import ClientOptions
from harness.load.dialect import Dialect
from harness.load.lag import own_cpu_s

REPORT_S = 0.2
STDIN = 0


@dataclass(frozen=True, slots=True)
class Job:
    """What one worker does.  ``journals`` are the files of the tables."""

    number: int
    plan: CellPlan
    client: ClientOptions
    dialect: Dialect
    journals: Mapping[str, Path]


class SharedJournals:
    """Appends rows to files that other processes append to as well: whole lines, each write in one piece.

    A kill, or a full disk, can cut the write of another process short; its last line is then ended before ours begins, so
    that only that line is lost.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = {name: os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644) for name, file in files.items()}

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Raises OSError."""
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        if not lines:
            return
        descriptor = self._files[table]
        if not ends_whole(descriptor):
            lines = b"\n" + lines
        while lines:  # what takes only a part says why with the rest
            lines = lines[os.write(descriptor, lines) :]

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)


def ends_whole(descriptor: int) -> bool:
    """Whether a file of lines is empty or ends with the end of one."""
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"


def say(document: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


async def work(job: Job) -> None:
    """The whole of one job."""
    journals = SharedJournals(job.journals)
    loop = asyncio.get_running_loop()
    commands: asyncio.Queue[str] = asyncio.Queue()
    threading.Thread(target=_listen, args=(loop, commands), daemon=True).start()
    async with job.client.make() as client:
        run = CellRun(job.plan, client, job.dialect, journals, label=str(job.number))

        async def starts_at() -> int:
            say({"ready": True})
            word, _, t = (await commands.get()).partition(" ")
            if word != "start":
                raise asyncio.CancelledError
            follow.append(asyncio.create_task(_follow(run, commands)))
            return int(t)

        follow = [asyncio.create_task(_report(run))]
        try:
            outcome = await run.run(starts_at)
        finally:
            for task in follow:
                task.cancel()
    journals.close()
    say({**_progress(run), "outcome": asdict(outcome), "cpu_s": own_cpu_s()})


def _listen(loop: asyncio.AbstractEventLoop, commands: asyncio.Queue[str]) -> None:
    """Commands from the parent; when it is gone, that is a stop.

    Reads the descriptor itself: a thread that waits inside ``sys.stdin`` would break the interpreter's end.
    """
    rest = b""
    with contextlib.suppress(RuntimeError):  # the loop is closed: the work is over, and nobody waits for a command
        while data := os.read(STDIN, 4096):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                loop.call_soon_threadsafe(commands.put_nowait, line.decode())
        loop.call_soon_threadsafe(commands.put_nowait, "stop")


def read_job() -> Job:
    """The job that the parent sends: its length in 8 bytes, then the pickle."""
    job: Job = pickle.loads(_exactly(int.from_bytes(_exactly(8))))  # noqa: S301 - from the process that started this one
    return job


def _exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(STDIN, size - len(data))
        if not part:
            raise EOFError("the parent is gone")
        data += part
    return data


async def _follow(run: CellRun, commands: asyncio.Queue[str]) -> None:
    while await commands.get() != "stop":
        pass
    run.interrupt()


async def _report(run: CellRun) -> None:
    while True:
        await asyncio.sleep(REPORT_S)
        say(_progress(run))


def _progress(run: CellRun) -> dict[str, Any]:
    progress = run.progress
    return {
        "done": progress.done,
        "failed": progress.failed,
        "tokens": progress.tokens,
        "in_flight": len(progress.in_flight),
        "last_error": progress.last_error,
    }


def main() -> None:
    job = read_job()
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(work(job))
    except OSError as error:
        say({"error": error.strerror or str(error)})
    except asyncio.CancelledError:
        pass


if __name__ == "__main__":
    main()
