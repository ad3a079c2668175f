"""The five KV policies on a real model under one KV budget, with more requests than any of them holds at once."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from reference_engine.bench import Ask, Bench, drive, interleaved
from reference_engine.request import SamplingParams
from reference_engine.simulate.trace import SHAREGPT, Dataset, LengthLaw

POLICIES = ("static", "orca-max", "orca-pow2", "orca-oracle", "paged")
MEASURES = ("at_once", "output_tokens_per_s", "waste", "preemptions", "recomputed_tokens", "seconds")


def sharegpt_asks(bench: Bench, scale: float, count: int, max_model_len: int, seed: int) -> list[Ask]:
    """``count`` requests with ShareGPT-like lengths times ``scale``; every answer has exactly its length."""
    laws = [LengthLaw(law.mean * scale, law.cv) for law in (SHAREGPT.prompt, SHAREGPT.output)]
    trace = Dataset("scaled", *laws).trace(rate=0, count=count, seed=seed, max_model_len=max_model_len)
    rng = np.random.default_rng(seed)
    return [
        Ask(bench.words(rng, prompt), SamplingParams(max_tokens=output, ignore_eos=True, temperature=0.0))
        for _, prompt, output in trace
    ]


def measure_policies(
    bench: Bench,
    *,
    requests: int,
    repeats: int,
    scale: float,
    max_model_len: int,
    seed: int = 0,
    progress: Callable[[str], None] = lambda said: None,
) -> Iterator[dict[str, Any]]:
    """One cell a policy and repeat, in rotated order: ``requests`` offered at once, driven to their end.

    A cell holds ``MEASURES`` (requests at once and waste [share of the slots in use] as means over the time in which
    requests wait) beside its policy and repeat.
    """
    drive(bench.engine(), sharegpt_asks(bench, scale, 4, max_model_len, seed + 1000))  # warms caches up
    for repeat, policy in interleaved(POLICIES, repeats):
        offered = sharegpt_asks(bench, scale, requests, max_model_len, seed + repeat)
        found = drive(bench.engine(scheduler={"policy": policy}), offered)
        told = {key: value for key, value in asdict(found).items() if key != "ttft_s"}
        progress(f"{policy}, repeat {repeat}: {found.seconds:.0f} s, {found.output_tokens_per_s:.0f} tokens/s")
        yield {"repeat": repeat, "policy": policy, "output_tokens_per_s": found.output_tokens_per_s, **told}


def by_policy(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a policy with the values of all repeats under each of ``MEASURES``."""
    return [
        {"policy": policy, **{key: [cell[key] for cell in cells if cell["policy"] == policy] for key in MEASURES}}
        for policy in dict.fromkeys(cell["policy"] for cell in cells)
    ]


def medians(cells: list[dict[str, Any]], measure: str) -> dict[str, float]:
    """The median over the repeats, a policy, in the order of ``POLICIES``."""
    found = {row["policy"]: float(statistics.median(row[measure])) for row in by_policy(cells)}
    return {policy: found[policy] for policy in POLICIES if policy in found}
