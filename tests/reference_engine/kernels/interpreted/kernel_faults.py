# ruff: noqa: E501 - a table
"""Twenty-odd faults, each one line changed in a kernel's source, and how to put one in.

``FAULTS`` holds (name, file, text in the file, text instead).  The text must occur exactly once, so that a kernel that is
rewritten without its fault fails loudly instead of quietly testing nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import reference_engine.kernels

KERNELS = Path(reference_engine.kernels.__file__).parent


class Fault(NamedTuple):
    name: str
    file: str
    right: str
    wrong: str


ATTENTION, MERGE, STORE, COPY = "paged_attention.py", "merge_splits.py", "store_kv.py", "copy_blocks.py"

FAULTS = (
    Fault("page one too far", ATTENTION, "(block_ids * PAGE + pos % PAGE)", "(block_ids * PAGE + (pos + 1) % PAGE)"),
    Fault("block id of the next page", ATTENTION, "mask=pos < kv_end, other=0)\n    return", "mask=pos + 1 < kv_end, other=0)\n    return"),
    Fault("wrong head map", ATTENTION, "offs_m % GROUP * HEAD_DIM\n    q =", "offs_m // BLOCK_Q * HEAD_DIM\n    q ="),
    Fault("k/v head of the neighbour", ATTENTION, "value_ptr += kv_head * HEAD_DIM", "value_ptr += 0 * HEAD_DIM"),
    Fault("no mask on V", ATTENTION, "v = tl.load(value_ptrs, mask=live, other=0.0)", "v = tl.load(value_ptrs)"),
    Fault("32-bit offsets", ATTENTION, "pos % PAGE).to(tl.int64) * SLOT", "pos % PAGE) * SLOT"),
    Fault("causal mask one short", ATTENTION, "seen = pos[None, :] <= query_pos[:, None]", "seen = pos[None, :] < query_pos[:, None]"),
    Fault("causal mask one far", ATTENTION, "seen = pos[None, :] <= query_pos[:, None]", "seen = pos[None, :] <= query_pos[:, None] + 1"),
    Fault("window one too wide", ATTENTION, "query_pos[:, None] - WINDOW)", "query_pos[:, None] - WINDOW - 1)"),
    Fault("window starts a tile late", ATTENTION, "first_tile = window_start // TILE", "first_tile = tl.cdiv(window_start, TILE)"),
    Fault("mask-free loop one tile too far", ATTENTION, "(context_len + first_token + 1) // TILE, end_tile)", "(context_len + first_token + TILE) // TILE, end_tile)"),
    Fault("split drops its last tile", ATTENTION, "tl.minimum(end_tile, first_tile + tiles_per_split)", "tl.minimum(end_tile, first_tile + tiles_per_split - 1)"),
    Fault("splits overlap", ATTENTION, "first_tile = first_tile + split * tiles_per_split", "first_tile = first_tile + split * tiles_per_split - tl.minimum(split, 1)"),
    Fault("run ends early", ATTENTION, "run_end = tl.minimum(end_tile, (run + 1) * (SPLIT_SIZE // TILE))", "run_end = tl.minimum(end_tile, (run + 1) * (SPLIT_SIZE // TILE) - 1)"),
    Fault("scale forgotten", ATTENTION, "weight = tl.exp2(scores * to_base_2 - base[:, None])", "weight = tl.exp2(scores - base[:, None])"),
    Fault("soft cap without its factor", ATTENTION, "to_base_2 = soft_cap", "to_base_2 = qk_scale"),
    Fault("acc not faded", ATTENTION, "acc = acc * fade[:, None]", "acc = acc * 1.0"),
    Fault("sum not faded", ATTENTION, "row_sum = row_sum * fade + tl.sum(weight, 1)", "row_sum = row_sum + tl.sum(weight, 1)"),
    Fault("first row minus nothing", ATTENTION, 'base = tl.where(top == float("-inf"), 0.0, top)', "base = top"),
    Fault("first sequence of a tie", ATTENTION, "if first <= index:", "if first < index:"),
    Fault("rows past the query stored", ATTENTION, "(offs_m < BLOCK_Q * GROUP) & (token < query_len)", "(offs_m < BLOCK_M)"),
    Fault("value scale forgotten", ATTENTION, "out = out * tl.load(value_scale_ptr + kv_head)", "out = out * 1.0"),
    Fault("key scale of head 0", ATTENTION, "qk_scale * tl.load(key_scale_ptr + kv_head)", "qk_scale * tl.load(key_scale_ptr)"),
    Fault("merge ignores the weights", MERGE, "acc += tl.sum(split_acc * weight[:, None], 0)[None, :]", "acc += tl.sum(split_acc, 0)[None, :]"),
    Fault("merge reads empty splits", MERGE, "mask=written[:, None] & dim_live[None, :], other=0.0)", "mask=dim_live[None, :] & (split < used)[:, None], other=0.0)"),
    Fault("merge reads padding rows", MERGE, "if row >= tl.load(query_start_loc_ptr + num_seqs):", "if row > tl.load(query_start_loc_ptr + num_seqs):"),
    Fault("merge stops a run early", MERGE, "tl.cdiv(tl.load(seq_lens_ptr + seq), SPLIT_SIZE))", "tl.load(seq_lens_ptr + seq) // SPLIT_SIZE)"),
    Fault("store into negative slots", STORE, "if slot < 0:", "if slot < -1:"),
    Fault("fp8 scale of head 0", STORE, "scale_ptr + offs // HEAD_DIM, mask", "scale_ptr + offs * 0, mask"),
    Fault("copy stops at the first chunk", COPY, "offs = tl.program_id(1) * CHUNK_SIZE +", "offs = 0 * CHUNK_SIZE +"),
)  # fmt: skip


def load_faulty(fault: Fault, folder: Path) -> ModuleType:
    """The kernel's module with the fault in it, from a file of its own (Triton reads the source of what it runs)."""
    source = (KERNELS / fault.file).read_text()
    if source.count(fault.right) != 1:
        raise ValueError(f"{fault.name!r}: its text occurs {source.count(fault.right)} times in {fault.file}")
    path = folder / fault.file
    path.write_text(source.replace(fault.right, fault.wrong))
    spec = importlib.util.spec_from_file_location(f"faulty_{abs(hash(fault)):x}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
