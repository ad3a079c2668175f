"""Start an engine from a recipe, wait until it answers, and leave no process of it behind.

::

    async with launched(find("vllm-cpu"), {"model": "..."}, Path("logs")) as engine:
        ...  # engine.url, engine.pids(), engine.log_path

The engine runs in a process group of its own with its output in a log file.  It is stopped by the recipe's signal, then
TERM, then KILL, also when the body raises or is cancelled; ``guard.py`` does it when the harness itself is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import aiohttp
import psutil

from harness.engines import guard
from harness.engines.descendants import tree
from harness.engines.device_lock import device_held
from harness.engines.errors import LaunchError
from harness.engines.installed import require_installed
from harness.engines.listeners import stranger_on
from harness.engines.recipe import LaunchPlan, Readiness, Recipe
from harness.engines.settings import Value

TAIL_LINES = 30
TAIL_BYTES = 16_384
POLL_S = 0.1
TERM_GRACE_S = 5.0
# Set for our interpreter, wrong for another environment's.
FOREIGN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


@dataclass(slots=True)
class RunningEngine:
    """An engine that was launched and answered.  ``pid`` leads its process group."""

    name: str
    recipe: str
    url: str
    pid: int
    log_path: Path
    command: tuple[str, ...]
    settings: dict[str, Value]
    start_s: float  # seconds from the start of the process to the first good answer
    process: subprocess.Popen[bytes] = field(repr=False)

    def pids(self) -> list[int]:
        """The engine's processes that are alive now, the leader first."""
        return tree(self.pid)

    def exit_code(self) -> int | None:
        """None while the engine runs; else its exit status, negative for a signal."""
        return self.process.poll()

    def crash(self) -> str | None:
        """One sentence and the log's tail if the engine is gone, else None."""
        code = self.exit_code()
        return None if code is None else f"{describe_exit(self.name, code)}\n{log_tail(self.log_path)}"


def free_port() -> int:
    """A TCP port on the loopback interface that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def log_tail(path: Path) -> str:
    """The last lines of a log file, indented."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(f"  | {line}" for line in lines[-TAIL_LINES:])


def describe_exit(name: str, code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"engine {name!r} was killed by {signal.Signals(-code).name}"
    return f"engine {name!r} ended with exit code {code}"


def child_environment(plan: LaunchPlan) -> dict[str, str]:
    """Our environment and the recipe's.  An engine of another Python does not inherit our Python's paths."""
    environment = dict(os.environ)
    if plan.command[0] != sys.executable:
        for name in FOREIGN_VARIABLES:
            environment.pop(name, None)
    environment["PYTHONUNBUFFERED"] = "1"  # the log must be complete when the engine dies
    return environment | dict(plan.environment)


def start_guard(pgid: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, str(pgid), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def release_guard(process: subprocess.Popen[bytes]) -> None:
    """Tell the guard that its engine is gone."""
    with contextlib.suppress(OSError):
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.close()
    process.wait()


async def wait_for_exit(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while process.poll() is None:
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S / 2)
    return True


async def stop(process: subprocess.Popen[bytes], recipe: Recipe) -> None:
    """Signal, TERM, KILL; then whatever left the process group.  A cancelled stop kills at once."""
    stragglers = [psutil.Process(pid) for pid in tree(process.pid)[1:] if psutil.pid_exists(pid)]
    try:
        if process.poll() is None:
            process.send_signal(getattr(signal, recipe.stop.signal))
            await wait_for_exit(process, recipe.stop.grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + TERM_GRACE_S
            while process.poll() is None or guard.group_exists(process.pid):
                if time.monotonic() >= deadline:
                    break
                await asyncio.sleep(POLL_S / 2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for straggler in stragglers:
            with contextlib.suppress(psutil.NoSuchProcess):
                straggler.kill()
        process.wait()


async def answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except (TimeoutError, aiohttp.ClientError, OSError):
        return False


def url_in_log(path: Path, pattern: str) -> str | None:
    with contextlib.suppress(OSError):
        if match := re.search(pattern, path.read_text(encoding="utf-8", errors="replace")):
            return match[1].rstrip("/")
    return None


async def wait_until_ready(
    name: str, process: subprocess.Popen[bytes], url: str | None, readiness: Readiness, log_path: Path, limit_s: float
) -> str:
    """The engine's base URL once it answers.  Raises LaunchError when it dies or the time is over."""
    deadline = time.monotonic() + limit_s
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0), trust_env=False) as session:
        while True:
            if process.poll() is not None:
                raise LaunchError(f"{describe_exit(name, process.returncode)} before it was ready", log_tail(log_path))
            if url is None and readiness.url_in_log is not None:
                url = url_in_log(log_path, readiness.url_in_log)
            if url is not None and await answers(session, url + readiness.path):
                return url
            if time.monotonic() >= deadline:
                what = "did not say its URL" if url is None else f"did not answer {url}{readiness.path} with 200"
                raise LaunchError(f"engine {name!r} {what} within {limit_s:g} s", log_tail(log_path))
            await asyncio.sleep(POLL_S)


def refuse_stranger(name: str, pid: int, url: str) -> None:
    """Raises LaunchError if it is not the engine ``pid`` that answers at ``url`` but an older process of this machine."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if (port := urlsplit(url).port) and (other := stranger_on(port, psutil.Process(pid).create_time())):
            raise LaunchError(
                f"engine {name!r} was to listen at {url}, but process {other.pid} ({other.name()}) took that port first; "
                "start again"
            )


def open_log(log_dir: Path, name: str, plan: LaunchPlan) -> tuple[Path, IO[bytes]]:
    """A new log file that begins with the command."""
    safe = re.sub(r"[^\w.-]+", "_", name)
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        path = log_dir / f"{safe}.log"
        number = 1
        while path.exists():
            number += 1
            path = log_dir / f"{safe}-{number}.log"
        file = path.open("wb")
    except OSError as error:
        raise LaunchError(f"cannot write the log of engine {name!r}: {error}") from None
    variables = " ".join(f"{key}={value}" for key, value in sorted(plan.environment.items()))
    file.write(f"$ {variables} {' '.join(plan.command)}\n".encode())
    file.flush()
    return path, file


@contextlib.asynccontextmanager
async def launched(
    recipe: Recipe,
    settings: Mapping[str, Any],
    log_dir: Path,
    *,
    name: str | None = None,
    ready_timeout_s: float | None = None,
    share_device: bool = False,
) -> AsyncIterator[RunningEngine]:
    """Run the engine of ``recipe`` for the length of the ``async with`` block, alone on the GPUs unless
    ``share_device``.

    ``settings`` are the recipe's, parsed or as text; ``{logs}`` in one stands for ``log_dir``.  ``name`` (default: the
    recipe's) names the log file and appears in messages.  Raises RecipeError before anything starts, LaunchError when
    the engine dies or never becomes ready.
    """
    name = name or recipe.name
    port = 0 if recipe.readiness.url_in_log else free_port()
    plan = recipe.plan({key: into_logs(value, log_dir) for key, value in settings.items()}, port)
    await asyncio.to_thread(require_installed, recipe, plan.values)
    with device_held(name, share=share_device or not uses_gpu(recipe, plan.values)):
        async with running_engine(recipe, plan, log_dir, name, ready_timeout_s) as engine:
            yield engine


def into_logs(value: Any, log_dir: Path) -> Any:
    """``value`` with ``{logs}`` replaced by the folder of the engine's log, so that files an engine writes join the run."""
    return value.replace("{logs}", str(log_dir.resolve())) if isinstance(value, str) else value


def uses_gpu(recipe: Recipe, values: Mapping[str, Value]) -> bool:
    """Whether the engine takes GPU memory: by its recipe, or by its setting ``device``."""
    device = str(values.get("device", ""))
    return device.startswith("cuda") or (recipe.device == "gpu" and not device.startswith("cpu"))


@contextlib.asynccontextmanager
async def running_engine(
    recipe: Recipe, plan: LaunchPlan, log_dir: Path, name: str, ready_timeout_s: float | None
) -> AsyncIterator[RunningEngine]:
    """The process of a plan, from its start to the end of the last of its children."""
    log_path, log = open_log(log_dir, name, plan)
    started = time.monotonic()
    with log:
        try:
            process = subprocess.Popen(
                plan.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(plan),
                start_new_session=True,
            )
        except OSError as error:
            raise LaunchError(f"engine {name!r} cannot be started: {error}") from None
    try:
        watch = start_guard(process.pid)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    try:
        limit_s = ready_timeout_s or recipe.readiness.timeout_s
        url = await wait_until_ready(name, process, plan.url, recipe.readiness, log_path, limit_s)
        refuse_stranger(name, process.pid, url)
        yield RunningEngine(
            name=name,
            recipe=recipe.name,
            url=url,
            pid=process.pid,
            log_path=log_path,
            command=plan.command,
            settings=dict(plan.values),
            start_s=time.monotonic() - started,
            process=process,
        )
    finally:
        try:
            await stop(process, recipe)
        finally:
            release_guard(watch)
