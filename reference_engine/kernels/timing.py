"""Honest times and this device's own two ceilings.

Rules kept here: inputs are random and larger than L2 or rotated, launches are replayed from a CUDA graph so that the
host is out of the number, each replay is timed with device events, the median of many is reported with its 10th and
90th percentile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds a call: median, 10th and 90th percentile of ``samples`` samples of ``calls`` calls each."""

    median_us: float
    p10_us: float
    p90_us: float
    samples: int
    calls: int
    graph: bool

    def as_json(self) -> dict[str, float | int | bool]:
        return {
            "median_us": round(self.median_us, 3),
            "p10_us": round(self.p10_us, 3),
            "p90_us": round(self.p90_us, 3),
            "samples": self.samples,
            "calls": self.calls,
            "graph": self.graph,
        }


def time_calls(
    call: Callable[[], object] | Sequence[Callable[[], object]],
    *,
    samples: int = 30,
    calls: int = 10,
    graph: bool = True,
) -> Timing:
    """Time ``call`` on the current CUDA device (or by the wall clock where there is none).

    Several callables do the same work on different data and take turns, so that no call finds its data in a cache.
    """
    turns = [call] if callable(call) else list(call)
    if not torch.cuda.is_available():
        turns[0]()
        return _summary([_wall_us(turns[i % len(turns)]) for i in range(min(samples, 3))], 1, False)
    calls = max(calls, len(turns))

    def many() -> None:
        for i in range(calls):
            turns[i % len(turns)]()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3 if len(turns) == 1 else 1):
            for turn in turns:
                turn()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    run: Callable[[], object] = many
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            many()
        run = captured.replay
    run()
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(samples)]
    for before, after in events:
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    return _summary([before.elapsed_time(after) * 1e3 / calls for before, after in events], calls, graph)


def _wall_us(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def _summary(times: list[float], calls: int, graph: bool) -> Timing:
    ordered = sorted(times)
    tenth = len(ordered) // 10
    return Timing(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth], len(ordered), calls, graph)


def copy_bandwidth(device: torch.device, num_bytes: int = 4 << 30) -> float:
    """Bytes/s of a device-to-device copy of ``num_bytes``, bytes read plus bytes written.

    The copy runs eagerly: as a node of a CUDA graph the same copy is up to a fifth slower, which would flatter every
    kernel.
    """
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    source.view(torch.int64).random_()
    target = torch.empty_like(source)
    timing = time_calls(lambda: target.copy_(source), samples=20, calls=2, graph=False)
    return 2 * num_bytes / (timing.median_us * 1e-6)


def matmul_rate(device: torch.device, size: int = 8192) -> float:
    """bf16 FLOP/s of a ``size`` cubed matrix product on random data."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(a)
    timing = time_calls(lambda: torch.mm(a, b, out=out), samples=20, calls=4)
    return 2 * size**3 / (timing.median_us * 1e-6)
