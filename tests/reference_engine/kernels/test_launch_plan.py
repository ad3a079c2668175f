from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference_engine.kernels.launch_plan as launch_plan
from reference_engine.kernels.launch_plan import Device, LaunchPlan, Tiling, choose_launch, count_splits, table_name

H100 = Device("NVIDIA H100 80GB HBM3", 132, (9, 0))
UNKNOWN = Device("no such part", 100, (8, 0))
LLAMA = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128}


def plan(device: Device = H100, *, batch: int = 1, query: int = 1, seq: int = 1024, **options: object) -> LaunchPlan:
    shape: dict[str, object] = {**LLAMA, **options}
    return choose_launch(num_seqs=batch, max_query_len=query, max_seq_len=seq, device=device, **shape)  # type: ignore


def test_a_long_sequence_alone_is_split_to_fill_the_device() -> None:
    chosen = plan(batch=1, seq=32768)
    assert chosen.splits
    assert 132 <= 8 * chosen.num_splits <= 2 * 132


def test_a_large_batch_is_not_split() -> None:
    assert not plan(batch=64, seq=2048).splits


def test_a_short_sequence_is_not_split_into_crumbs() -> None:
    assert plan(batch=1, seq=64).num_splits == 1


def test_decode_needs_no_search_and_prefill_has_a_mask_free_loop() -> None:
    assert plan().decode
    assert not plan().two_phase
    prefill = plan(query=512)
    assert not prefill.decode
    assert prefill.two_phase


def test_deterministic_choice_does_not_depend_on_the_batch() -> None:
    """All that orders a sum is equal; only whether runs share a program may differ."""
    kept = ("block_m", "tile", "split_size", "num_warps", "num_stages", "head_dim_pad", "precision", "two_phase")
    plans = [
        plan(batch=batch, query=query, seq=seq, deterministic=True)
        for batch in (1, 7, 300)
        for query in (1, 16, 700)
        for seq in (700, 9000)
    ]
    assert len({tuple(asdict(p)[name] for name in kept) for p in plans}) == 1
    assert plans[0].split_size > 0


def test_capture_and_replay_ask_alike_and_get_alike() -> None:
    assert plan(batch=16, seq=8192) == plan(batch=16, seq=8192)


@given(
    batch=st.integers(1, 2000),
    query=st.integers(0, 5000),
    extra=st.integers(0, 200_000),
    kv_heads=st.integers(1, 16),
    group=st.integers(1, 64),
    head_dim=st.sampled_from((16, 64, 80, 96, 128, 256)),
    bytes_=st.sampled_from(((2, 2), (4, 4), (2, 1))),
    deterministic=st.booleans(),
    device=st.sampled_from((H100, UNKNOWN, replace(UNKNOWN, capability=(10, 0), sm_count=148))),
)
def test_every_plan_can_be_launched(
    batch: int,
    query: int,
    extra: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    bytes_: tuple[int, int],
    deterministic: bool,
    device: Device,
) -> None:
    chosen = plan(
        device,
        batch=batch,
        query=query,
        seq=query + extra,
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        query_bytes=bytes_[0],
        cache_bytes=bytes_[1],
        deterministic=deterministic,
    )
    assert chosen.block_q * group <= chosen.block_m
    assert chosen.block_q >= 1
    for power in (chosen.block_m, chosen.tile, chosen.head_dim_pad, chosen.num_warps):
        assert power & (power - 1) == 0
    assert chosen.head_dim_pad >= max(head_dim, 16)
    assert chosen.splits == (chosen.num_splits > 1)
    assert chosen.num_splits <= 65535
    if chosen.split_size:
        assert chosen.split_size % chosen.tile == 0
    else:
        assert chosen.num_splits <= launch_plan.MAX_SPLITS


@given(programs=st.integers(1, 5000), seq=st.integers(1, 200_000), sms=st.integers(1, 200), occupancy=st.integers(1, 8))
def test_splitting_never_costs_more_waves_than_it_saves(programs: int, seq: int, sms: int, occupancy: int) -> None:
    slots = sms * occupancy
    splits = count_splits(programs, seq, sms, occupancy)
    assert -(-programs * splits // slots) / splits <= -(-programs // slots)


def test_tuned_tables_in_the_tree_are_found_by_name() -> None:
    folder = Path(launch_plan.__file__).with_name("tuned")
    tables = sorted(folder.glob("*.json"))
    assert tables
    for path in tables:
        content = json.loads(path.read_text())
        assert table_name(content["device"]) == path.stem
        assert launch_plan.tuned_table(content["device"]) == {
            key: Tiling(**value) for key, value in content["tilings"].items()
        }


def test_a_device_without_a_table_gets_defaults() -> None:
    assert launch_plan.tuned_table("no such part") == {}
    assert plan(UNKNOWN).num_warps >= 1


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "AMD Instinct MI300X", "A/B  C"])
def test_table_names_are_file_names(name: str) -> None:
    assert set(table_name(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
