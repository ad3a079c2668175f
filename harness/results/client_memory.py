"""KV as the client can tell it: how many tokens its requests held, from the times at which their tokens came.

::

    tokens   prompt + answer so far ......../|        /|      one request; the sum over all is the live curve
                                      ...../ |   ..../ |
             t_send ======== t_first /       t_done    |      between t_send and t_first nothing is counted: whether
                                                              the prompt waits or is computed cannot be seen

The curve is therefore a lower bound while prompts are computed, and exact otherwise for engines that drop a request's
KV when it ends.  Prompt tokens that the server reports as cached count once, elsewhere: someone who runs is taken to share
them.  Not so in later turns of a conversation, whose cached tokens are their own history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.results.cells import CellData
from harness.results.memory import GIB
from harness.results.schema import CellSummary
from harness.results.series import Floats, Series

STALL_FACTOR = 8  # a gap so many times the median, in which others got as many tokens, looks like a preemption
NS_PER_S = 1e9


def live_curve(data: CellData) -> Series | None:
    """Tokens held by running requests over time, or None when nothing was answered."""
    first, done = data.column("t_first"), data.column("t_done")
    prompt = data.column("prompt_tokens")
    prompt = np.where(np.isnan(prompt), data.column("planned_prompt_tokens"), prompt)
    is_later_turn = data.column("turn") > 0
    own = prompt - np.where(is_later_turn, 0.0, np.nan_to_num(data.column("cached_tokens")))
    known = ~np.isnan(first) & ~np.isnan(done) & ~np.isnan(own)
    if not known.any():
        return None
    row = data.chunk_request
    counted = (row >= 0) & known[np.maximum(row, 0)]
    generated = np.bincount(row[counted], weights=data.chunk_tokens[counted], minlength=known.size)
    t = np.concatenate((first[known], data.chunk_t[counted], done[known]))
    step = np.concatenate((own[known], data.chunk_tokens[counted], -(own + generated)[known]))
    order = np.lexsort((step, t))  # an end before a start at the same moment
    times, level = t[order], np.cumsum(step[order])
    last = np.append(np.diff(times) > 0, True)  # the level that holds after each moment
    return Series(times[last].astype(np.int64), np.maximum(0.0, level[last]))


def stalls(data: CellData) -> tuple[int, float] | None:
    """Gaps that look like preemptions, and the seconds by which they are longer than the usual gap.

    A gap counts when it is ``STALL_FACTOR`` times the median and others went on meanwhile; a long prefill step, in which
    all stand still, does not.
    """
    row = data.chunk_request
    same = (row[1:] == row[:-1]) & (row[1:] >= 0)
    if not same.any():
        return None
    starts, ends = data.chunk_t[:-1][same], data.chunk_t[1:][same]
    gaps = ends - starts
    usual = float(np.median(gaps))
    long = gaps > STALL_FACTOR * max(usual, 1e6)
    if not long.any():
        return 0, 0.0
    times: Floats = np.sort(data.chunk_t)
    between = np.searchsorted(times, ends[long], side="left") - np.searchsorted(times, starts[long], side="right")
    real = between >= STALL_FACTOR
    return int(real.sum()), float((gaps[long][real] - usual).sum() / NS_PER_S)


def fill_client_memory(summary: CellSummary, data: CellData, window: tuple[int, int], facts: Mapping[str, Any]) -> None:
    """What the client's curve adds to a summary that holds the engine's own numbers, which stay where there are any.

    ``facts`` are the engine's settings and what the user said of it: ``kv_slots_reserved`` or ``kv_tokens``,
    ``kv_pool_bytes``, ``kv_memory`` or ``kv_bytes_per_token``.
    """
    curve = live_curve(data)
    mean = peak = None
    if curve is not None:
        mean, peak = curve.mean(*window), curve.maximum(*window)
    summary.client_live_mean, summary.client_live_peak = mean, peak
    told = stalls(data)
    if told is not None:
        summary.stalls, summary.stall_s = told
    pool = summary.kv_reserved or number(facts, "kv_slots_reserved") or number(facts, "kv_tokens") or blocks(facts)
    summary.kv_reserved = pool
    size = pool_bytes(data, window, facts, pool)
    if summary.kv_utilisation is not None:
        summary.kv_live_source = "engine"
    elif mean is not None and pool:
        summary.kv_live_source = "client"
        summary.kv_utilisation = min(1.0, mean / pool)
        summary.kv_utilisation_peak = min(1.0, (peak or 0.0) / pool)
        allocated = data.metric("kv_slots_allocated")
        held = None if allocated is None else allocated.mean(*window)
        if held and mean <= held:
            summary.kv_internal_fragmentation = (held - mean) / held
    if size:
        gib = size / GIB
        if summary.tokens_held_per_gib is None and mean is not None:
            summary.tokens_held_per_gib = mean / gib
        if summary.output_tokens_per_s_per_gib is None and summary.output_tokens_per_s is not None:
            summary.output_tokens_per_s_per_gib = summary.output_tokens_per_s / gib
    logical, live = data.metric("kv_slots_logical"), data.metric("kv_slots_live")
    if logical is not None and live is not None:
        shared, unique = logical.mean(*window), live.mean(*window)
        summary.kv_sharing = shared / unique if shared is not None and unique else None


def fill_cost(summary: CellSummary, data: CellData, window: tuple[int, int], whole: tuple[int, int]) -> None:
    """Tokens that preemption made the engine compute again, slots that it still holds at the end, and energy."""
    again = data.metric("recomputed_tokens_total")
    summary.recomputed_tokens = None if again is None else again.increase(*whole)
    allocated = data.metric("kv_slots_allocated")
    if allocated is not None and allocated.t.size and not np.isnan(data.column("t_done")).all():
        after = allocated.v[allocated.t >= np.nanmax(data.column("t_done"))]
        summary.kv_left_over = float(after[-1]) if after.size else None
    seconds = (window[1] - window[0]) / NS_PER_S
    counter, power = data.telemetry("nvml", "energy_j"), data.telemetry("nvml", "power_w")
    if counter is not None:
        summary.energy_j = counter.increase(*window)
    elif power is not None and (watts := power.mean(*window)) is not None:
        summary.energy_j = watts * seconds
    tokens = (summary.output_tokens_per_s or 0.0) * seconds
    if summary.energy_j is not None and tokens > 0:
        summary.energy_j_per_output_token = summary.energy_j / tokens


def pool_bytes(data: CellData, window: tuple[int, int], facts: Mapping[str, Any], pool: float | None) -> float | None:
    """Bytes of the KV pool: told, asked for, or slots times the bytes of one."""
    series = data.metric("kv_pool_bytes")
    told = None if series is None else series.mean(*window)
    each = number(facts, "kv_bytes_per_token")
    return (
        told or number(facts, "kv_pool_bytes") or number(facts, "kv_memory") or (pool * each if pool and each else None)
    )


def blocks(facts: Mapping[str, Any]) -> float | None:
    """Slots of a pool that is given in blocks."""
    count, size = number(facts, "kv_blocks"), number(facts, "block_size") or number(facts, "kv_block_size")
    return count * size if count and size else None


def number(facts: Mapping[str, Any], name: str) -> float | None:
    value = facts.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else None
