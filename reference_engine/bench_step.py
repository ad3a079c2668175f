"""The bare step, timed: ``python -m reference_engine.bench_step``.

One decode step is ``ModelRunner.execute`` alone: no scheduler, no sampling, no server.  Every sequence decodes its
next token at a context between 0.7 and 1.3 times ``--context``.  Block tables are laid out as a running engine leaves
them: a prompt's blocks lie together, later blocks of all sequences interleave (``--layout shuffled`` scatters them
all).  Reported: minimum, 10th percentile and median over ``--repeats`` steps; on a shared machine the minimum is the
machine's, the median is the neighbours'.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator

import torch

from reference_engine.attention import make_backend
from reference_engine.config import CacheConfig
from reference_engine.models.loader import load_model
from reference_engine.plan import ScheduledSeq, StepPlan
from reference_engine.runner import ModelRunner


def lay_out(
    lengths: list[int], block_size: int, prompt_share: float, shuffled: bool, seed: int
) -> list[tuple[int, ...]]:
    """Block tables of sequences with ``lengths`` tokens: prompts in one run each, the rest taken in turns."""
    needed = [-(-length // block_size) for length in lengths]
    order = list(range(sum(needed)))
    if shuffled:
        random.Random(seed).shuffle(order)
    blocks: Iterator[int] = iter(order)
    tables = [[next(blocks) for _ in range(int(count * prompt_share))] for count in needed]
    while any(len(table) < count for table, count in zip(tables, needed, strict=True)):
        for table, count in zip(tables, needed, strict=True):
            if len(table) < count:
                table.append(next(blocks))
    return [tuple(table) for table in tables]


def decode_plan(lengths: list[int], tables: list[tuple[int, ...]], rng: random.Random, vocab: int) -> StepPlan:
    """Every sequence computes its token at position ``length - 1``."""
    seqs = [
        ScheduledSeq(i, length - 1, (rng.randrange(vocab),), table, 1)
        for i, (length, table) in enumerate(zip(lengths, tables, strict=True))
    ]
    return StepPlan(0, tuple(seqs))


def time_plan(runner: ModelRunner, plan: StepPlan, repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` executions, sorted, after two to warm up."""
    seconds: list[float] = []
    for repeat in range(repeats + 2):
        begin = time.perf_counter()
        runner.execute(plan)
        if runner.device.type == "cuda":
            torch.cuda.synchronize()
        if repeat >= 2:
            seconds.append(time.perf_counter() - begin)
    return sorted(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reference_engine.bench_step", description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--attention", default="gather")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32], help="sequences that decode together")
    parser.add_argument("--context", type=int, default=300, help="mean tokens of context")
    parser.add_argument("--prefill", type=int, nargs="*", default=[512], help="tokens of one prefill chunk")
    parser.add_argument("--block-size", type=int, default=16, help="token slots in a block")
    parser.add_argument("--layout", default="running", choices=["running", "shuffled"])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    loaded = load_model(args.model, dtype=dtype, device=device)
    rng = random.Random(args.seed)
    most = max([*[int(r * args.context * 1.4) + r * args.block_size for r in args.rows], *args.prefill, 1])
    cache = CacheConfig(num_blocks=-(-most // args.block_size) + 64, block_size=args.block_size)
    runner = ModelRunner(loaded.model, loaded.config, cache, make_backend(args.attention, device), device, dtype)

    def report(what: str, plan: StepPlan) -> None:
        seconds = time_plan(runner, plan, args.repeats)
        low, tenth, middle = (seconds[int(share * (len(seconds) - 1))] * 1e3 for share in (0, 0.1, 0.5))
        rate = plan.num_tokens / middle * 1e3
        print(
            f"{what:<24} min {low:8.2f}  p10 {tenth:8.2f}  median {middle:8.2f} ms   {rate:8.1f} tokens/s", flush=True
        )

    for rows in args.rows:
        lengths = [round(args.context * rng.uniform(0.7, 1.3)) for _ in range(rows)]
        tables = lay_out(lengths, args.block_size, 0.4, args.layout == "shuffled", args.seed)
        report(f"decode, {rows} rows", decode_plan(lengths, tables, rng, loaded.config.vocab_size))
    for chunk in args.prefill:
        tables = lay_out([chunk], args.block_size, 1.0, args.layout == "shuffled", args.seed)
        tokens = tuple(rng.randrange(loaded.config.vocab_size) for _ in range(chunk))
        report(f"prefill, {chunk} tokens", StepPlan(0, (ScheduledSeq(0, 0, tokens, tables[0], 1),)))


if __name__ == "__main__":
    main()
