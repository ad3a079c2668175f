"""The simulated runs behind ``pagedbench paper``: independent jobs, each a plain function of plain values.

All use the profile ``a100-opt-13b``: Table 1 of the PagedAttention paper (arXiv 2309.06180).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from reference_engine.simulate.beam import beam_blocks_saved
from reference_engine.simulate.offline import Outcome, simulate
from reference_engine.simulate.profile import Profile, load_profile
from reference_engine.simulate.trace import ALPACA, SHAREGPT, Dataset

PROFILE = "a100-opt-13b"
ORCA = ("orca-max", "orca-pow2", "orca-oracle")
POLICIES = ("static", *ORCA, "paged")
DATASETS = {"ShareGPT": SHAREGPT, "Alpaca": ALPACA}
PAPER_RATE = {"ShareGPT": 2.0, "Alpaca": 30.0}  # requests/s of Fig. 13
# Fig. 12: rates around each policy's knee [requests/s].
RATES = {
    "static": (0.05, 0.1, 0.2, 0.3, 0.5),
    "orca-max": (0.2, 0.4, 0.6, 0.8, 1.0),
    "orca-pow2": (0.4, 0.7, 0.9, 1.2, 1.5),
    "orca-oracle": (0.5, 0.9, 1.2, 1.5, 1.9),
    "paged": (0.8, 1.2, 1.6, 1.9, 2.1, 2.3),
}
CURVE_SECONDS = 600.0
BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BLOCK_RATE = {"ShareGPT": (1.7, 400.0), "Alpaca": (22.0, 60.0)}  # requests/s and seconds of Fig. 18b's runs
TRACES = 3  # of Alpaca-like lengths behind each saving of Fig. 15
BEAM_DEATH = 0.095  # chance that a hypothesis dies in a step; fitted to the paper's savings by beam search


class Job(NamedTuple):
    """One run: ``run(*arguments)`` gives a JSON object; ``key`` names it."""

    key: tuple[Any, ...]
    run: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


def jobs(seed: int) -> list[Job]:
    """All runs, the long ones first."""
    listed = [
        Job(("curve", policy, rate), curve, (policy, rate, seed)) for policy in POLICIES for rate in RATES[policy]
    ]
    listed.sort(key=lambda job: -job.arguments[1])
    listed += [
        Job(("blocks", name, size), block_size_run, (name, size, seed)) for name in DATASETS for size in BLOCK_SIZES
    ]
    listed += [Job(("batch", name, policy), batch, (name, policy, seed)) for name in DATASETS for policy in POLICIES]
    listed += [Job(("saturated", policy), saturated, (policy, seed)) for policy in POLICIES]
    listed += [Job(("parallel", n), parallel, (n, seed)) for n in (2, 4, 6)]
    listed += [Job(("beam", width), beam, (width, seed)) for width in (2, 4, 6)]
    return listed


def profile() -> Profile:
    return load_profile(PROFILE)


def batch(name: str, policy: str, seed: int) -> dict[str, Any]:
    """Requests at once at the paper's rate, over the last 70 % of the arrivals (Fig. 13)."""
    rate = PAPER_RATE[name]
    count = round(rate * (900 if name == "ShareGPT" else 120))
    trace = DATASETS[name].trace(rate=rate, count=count, seed=seed, max_model_len=profile().max_model_len)
    end = trace[-1].arrival
    return _told(simulate(trace, profile(), policy=policy, window=(0.3 * end, end), until=end))


def saturated(policy: str, seed: int) -> dict[str, Any]:
    """The ledger while the queue is never empty (Fig. 2), and its course over time."""
    trace = SHAREGPT.trace(rate=0, count=1000, seed=seed, max_model_len=profile().max_model_len)
    end = 260.0
    outcome = simulate(trace, profile(), policy=policy, window=(60.0, end), until=end, timeline_every=2.0)
    return _told(outcome) | {"timeline": outcome.timeline}


def curve(policy: str, rate: float, seed: int) -> dict[str, Any]:
    """Normalised latency at one rate, all requests to their end (Fig. 12)."""
    trace = _arrivals(SHAREGPT, rate, CURVE_SECONDS, seed)
    return _told(simulate(trace, profile(), policy=policy))


def parallel(n: int, seed: int) -> dict[str, Any]:
    """Blocks that n samples of a prompt share (Fig. 15a), at a rate below the knee; the mean of three traces."""
    saved = []
    for number in range(TRACES):
        trace = _arrivals(ALPACA, 18.0 / n, 35.0 * n, seed + number)
        end = trace[-1].arrival
        saved.append(simulate(trace, profile(), n=n, window=(5.0, end), until=end).sharing_saved)
    return {"sharing_saved": sum(saved) / TRACES}


def beam(width: int, seed: int) -> dict[str, Any]:
    """Blocks that the hypotheses of a beam share (Fig. 15b)."""
    trace = ALPACA.trace(rate=0, count=120 * TRACES, seed=seed, max_model_len=profile().max_model_len)
    return {"sharing_saved": beam_blocks_saved(trace, width=width, death=BEAM_DEATH, seed=seed)}


def block_size_run(name: str, size: int, seed: int) -> dict[str, Any]:
    """Normalised latency by block size (Fig. 18b), near the knee."""
    rate, seconds = BLOCK_RATE[name]
    trace = _arrivals(DATASETS[name], rate, seconds, seed)
    # Whole pools of either size hold the same slots but for the rest that fills no block.
    return _told(simulate(trace, replace(profile(), max_num_seqs=512), block_size=size))


def _arrivals(dataset: Dataset, rate: float, seconds: float, seed: int) -> list[Any]:
    count = max(round(rate * seconds), 20)
    return dataset.trace(rate=rate, count=count, seed=seed, max_model_len=profile().max_model_len)


def _told(outcome: Outcome) -> dict[str, Any]:
    return {
        "running": outcome.running,
        "ledger": outcome.ledger,
        "waste": outcome.waste,
        "normalised_latency": outcome.normalised_latency if outcome.normalised else None,
        "sharing_saved": outcome.sharing_saved,
        "preemptions": outcome.preemptions,
        "finished": len(outcome.e2e),
        "output_tokens": outcome.output_tokens,
        "seconds": outcome.seconds,
    }
