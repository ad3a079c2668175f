"""The sweep: every damage to a block is seen, no flip without damage, and what cannot be seen is not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from reference_engine.sentinel.sweep import DAMAGES, Bench, false_flips, sweep


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(128, 16, torch.float32)


def test_nothing_flips_without_damage(bench: Bench) -> None:
    assert false_flips(bench) == 0


@pytest.mark.parametrize("name", DAMAGES)
def test_every_block_of_every_layer_matters(bench: Bench, name: str) -> None:
    for layer, seen in enumerate(sweep(bench, name)):
        # Nobody can ask for BOS and the last word: what the shifts lose of the first and the last block.
        unseen = {("shifted earlier", 0), ("shifted earlier", 1), ("shifted later", 0), ("shifted later", 1)}
        assert seen.every >= seen.done - ((name, layer) in unseen)
        if (name, layer) not in unseen:
            assert seen.one == seen.done
    assert false_flips(bench) == 0  # all blocks were restored


def test_two_exchanged_blocks_of_one_sequence_are_the_same_set_of_keys(bench: Bench) -> None:
    """Attention sums over a set, so no model can see this; it is no damage and must not be counted as one."""
    table = bench._table
    bench._table = (table[1], table[0], *table[2:])
    try:
        assert false_flips(bench) == 0
    finally:
        bench._table = table


@pytest.mark.parametrize(("context", "block_size"), [(100, 16), (64, 1), (4000, 16)])
def test_impossible_passages_are_refused(context: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="cannot make a prompt"):
        Bench(context, block_size, torch.float32)


def test_the_command_prints_one_json_document() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reference_engine.sentinel.sweep", "--context", "64", "--block-size", "32"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["schema"] == "pagedbench.sentinel-sweep/1"
    assert report["wrong_without_damage"] == 0
    assert {row["damage"] for row in report["seen"]} == set(DAMAGES)
