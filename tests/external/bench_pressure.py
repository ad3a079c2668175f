"""What too small a KV pool costs on the real engine: recompute against swap, and the watermark.

::

    python tests/external/bench_pressure.py --out runs/pressure
    python tests/external/bench_pressure.py --watermarks 0,0.01,0.02,0.05,0.1 --pools 29 --out runs/watermark

100 % is the pool that holds all requests to their end; it is cut to 57, 29 and 14 %.  Prints output tokens/s and the tokens
that were recomputed or swapped out, as a share of the tokens that were asked for; writes ``pressure.json``.  The prefix
cache is off, so that a recomputed token is really computed.  Nothing else should run on the machine.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from engine_bench import bench_of, finish, parser, run_main, spread

from reference_engine.bench import Ask, drive, interleaved
from reference_engine.config import DEFAULT_WATERMARK
from reference_engine.request import SamplingParams

BLOCK = 16
PROMPT, OUTPUT = (16, 96), (32, 128)  # uniform, both ends included [tokens]


def lengths(count: int, seed: int) -> list[tuple[int, int]]:
    """(prompt, output) of each request [tokens]."""
    rng = np.random.default_rng(seed)
    return [
        (int(rng.integers(*PROMPT, endpoint=True)), int(rng.integers(*OUTPUT, endpoint=True))) for _ in range(count)
    ]


def blocks_of(asked: list[tuple[int, int]]) -> int:
    """Blocks that hold all requests to their end."""
    return sum(-(-(prompt + output) // BLOCK) for prompt, output in asked)


def table(cells: list[dict[str, Any]]) -> str:
    header = f"{'pool %':<8}{'watermark':<11}{'preemption':<12}{'output tokens/s':>24}{'recomputed %':>20}"
    lines = [header + f"{'swapped out %':>20}{'preemptions':>18}"]
    for key in dict.fromkeys((cell["pool"], cell["watermark"], cell["preemption"]) for cell in cells):
        mine = [cell for cell in cells if (cell["pool"], cell["watermark"], cell["preemption"]) == key]
        columns = [
            f"{spread([cell['output_tokens_per_s'] for cell in mine]):>24}",
            f"{spread([100 * cell['recomputed_share'] for cell in mine]):>20}",
            f"{spread([100 * cell['swapped_share'] for cell in mine]):>20}",
            f"{spread([cell['preemptions'] for cell in mine], 0):>18}",
        ]
        lines.append(f"{key[0]:<8g}{key[1]:<11g}{key[2]:<12}" + "".join(columns))
    return "\n".join(lines)


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> None:
    options_parser = parser(__doc__, "runs/pressure")
    options_parser.add_argument("--requests", type=int, default=24, help="offered at once, in each repeat")
    options_parser.add_argument("--repeats", type=int, default=3)
    options_parser.add_argument("--pools", type=numbers, default=[100.0, 57.0, 29.0, 14.0], help="sizes [%%]")
    options_parser.add_argument("--watermarks", type=numbers, default=[DEFAULT_WATERMARK], help="shares of the pool")
    options = options_parser.parse_args()
    offered = [lengths(options.requests, options.seed + repeat) for repeat in range(options.repeats)]
    full = max(blocks_of(asked) for asked in offered)
    for asked in offered:
        if min(options.pools) / 100 * blocks_of(asked) < max(blocks_of([one]) for one in asked):
            sys.exit(f"error: {min(options.pools):g} % of the pool cannot hold the longest request; raise --requests")
    bench = bench_of(
        options,
        num_blocks=full,
        block_size=BLOCK,
        max_model_len=PROMPT[1] + OUTPUT[1],
        preemption="swap",
        swap_space="4GiB",
        prefix_cache=False,
    )
    cases = {
        f"{pool:g} {mark:g} {mode}": (pool, mark, mode)
        for pool in options.pools
        for mark in options.watermarks
        for mode in ("recompute", "swap")
    }
    cells: list[dict[str, Any]] = []
    for repeat, name in interleaved(list(cases), options.repeats):
        pool, mark, mode = cases[name]
        asked = offered[repeat]
        rng = np.random.default_rng(options.seed + repeat)
        asks = [
            Ask(bench.words(rng, prompt), SamplingParams(max_tokens=output, ignore_eos=True, temperature=0.0))
            for prompt, output in asked
        ]
        engine = bench.engine(
            cache={"num_blocks": math.ceil(blocks_of(asked) * pool / 100)},
            scheduler={"watermark": mark, "preemption": mode},
        )
        found = drive(engine, asks)
        wanted = sum(prompt + output for prompt, output in asked)
        cells.append(
            {
                "repeat": repeat,
                "pool": pool,
                "watermark": mark,
                "preemption": mode,
                "output_tokens_per_s": found.output_tokens_per_s,
                "at_once": found.at_once,
                "preemptions": found.preemptions,
                "swaps": found.swaps,
                "recomputed_share": found.recomputed_tokens / wanted,
                "swapped_share": found.swapped_out_blocks * BLOCK / wanted,
            }
        )
        print(f"repeat {repeat}, {name}: {found.seconds:.0f} s", file=sys.stderr)
    cells.sort(key=lambda cell: (-cell["pool"], cell["watermark"], cell["preemption"]))
    finish(options, "pressure", {"settings": bench.settings, "cells": cells}, table(cells))


if __name__ == "__main__":
    run_main(main)
