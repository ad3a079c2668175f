"""Servers whose times are known, for the load client's benchmarks: the C server beside the unit tests, or the emulator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
C_SOURCE = ROOT / "tests" / "harness" / "load" / "truth_server.c"
TTFT_MS, ITL_MS, TOKENS = 50.0, 20.0, 200
MODEL = "truth"

# Of each finished answer: nanoseconds of the monotonic clock when its request was complete and when each chunk left.
Truth = list["np.ndarray[Any, Any]"]


def pinned(cores: str) -> list[str]:
    """The words that keep a command on ``cores``; none for an empty string."""
    return ["taskset", "-c", cores] if cores else []


def environment(**more: str) -> dict[str, str]:
    """For a child that imports this tree."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def serving(
    kind: str,
    folder: Path,
    *,
    ttft_ms: float = TTFT_MS,
    itl_ms: float = ITL_MS,
    tokens: int = TOKENS,
    cores: str = "0",
) -> Iterator[tuple[str, Callable[[], Truth]]]:
    """A server on ``cores``, ``kind`` "c" or "emulator": its URL, and a function that ends it and returns its truth."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "truth.bin"
    if kind == "c":
        program = folder / "truth_server"
        subprocess.run(["cc", "-O2", "-o", str(program), str(C_SOURCE)], check=True)
        times = [str(round(ms * 1000)) for ms in (ttft_ms, itl_ms)]
        words = [str(program), "0", *times, str(tokens), str(log), MODEL]
    else:
        options = {"ttft_ms": ttft_ms, "itl_ms": itl_ms, "tokens": tokens, "model": MODEL}
        words = [sys.executable, "-m", "harness.emulator", json.dumps(options)]
    child = subprocess.Popen([*pinned(cores), *words], stdout=subprocess.PIPE, text=True, env=environment())
    assert child.stdout is not None
    url = f"http://127.0.0.1:{child.stdout.readline().split(':')[-1].strip()}"

    def end() -> Truth:
        if kind == "c":
            child.send_signal(signal.SIGTERM)
            child.wait()
            return read_log(log)
        with urllib.request.urlopen(f"{url}/truth") as answer:
            truth = [np.array(stamps) for stamps in json.load(answer)["answers"]]
        child.terminate()
        child.wait()
        return truth

    try:
        yield url, end
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def read_log(log: Path) -> Truth:
    """The C server's log: for each answer its number of tokens, then that many stamps and one more."""
    data, truth, at = np.fromfile(log, dtype=np.int64), [], 0
    while at < data.size:
        n = int(data[at])
        truth.append(data[at + 1 : at + 2 + n])
        at += n + 2
    return truth


def answer_s(itl_ms: float = ITL_MS, tokens: int = TOKENS) -> float:
    """How long an answer takes when nothing is late."""
    return (TTFT_MS + itl_ms * (tokens - 1)) / 1e3


def delivered_share(truth: Truth, streams: int, ideal_s: float) -> float | None:
    """The load that arrived, as a share of the ideal one; None for less than one answer a stream.

    From a request to the one ``streams`` later the ideal client lets ``ideal_s`` pass: in a closed loop the length of an
    answer.  (Chunks counted in a window would say the same, give or take a beat: streams in lockstep send all at once.)
    """
    starts = np.sort([one[0] for one in truth])
    if starts.size <= streams:
        return None
    return float(ideal_s * 1e9 / (starts[streams:] - starts[:-streams]).mean())
