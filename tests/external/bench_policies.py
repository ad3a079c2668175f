"""Five KV policies on the real engine: one KV budget, ShareGPT-like lengths, more requests than any policy holds.

::

    python tests/external/bench_policies.py --out runs/policies

Prints requests at once, output tokens/s and waste of every policy, median and range over the repeats; writes
``policies.json``.  ``--scale`` multiplies the lengths, for small machines.  Nothing else should run on the machine.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from engine_bench import Ask, Bench, Measured, drive, finish, interleaved, parser, run_main, spread

from reference_engine.request import SamplingParams
from reference_engine.simulate.trace import SHAREGPT, Dataset, LengthLaw

POLICIES = ("static", "orca-max", "orca-pow2", "orca-oracle", "paged")


def asks(bench: Bench, scale: float, count: int, max_model_len: int, seed: int) -> list[Ask]:
    """``count`` requests with ShareGPT-like lengths times ``scale``; every answer has exactly its length."""
    laws = [LengthLaw(law.mean * scale, law.cv) for law in (SHAREGPT.prompt, SHAREGPT.output)]
    trace = Dataset("scaled", *laws).trace(rate=0, count=count, seed=seed, max_model_len=max_model_len)
    rng = np.random.default_rng(seed)
    return [
        Ask(bench.words(rng, prompt), SamplingParams(max_tokens=output, ignore_eos=True, temperature=0.0))
        for _, prompt, output in trace
    ]


def rows(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a policy with the values of all repeats."""
    return [
        {
            "policy": policy,
            **{
                key: [cell[key] for cell in cells if cell["policy"] == policy]
                for key in ("at_once", "output_tokens_per_s", "waste", "preemptions", "recomputed_tokens", "seconds")
            },
        }
        for policy in dict.fromkeys(cell["policy"] for cell in cells)
    ]


def table(cells: list[dict[str, Any]]) -> str:
    lines = [f"{'policy':<12}{'requests at once':>24}{'output tokens/s':>28}{'waste %':>24}"]
    for row in rows(cells):
        waste = spread([100 * share for share in row["waste"]])
        lines.append(
            f"{row['policy']:<12}{spread(row['at_once']):>24}{spread(row['output_tokens_per_s']):>28}{waste:>24}"
        )
    return "\n".join(lines)


def main() -> None:
    options_parser = parser(__doc__, "runs/policies")
    options_parser.add_argument("--requests", type=int, default=48, help="offered at once, in each repeat")
    options_parser.add_argument("--repeats", type=int, default=3)
    options_parser.add_argument("--scale", type=float, default=0.2, help="factor on ShareGPT's lengths")
    options_parser.add_argument("--max-model-len", type=int, default=512, help="tokens of one request [tokens]")
    options_parser.add_argument("--kv-slots", type=int, default=2048, help="the KV budget of every policy [tokens]")
    options = options_parser.parse_args()
    bench = Bench.of(
        options,
        num_blocks=options.kv_slots // 16,
        max_model_len=options.max_model_len,
    )
    length = bench.settings["max_model_len"] = options.max_model_len
    drive(bench.engine(), asks(bench, options.scale, 4, length, options.seed + 1000))  # warms caches up
    cells: list[dict[str, Any]] = []
    for repeat, policy in interleaved(POLICIES, options.repeats):
        offered = asks(bench, options.scale, options.requests, length, options.seed + repeat)
        found: Measured = drive(bench.engine(scheduler={"policy": policy}), offered)
        cells.append(
            {
                "repeat": repeat,
                "policy": policy,
                "output_tokens_per_s": found.output_tokens_per_s,
                **{key: value for key, value in asdict(found).items() if key != "ttft_s"},
            }
        )
        print(
            f"repeat {repeat} {policy}: {found.seconds:.0f} s, {found.output_tokens_per_s:.0f} tokens/s",
            file=sys.stderr,
        )
    document = {
        "settings": bench.settings,
        "requests": options.requests,
        "scale": options.scale,
        "kv_slots": options.kv_slots,
        "cells": cells,
        "rows": rows(cells),
    }
    finish(options, "policies", document, table(cells))


if __name__ == "__main__":
    run_main(main)
