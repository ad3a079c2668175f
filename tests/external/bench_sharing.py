"""What sharing KV blocks saves and what looking for shared prefixes costs, on the real engine.

::

    python tests/external/bench_sharing.py --out runs/sharing

Three tables: blocks saved by parallel sampling and by beam search (Alpaca-like lengths); output tokens/s with the prefix
cache on and off when no prompt resembles another (pairs of runs, the order swapped from pair to pair); time to the first
token on and off when 90 % of every prompt has been seen.  Writes ``sharing.json``.  Nothing else should run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from engine_bench import FEWEST_PAIRS, bench_of, finish, paired_cost, parser, run_main, spread

from reference_engine.bench import Ask, Bench, drive
from reference_engine.engine import Engine
from reference_engine.request import SamplingParams
from reference_engine.simulate.trace import ALPACA

WIDTHS = (2, 4, 6)
NUM_BLOCKS = 768
MAX_MODEL_LEN = 512
BUDGET = 256  # tokens of a step


def blocks_saved(bench: Bench, width: int, beam: bool, requests: int, seed: int) -> float:
    """Share of blocks that sharing saves over the run: 1 - held / summed over block tables."""
    rng = np.random.default_rng(seed)
    trace = ALPACA.trace(rate=0, count=requests, seed=seed, max_model_len=MAX_MODEL_LEN)
    how: dict[str, Any] = {"beam_width": width, "n": 1} if beam else {"n": width}
    asks = [
        Ask(bench.words(rng, prompt), SamplingParams(max_tokens=output, ignore_eos=True, **how))
        for _, prompt, output in trace
    ]
    return drive(bench.engine(cache={"prefix_caching": False}), asks).blocks_saved


class SchedulerTime:
    """CPU seconds that this thread spends in an engine's scheduler, where all of the prefix cache's work is done.

    Wall times of whole runs vary by more than such a cost; the work itself does not.
    """

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        for name in ("add", "schedule", "commit", "finish"):
            setattr(engine.scheduler, name, self._timed(getattr(engine.scheduler, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.thread_time() - began

        return timed


def cost_without_hits(bench: Bench, pairs: int, seed: int) -> dict[str, Any]:
    """Output tokens/s with the cache on and off, on new prompts each time, over a pool full of cached blocks.

    Also what the cache's own work comes to: CPU seconds in the scheduler, on less off, over the seconds of the run
    without it.
    """
    rng = np.random.default_rng(seed)
    rates: dict[str, list[float]] = {"on": [], "off": []}
    hits = 0
    # A small pool, filled before anything is measured: a cache that never evicts would be too cheap.
    engines = {name: bench.engine(cache={"prefix_caching": name == "on", "num_blocks": 192}) for name in rates}

    def asks() -> list[Ask]:
        params = SamplingParams(max_tokens=24, ignore_eos=True, temperature=0.0)
        return [Ask(bench.words(rng, 128), params) for _ in range(8)]

    for engine in engines.values():
        for _ in range(3):
            drive(engine, asks())
    clocks = {name: SchedulerTime(engine) for name, engine in engines.items()}
    spent: dict[str, list[float]] = {"on": [], "off": []}
    seconds: list[float] = []
    for pair in range(pairs):
        same = asks()
        for name in ("on", "off") if pair % 2 else ("off", "on"):
            before = clocks[name].seconds
            found = drive(engines[name], same)
            rates[name].append(found.output_tokens_per_s)
            spent[name].append(clocks[name].seconds - before)
            if name == "off":
                seconds.append(found.seconds)
            hits += found.prefix_hits
    cost, half_width = paired_cost(rates["on"], rates["off"])
    work, work_half_width = paired_cost(
        [1 - (on - off) / whole for on, off, whole in zip(spent["on"], spent["off"], seconds, strict=True)],
        [1.0] * pairs,
    )
    return {
        "rates": rates,
        "prefix_hits": hits,
        "cost": cost,
        "half_width_95": half_width,
        "scheduler_s": spent,
        "work": work,
        "work_half_width_95": work_half_width,
    }


def gain_with_hits(bench: Bench, repeats: int, seed: int, prompt: int = 320, share: float = 0.9) -> dict[str, Any]:
    """Median time to the first token with the cache on and off, where ``share`` of the prompt has been seen."""
    rng = np.random.default_rng(seed)
    known = int(prompt * share) // 16 * 16
    params = SamplingParams(max_tokens=2, ignore_eos=True, temperature=0.0)
    ttft: dict[str, list[float]] = {"on": [], "off": []}
    hit_tokens = 0
    for repeat in range(repeats):
        start = bench.words(rng, known)
        asked = Ask(start + bench.words(rng, prompt - known), params)
        for name in ("on", "off") if repeat % 2 else ("off", "on"):
            engine = bench.engine(cache={"prefix_caching": name == "on"})
            drive(engine, [Ask(start + bench.words(rng, 16), params)])  # somebody was here before
            found = drive(engine, [asked])
            ttft[name] += found.ttft_s
            hit_tokens += found.prefix_hits
    return {
        "prompt_tokens": prompt,
        "hit_share": hit_tokens / repeats / prompt,
        "ttft_s": ttft,
        "speedup": statistics.median(ttft["off"]) / statistics.median(ttft["on"]),
    }


def table(saved: list[dict[str, Any]], cost: dict[str, Any], gain: dict[str, Any]) -> str:
    lines = [f"{'blocks saved %':<20}" + "".join(f"{width:>8}" for width in WIDTHS)]
    for how in ("parallel", "beam"):
        shares = [100 * one["saved"] for one in saved if one["how"] == how]
        lines.append(f"{how:<20}" + "".join(f"{share:>8.1f}" for share in shares))
    on, off = (spread(cost["rates"][name]) for name in ("on", "off"))
    lines.append(f"prefix cache without hits: {on} tokens/s on, {off} off, {len(cost['rates']['on'])} pairs")
    lines.append(f"  it costs {cost['cost']:+.2%} +- {cost['half_width_95']:.2%} (95%); {cost['prefix_hits']} hits")
    lines.append(f"  its own work is {cost['work']:+.3%} +- {cost['work_half_width_95']:.3%} of the run (95%)")
    on, off = (spread([1000 * value for value in gain["ttft_s"][name]]) for name in ("on", "off"))
    lines.append(f"prompts of {gain['prompt_tokens']} tokens, {gain['hit_share']:.0%} hits: TTFT {on} ms on, {off} off")
    lines.append(f"  {gain['speedup']:.1f} times faster")
    return "\n".join(lines)


def main() -> None:
    options_parser = parser(__doc__, "runs/sharing")
    options_parser.add_argument("--requests", type=int, default=8, help="of each width")
    options_parser.add_argument("--pairs", type=int, default=30, help="pairs of runs for the cost without hits")
    options_parser.add_argument("--repeats", type=int, default=8, help="of the first-token times")
    options = options_parser.parse_args()
    if options.pairs < FEWEST_PAIRS:
        options_parser.error(f"--pairs: take at least {FEWEST_PAIRS}, fewer have no 95 % interval")
    bench = bench_of(
        options,
        num_blocks=NUM_BLOCKS,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=BUDGET,
    )
    saved: list[dict[str, Any]] = []
    for how in ("parallel", "beam"):
        for width in WIDTHS:
            share = blocks_saved(bench, width, how == "beam", options.requests, options.seed)
            saved.append({"how": how, "width": width, "saved": share})
            print(f"{how} {width}: {share:.1%} of blocks saved", file=sys.stderr)
    cost = cost_without_hits(bench, options.pairs, options.seed + 1)
    gain = gain_with_hits(bench, options.repeats, options.seed + 2)
    document = {"settings": bench.settings, "blocks_saved": saved, "without_hits": cost, "with_hits": gain}
    finish(options, "sharing", document, table(saved, cost, gain))


if __name__ == "__main__":
    run_main(main)
