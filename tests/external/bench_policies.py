"""Five KV policies on the real engine: one KV budget, ShareGPT-like lengths, more requests than any policy holds.

::

    python tests/external/bench_policies.py --out runs/policies

Prints requests at once, output tokens/s and waste of every policy, median and range over the repeats; writes
``policies.json``.  ``--scale`` multiplies the lengths, for small machines.  Nothing else should run on the machine.
"""

from __future__ import annotations

import sys
from typing import Any

from engine_bench import bench_of, finish, parser, run_main, spread

from reference_engine.bench_policies import by_policy, measure_policies


def table(cells: list[dict[str, Any]]) -> str:
    lines = [f"{'policy':<12}{'requests at once':>24}{'output tokens/s':>28}{'waste %':>24}"]
    for row in by_policy(cells):
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
    bench = bench_of(options, num_blocks=options.kv_slots // 16, max_model_len=options.max_model_len)
    bench.settings["max_model_len"] = options.max_model_len
    cells: list[dict[str, Any]] = list(
        measure_policies(
            bench,
            requests=options.requests,
            repeats=options.repeats,
            scale=options.scale,
            max_model_len=options.max_model_len,
            seed=options.seed,
            progress=lambda said: print(said, file=sys.stderr),
        )
    )
    document = {
        "settings": bench.settings,
        "requests": options.requests,
        "scale": options.scale,
        "kv_slots": options.kv_slots,
        "cells": cells,
        "rows": by_policy(cells),
    }
    finish(options, "policies", document, table(cells))


if __name__ == "__main__":
    run_main(main)
