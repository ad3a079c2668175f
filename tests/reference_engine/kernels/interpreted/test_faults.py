"""The inverse test: each of the faults must be noticed by checks that the sound kernels pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import test_paged_attention as attention_tests
import test_small_kernels as small_tests
import torch
from checking import Draw, assert_exact
from kernel_faults import ATTENTION, COPY, FAULTS, MERGE, STORE, Fault, load_faulty

from reference_engine.kernels.cases import Case

NAN = float("nan")
BASE = Case("base", (1, 1), (37, 70), num_heads=6, num_kv_heads=2, head_dim=64, dtype=torch.float32)
CHUNKS = replace(BASE, query_lens=(5, 1, 20), seq_lens=(45, 33, 20))
SPLITS = Draw(BASE, 16, 3, 0, 16, NAN)

Check = Callable[[int], None]


def check(drawn: Draw) -> Check:
    return lambda seed: assert_exact(drawn, seed)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CHECKS: dict[str, tuple[Check, ...]] = {
    ATTENTION: (
        check(Draw(CHUNKS, 16, 1, 0, 16, NAN)),
        check(SPLITS),
        check(Draw(replace(CHUNKS, seq_lens=(45, 33, 60), window=17), 16, 1, 0, 16, NAN)),
        check(Draw(replace(CHUNKS, seq_lens=(45, 33, 60), window=17), 16, 2, 0, 16, NAN)),
        check(Draw(replace(CHUNKS, soft_cap=2.0), 16, 1, 0, 16, NAN)),
        check(Draw(BASE, 16, 1, 32, 16, NAN)),
        lambda seed: attention_tests.test_fp8_cache(torch.float16, (1, 1), seed),
        attention_tests.test_offsets_beyond_32_bits,
    ),
    MERGE: (
        check(SPLITS),
        check(Draw(BASE, 16, 9, 32, 16, NAN)),
        lambda seed: small_tests.test_merge_splits(0, 5, generator(seed)),
        lambda seed: small_tests.test_merge_splits(32, 5, generator(seed)),
    ),
    STORE: (
        lambda seed: small_tests.test_store_kv(torch.float16, 3, 80, 7, generator(seed)),
        lambda seed: small_tests.test_store_kv_in_fp8_rounds_and_saturates_as_torch_does(generator(seed)),
    ),
    COPY: (lambda seed: small_tests.test_copy_blocks(torch.float16, generator(seed)),),
}

# Where the launch functions that a faulty module replaces are looked up.
USERS = {
    "paged_attention_launch": ("reference_engine.attention.triton_paged",),
    "merge_splits_launch": ("reference_engine.attention.triton_paged", "test_small_kernels"),
    "store_kv_launch": ("reference_engine.kernels.store_kv", "test_small_kernels"),
    "copy_blocks_launch": ("test_small_kernels",),
}


@pytest.mark.parametrize("file", sorted(CHECKS))
def test_sound_kernels_pass_every_check(file: str, seed: int) -> None:
    for passes in CHECKS[file]:
        passes(seed)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught(fault: Fault, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_faulty(fault, tmp_path)
    for function, users in USERS.items():
        if hasattr(module, function) and function.startswith(fault.file.removesuffix(".py")):
            for user in users:
                monkeypatch.setattr(f"{user}.{function}", getattr(module, function))
    for passes in CHECKS[fault.file]:
        try:
            passes(seed)
        except Exception:
            return
    pytest.fail(f"no check noticed: {fault.name}")
