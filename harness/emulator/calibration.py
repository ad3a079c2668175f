"""This machine's own client error and ceiling, found by driving the emulator and comparing with its truth."""

from __future__ import annotations

import asyncio
import datetime
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import aiohttp
import numpy as np

from harness.emulator.options import make_options
from harness.emulator.process import spawned
from harness.load.cell import CellPlan, CellRun
from harness.load.client import Client
from harness.load.dialect import Dialect
from harness.load.lag import own_cpu_s
from harness.results.schema import Calibration, CalibrationLevel
from workloads.request import Load, RequestSpec

TTFT_MS, ITL_MS, TOKENS = 50.0, 20.0, 50
ROUNDS = 4
LEVELS = (1, 10, 50, 100, 200, 400)
# What a level must keep to count as driven: the bounds that the reports state.
MAX_TTFT_ERROR_MS, MAX_ITL_ERROR, MIN_DELIVERED = 5.0, 0.10, 0.98
# Beyond this the emulator itself is late, and the level says nothing about the client's ceiling.
MAX_ENGINE_LATENESS = 0.10
ANSWER_S = (TTFT_MS + ITL_MS * (TOKENS - 1)) / 1e3


class CalibrationError(RuntimeError):
    """Nothing could be measured.  The message is shown to the user as it is."""


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Mapping[str, Any]]] = {"requests": [], "chunks": [], "system": []}

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows[table].extend(rows)


async def calibrate(
    levels: Sequence[int] = LEVELS, on_level: Callable[[CalibrationLevel], None] | None = None
) -> Calibration:
    """Drive the emulator at rising numbers of streams until the client, or the emulator, no longer keeps up.

    Raises CalibrationError, and EmulatorError when the emulator does not start.
    """
    found: list[CalibrationLevel] = []
    stamp = "user"
    options = make_options(ttft_ms=TTFT_MS, itl_ms=ITL_MS, tokens=TOKENS)
    with spawned(options, prefix=_pin()) as url:
        for streams in levels:
            level, stamp = await measure_level(url, streams)
            found.append(level)
            if on_level is not None:
                on_level(level)
            if not level.passed:
                break
    passed = [level.streams for level in found if level.passed]
    return Calibration(
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        hostname=platform.node(),
        cores=os.cpu_count() or 1,
        stamp="kernel" if stamp == "kernel" else "user",
        levels=found,
        ceiling_streams=max(passed, default=None),
        ceiling_chunks_per_s=max(passed) * TOKENS / ANSWER_S if passed else None,
    )


def _pin() -> tuple[str, ...]:
    """A core of its own for the emulator, where that can be had."""
    program = shutil.which("taskset")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (program, "-c", str(cores[0])) if program and len(cores) > 1 else ()


async def measure_level(url: str, streams: int) -> tuple[CalibrationLevel, str]:
    """One closed loop of ``streams`` requests at once; and who stamped its bytes.  Raises CalibrationError."""
    async with aiohttp.ClientSession() as session:
        await session.post(f"{url}/truth/reset")
        rows, cpu_s, wall_s = await _drive(url, streams)
        async with session.get(f"{url}/truth") as response:
            truth = [np.array(stamps) for stamps in (await response.json())["answers"]]
    good = [row for row in rows.rows["requests"] if row["ok"]]
    if not good or not truth:
        why = next((f": {row['error_class']}: {row['error']}" for row in rows.rows["requests"] if not row["ok"]), "")
        raise CalibrationError(f"at {streams} streams not one request to the emulator succeeded{why}")
    times: dict[int, list[int]] = {}
    for chunk in rows.rows["chunks"]:
        times.setdefault(chunk["request_index"], []).append(chunk["t"])
    ttft = np.array([row["t_first"] - row["t_send"] for row in good]) / 1e6
    itl = np.concatenate([np.diff(one) for one in times.values()]) / 1e6
    true_ttft = np.array([one[1] - one[0] for one in truth]) / 1e6
    true_itl = np.concatenate([np.diff(one[1:]) for one in truth]) / 1e6
    engine_p99 = float(np.percentile(true_itl, 99))
    delivered = _delivered(truth, streams)
    level = CalibrationLevel(
        streams=streams,
        chunks_per_s=streams * TOKENS / ANSWER_S,
        failed=streams * ROUNDS - len(good),
        ttft_p50_error_ms=float(np.percentile(ttft, 50) - np.percentile(true_ttft, 50)),
        ttft_p99_error_ms=float(np.percentile(ttft, 99) - np.percentile(true_ttft, 99)),
        itl_p99_error=float(np.percentile(itl, 99) / engine_p99 - 1),
        delivered=delivered,
        cpu_us_per_chunk=cpu_s / max(1, itl.size) * 1e6,
        client_cpu_percent=cpu_s / wall_s * 100,
        engine_itl_p99_ms=engine_p99,
        passed=False,
    )
    reason = why_not(level)
    return level.model_copy(update={"passed": reason is None, "reason": reason}), good[0]["stamp"]


def why_not(level: CalibrationLevel) -> str | None:
    """The first bound that a level misses, in words."""
    if level.failed:
        return f"{level.failed} requests failed"
    if level.engine_itl_p99_ms > ITL_MS * (1 + MAX_ENGINE_LATENESS):
        return f"the emulator itself was late (its own ITL p99 {level.engine_itl_p99_ms:.1f} ms, not {ITL_MS:g})"
    if abs(level.ttft_p50_error_ms) > MAX_TTFT_ERROR_MS:
        return f"TTFT p50 was off by {level.ttft_p50_error_ms:.1f} ms"
    if abs(level.itl_p99_error) > MAX_ITL_ERROR:
        return f"ITL p99 was off by {level.itl_p99_error:.0%}"
    if level.delivered is not None and level.delivered < MIN_DELIVERED:
        return f"only {level.delivered:.1%} of the load was delivered"
    return None


async def _drive(url: str, streams: int) -> tuple[Kept, float, float]:
    rows = Kept()
    requests = tuple(RequestSpec(i, None, "one two three four", 4, TOKENS) for i in range(streams * ROUNDS))
    plan = CellPlan("calibration", Load("closed", concurrency=streams), (), requests)
    async with Client(url) as client:
        run = CellRun(plan, client, Dialect("emulated"), rows)
        cpu_s, start = own_cpu_s(), time.monotonic()
        await run.run()
        await asyncio.sleep(0)
        return rows, own_cpu_s() - cpu_s, time.monotonic() - start


def _delivered(truth: Sequence[Any], streams: int) -> float | None:
    """The load that arrived, as a share of what a client without a pause would have sent.

    From a request to the one ``streams`` later it takes an answer's length.  (Chunks counted in a window would say the
    same, give or take a beat of all streams at once.)
    """
    starts = np.sort([one[0] for one in truth])
    if starts.size <= streams:
        return None
    return float(ANSWER_S * 1e9 / (starts[streams:] - starts[:-streams]).mean())
