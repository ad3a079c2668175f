"""The products of one step with all weights, timed in both layouts: ``python -m reference_engine.bench_linear``.

Shows on a CPU from how many rows on packed weights are faster than rows (see ``OneDnnOps``).  The weights are random, in
the shapes of SmolLM2-135M, and together larger than any cache but a server's; reported is the median over ``--repeats``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from reference_engine.huge_pages import collapse_into_huge_pages
from reference_engine.models.ops import OneDnnOps, Ops, TorchOps

LAYERS = 30
LAYER_SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))  # qkv, output, gate and up, down: [out, in]
HEAD_SHAPE = (49152, 576)


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Milliseconds of ``work()``, once warmed up."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


def products(ops: Ops, layouts: Sequence[object], inputs: Sequence[Tensor]) -> None:
    for layout, x in zip(layouts, inputs, strict=True):
        ops.linear(x, layout)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reference_engine.bench_linear", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 4, 8, 16, 32], help="tokens of a step")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        weights = [torch.randn(shape) for shape in LAYER_SHAPES * LAYERS + (HEAD_SHAPE,)]
        size = sum(weight.nbytes for weight in weights)
        layouts = {ops: [ops.prepare_linear(weight, None) for weight in weights] for ops in (TorchOps(), OneDnnOps())}
        collapse_into_huge_pages()
        for rows in options.rows:
            inputs = [torch.randn(rows, weight.shape[1]) for weight in weights]
            for ops, laid_out in layouts.items():
                took = median_ms(partial(products, ops, laid_out, inputs), options.repeats)
                name = {"torch": "as rows", "onednn": "packed"}[ops.name]
                print(f"{rows:>3} rows, {name:<8} {took:7.1f} ms {size / took / 1e6:6.1f} GB/s", flush=True)


if __name__ == "__main__":
    main()
