"""Choose tile sizes, warps and splits of a paged-attention launch.  A pure function of numbers the host knows; no
torch.

Nothing is tuned at run time.  ``tuned/<device name>.json`` holds what ``tests/gpu/bench_all.py`` measured best on
that device; without a table the defaults below hold.  CUDA-graph capture and replay get the same plan because both
ask with the same numbers (the ladder's batch size and the engine's maximum length).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from reference_engine.kernels.launcher import ceil_div, next_power_of_2

# Positions in one run of the deterministic mode: an engine constant, since it is part of the order of summation.
DETERMINISTIC_RUN = 512
# Splitting below this many positions a split costs more in the merge than it wins.
MIN_SPLIT = 256
MAX_SPLITS = 128


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How one attention call is cut up.  ``splits``: partial results are stored and merged by a second kernel."""

    block_m: int  # rows of tl.dot
    block_q: int  # query tokens in them: block_m // group
    tile: int  # K/V positions a step of the loop
    num_splits: int
    split_size: int  # positions of a run at absolute boundaries; 0 = split by count
    splits: bool
    decode: bool  # exactly one query a sequence (or none): no search for the sequence
    two_phase: bool  # a mask-free loop before the masked one
    prefetch: bool  # block ids are loaded one tile ahead, in registers
    head_dim_pad: int
    precision: str  # tl.dot input precision
    num_warps: int
    num_stages: int
    max_registers: int  # per thread, so that more programs share a multiprocessor; 0 = the compiler's choice


@dataclass(frozen=True, slots=True)
class Tiling:
    """One tuned choice.  ``occupancy``: programs that share one multiprocessor; splits aim at filling all of them."""

    block_m: int
    tile: int
    num_warps: int
    num_stages: int
    occupancy: int
    prefetch: bool = True
    max_registers: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """What the choice depends on.  ``capability`` is CUDA's (9, 0 for H100); AMD parts count as (8, 0)."""

    name: str
    sm_count: int
    capability: tuple[int, int]


def table_name(device_name: str) -> str:
    """File stem of a device's tuned table: ``NVIDIA H100 80GB HBM3`` -> ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


@cache
def tuned_table(device_name: str) -> dict[str, Tiling]:
    """The table in the tree for a device, keyed by :func:`tiling_key`; empty when there is none."""
    path = files("reference_engine.kernels") / "tuned" / f"{table_name(device_name)}.json"
    if not path.is_file():
        return {}
    raw = json.loads(path.read_text(encoding="utf-8"))
    return {key: Tiling(**value) for key, value in raw["tilings"].items()}


def tiling_key(kind: str, head_dim_pad: int, query_bytes: int, cache_bytes: int) -> str:
    """Key of a tuned choice.  ``kind`` is ``decode``, ``prefill`` or ``deterministic``."""
    return f"{kind}/d{head_dim_pad}/q{query_bytes}/kv{cache_bytes}"


def default_tiling(kind: str, head_dim_pad: int, query_bytes: int, capability: tuple[int, int]) -> Tiling:
    """A safe choice for any device: fits 100 KB of shared memory, spills nothing in 16 bits."""
    wide = head_dim_pad >= 256
    if query_bytes == 4:
        # Exact fp32 products have no matrix unit: small tiles, or the registers run over.
        return Tiling(block_m=16, tile=16 if wide else 32, num_warps=4, num_stages=1, occupancy=2)
    if kind == "decode":
        return Tiling(block_m=16, tile=32 if wide else 64, num_warps=4, num_stages=3 if not wide else 2, occupancy=3)
    if kind == "deterministic":
        # Two accumulators: four warps can hold them on sm_90, where wgmma reads its operands from shared memory.
        narrow = capability == (9, 0) and not wide
        return Tiling(block_m=64, tile=32, num_warps=4 if narrow else 8, num_stages=3 if narrow else 2, occupancy=2)
    if capability >= (9, 0) and not wide:
        # On sm_90, 128 registers let two programs share a multiprocessor: one computes while the other waits.
        cap = 128 if capability == (9, 0) else 0
        return Tiling(128, 64, num_warps=8, num_stages=2, occupancy=2, prefetch=False, max_registers=cap)
    return Tiling(block_m=64, tile=32, num_warps=8 if wide and capability < (10, 0) else 4, num_stages=2, occupancy=2)


@lru_cache(maxsize=4096)
def choose_launch(
    *,
    num_seqs: int,
    max_query_len: int,
    max_seq_len: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    device: Device,
    query_bytes: int = 2,
    cache_bytes: int = 2,
    deterministic: bool = False,
    tiling: Tiling | None = None,
) -> LaunchPlan:
    """Plan one attention call.  Lengths in tokens, ``*_bytes`` per element.  ``tiling`` overrides the device's table.

    Deterministic plans depend on the model and the device alone in everything that orders a sum; only where the runs
    are computed (one program or many) depends on the batch.
    """
    group = num_heads // num_kv_heads
    head_dim_pad = max(16, next_power_of_2(head_dim))
    decode = max_query_len <= 1
    kind = "deterministic" if deterministic else "decode" if decode else "prefill"
    if tiling is None:
        key = tiling_key(kind, head_dim_pad, query_bytes, cache_bytes)
        tiling = tuned_table(device.name).get(key) or default_tiling(kind, head_dim_pad, query_bytes, device.capability)
    block_m = max(tiling.block_m, next_power_of_2(group))
    block_q = block_m // group

    programs = num_kv_heads * num_seqs * ceil_div(max(max_query_len, 1), block_q)
    split_size = num_splits = 0
    if deterministic:
        split_size = DETERMINISTIC_RUN
        # One program a run only while the device would idle otherwise: the bits are the same, the scratch is not free.
        num_splits = ceil_div(max_seq_len, DETERMINISTIC_RUN) if programs < device.sm_count else 1
    else:
        num_splits = count_splits(programs, max_seq_len, device.sm_count, tiling.occupancy)
    return LaunchPlan(
        block_m=block_m,
        block_q=block_q,
        tile=tiling.tile,
        num_splits=max(1, num_splits),
        split_size=split_size,
        splits=num_splits > 1,
        decode=decode,
        two_phase=not decode and not deterministic,
        prefetch=tiling.prefetch,
        head_dim_pad=head_dim_pad,
        precision="ieee",
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        max_registers=tiling.max_registers,
    )


def count_splits(programs: int, max_seq_len: int, sm_count: int, occupancy: int) -> int:
    """Splits a sequence so that ``programs * splits`` just fills whole waves of the device.

    The slowest program ends the launch, so time ~ waves * (work of one program); among the useful counts take the
    first with the smallest product (fewest splits at equal time: each costs a merge).
    """
    slots = sm_count * occupancy
    most = min(MAX_SPLITS, ceil_div(max_seq_len, MIN_SPLIT))
    best, best_cost = 1, float("inf")
    for splits in range(1, most + 1):
        waves = ceil_div(programs * splits, slots)
        cost = waves / splits
        if cost < best_cost * 0.95:
            best, best_cost = splits, cost
        if programs * splits >= 2 * slots:
            break
    return best
