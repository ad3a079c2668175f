"""What the KV benchmarks share: their command line, the spread of repeats, and the cost between pairs."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reference_engine.bench import Bench
from reference_engine.config import ConfigError
from reference_engine.models.errors import ModelLoadError
from reference_engine.server.options import ServerOptions

FEWEST_PAIRS = 6  # that have a 95 % interval of the median


def bench_of(arguments: argparse.Namespace, **settings: Any) -> Bench:
    """By the command line's model and threads, on a CPU; ``settings`` are further ``ServerOptions``."""
    return Bench(ServerOptions(model=arguments.model, threads=arguments.threads, device="cpu", **settings))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range, as text."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def paired_cost(with_it: Sequence[float], without: Sequence[float]) -> tuple[float, float]:
    """Median of ``1 - with / without`` over pairs, and the half width of its 95 % interval (by the sign test's ranks).

    Raises ValueError for fewer than ``FEWEST_PAIRS``: no order statistics enclose the median with 95 % then.
    """
    costs = sorted(1 - a / b for a, b in zip(with_it, without, strict=True))
    count = len(costs)
    if count < FEWEST_PAIRS:
        raise ValueError(f"{count} pairs give no 95% interval of a median; take at least {FEWEST_PAIRS}")
    rank, tail = 0, 0.5**count
    while tail + math.comb(count, rank + 1) * 0.5**count <= 0.025:
        rank += 1
        tail += math.comb(count, rank) * 0.5**count
    return statistics.median(costs), (costs[count - 1 - rank] - costs[rank]) / 2


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """The options that all KV benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="smollm2", help="as pagedbench serve takes it")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of the model's arithmetic")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path(out), help="folder for the JSON")
    return made


def finish(options: argparse.Namespace, name: str, document: dict[str, Any], table: str) -> None:
    """Write ``name``.json and print the table."""
    document = {"schema_version": 1, "benchmark": name, "command": sys.argv[1:], "cores": os.cpu_count(), **document}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.json"
    path.write_text(json.dumps(document, indent=1, default=str), encoding="utf-8")
    print(table)
    print(path)


def run_main(main: Callable[[], None]) -> None:
    """One sentence instead of a traceback where the options cannot work."""
    try:
        main()
    except (ConfigError, ModelLoadError, OSError) as error:
        sys.exit(f"error: {error}")
