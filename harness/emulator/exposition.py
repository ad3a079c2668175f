"""The emulator's ``/metrics``: the names of the schema's vocabulary, as the reference engine shows them."""

from __future__ import annotations

from harness.emulator.engine import EmulatedEngine
from harness.emulator.options import EmulatorOptions

PREFIX = "pagedbench:"


def values(engine: EmulatedEngine, options: EmulatorOptions) -> dict[str, float]:
    """Every value by its name in METRIC_NAMES.  Without a pool, what speaks of one is absent."""
    counts = engine.counts
    known: dict[str, float] = {
        "requests_running": len(engine.running),
        "requests_waiting": len(engine.waiting),
        "preemptions_total": counts.preemptions,
        "kv_slots_allocated": engine.held * options.block_size,
        "kv_slots_live": engine.live,
        "kv_slots_logical": sum(sequence.logical for sequence in engine.running),
        "kv_block_size": options.block_size,
        "prompt_tokens_total": counts.prompt_tokens,
        "generation_tokens_total": counts.generation_tokens,
    }
    if engine.capacity is not None:
        slots = engine.capacity * options.block_size
        known |= {
            "kv_usage": engine.held / engine.capacity if engine.capacity else 0.0,
            "kv_slots_reserved": slots,
            "kv_slots_evictable": 0,
            "kv_pool_bytes": slots * options.kv_bytes_per_token,
            "ledger_token_states": engine.live,
            "ledger_reserved": 0,
            "ledger_internal": engine.held * options.block_size - engine.live,
            "ledger_external": 0,
            "ledger_cached": 0,
            "ledger_free": slots - engine.held * options.block_size,
        }
    return known


def exposition(engine: EmulatedEngine, options: EmulatorOptions) -> str:
    """The text of ``/metrics``."""
    lines = []
    for name, value in values(engine, options).items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# TYPE {PREFIX}{name} {kind}", f"{PREFIX}{name} {value}"]
    lines.append(f"# TYPE {PREFIX}request_success_total counter")
    finished = engine.counts.finished.items()
    lines += [f'{PREFIX}request_success_total{{finished_reason="{reason}"}} {n}' for reason, n in finished]
    return "\n".join(lines) + "\n"
