"""The policies of the paper on a real model on this machine: the part of ``pagedbench paper`` that is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reference_engine.bench import Bench
from reference_engine.bench_policies import POLICIES, by_policy, measure_policies, medians
from reference_engine.config import ConfigError
from reference_engine.models.errors import ModelLoadError
from reference_engine.server.options import ServerOptions

# Small enough for about a minute on two cores.  Lengths keep ShareGPT's proportions, and so does the block: 16 tokens
# would be half of such a sequence.
BLOCK_SIZE = 4
KV_SLOTS = 768
MAX_MODEL_LEN = 256
SCALE = 0.1
REQUESTS = 16
REPEATS = 2

QUANTITIES = (
    ("at_once", "requests at once", "requests", 1.0),
    ("output_tokens_per_s", "output tokens/s", "tokens/s", 1.0),
    ("waste", "waste", "% of the slots in use", 100.0),
)


def measure_real(model: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """``{"settings", "cells"}`` of the five policies on ``model``, or ``{"unavailable": why}`` where it cannot be loaded."""
    try:
        bench = Bench(
            ServerOptions(
                model=model,
                device="cpu",
                block_size=BLOCK_SIZE,
                num_blocks=KV_SLOTS // BLOCK_SIZE,
                max_model_len=MAX_MODEL_LEN,
            )
        )
    except (ModelLoadError, ConfigError, OSError) as error:
        return {"unavailable": " ".join(str(error).split())}
    cells = measure_policies(
        bench,
        requests=REQUESTS,
        repeats=REPEATS,
        scale=SCALE,
        max_model_len=MAX_MODEL_LEN,
        seed=seed,
        progress=progress,
    )
    return {"settings": bench.settings, "cells": list(cells)}


def real_rows(cells: list[dict[str, Any]]) -> list[tuple[str, str, float, str]]:
    """(policy, quantity, median over the repeats, unit); the quantity names the range."""
    rows = []
    for told in by_policy(cells):
        for measure, name, unit, factor in QUANTITIES:
            values = [factor * value for value in told[measure]]
            middle = factor * medians(cells, measure)[told["policy"]]
            span = f"{min(values):.4g} to {max(values):.4g}"
            rows.append((told["policy"], f"{name}, median of {len(values)} ({span})", middle, unit))
    return rows


def is_ordered(cells: list[dict[str, Any]]) -> bool:
    """Whether more requests run at once from Orca (Max) to Pow2, Oracle and paged."""
    at_once = medians(cells, "at_once")
    values = [at_once[policy] for policy in POLICIES if policy != "static"]
    return values == sorted(values) and len(set(values)) == len(values)
