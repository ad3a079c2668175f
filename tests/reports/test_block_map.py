"""The block map: holders, sharing, reservations and writes of one logged step."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from reports.block_map import BlockMapError, block_map, draw_block_map, read_step, render_block_map


def line(step: int = 4) -> dict[str, Any]:
    part = {"seq_id": 1, "start": 5, "tokens": [7], "block_table": [0, 3], "num_samples": 1, "prompt_logprobs": False}
    return {
        "step": step,
        "seqs": [part],
        "num_blocks": 10,
        "block_size": 4,
        "owners": {"1": "req-a", "2": "req-<b>"},
        "held": {"2": [0, 6]},
        "reserved": {"2": [7, 8]},
    }


def test_holders_sharing_writes_and_reservations() -> None:
    found = block_map(line())
    assert [block.holders for block in found.blocks] == [[1, 2], [], [], [1], [], [], [2], [2], [2], []]
    assert [index for index, block in enumerate(found.blocks) if block.written] == [3]
    assert [index for index, block in enumerate(found.blocks) if block.reserved] == [7, 8]
    assert found.shared == 1


def test_every_block_is_drawn_once_and_a_shared_one_shows_its_holders() -> None:
    picture = draw_block_map(block_map(line()))
    assert picture.count("<rect") == 10
    assert re.findall(r">(\w)</text>", picture) == ["2", "A", "B", "B", "B"]
    assert "block 0: req-a (sequence 1), req-&lt;b&gt; (sequence 2)" in picture


def test_the_page_counts_blocks_by_request() -> None:
    page = render_block_map(line())
    assert "Step 4: 5 of 10 blocks held, 1 of them shared" in page
    assert "req-&lt;b&gt;</td><td>2</td><td>1</td><td>2</td>" in page


def test_a_block_that_samples_of_one_request_share_counts_once() -> None:
    shared = line() | {"owners": {"1": "req-a", "2": "req-a"}}
    assert "req-a</td><td>3</td><td>1</td><td>2</td>" in render_block_map(shared)


def test_a_step_is_found_by_number_or_is_the_last() -> None:
    log = [json.dumps(line(step)) for step in (3, 4, 9)]
    assert read_step(log, 4)["step"] == 4
    assert read_step(log, None)["step"] == 9
    with pytest.raises(BlockMapError, match="has the steps 3 to 9, but not 7"):
        read_step(log, 7)


def test_what_is_not_a_log_is_named() -> None:
    with pytest.raises(BlockMapError, match="line 2 is not a step plan"):
        read_step([json.dumps(line()), "hello"], None)
    with pytest.raises(BlockMapError, match="empty"):
        read_step([], None)
    with pytest.raises(BlockMapError, match="older version"):
        read_step(['{"step": 1}'], None)


@pytest.mark.parametrize(
    "change",
    [{"block_size": 0}, {"num_blocks": 2}, {"num_blocks": 10**12}, {"held": 3}, {"owners": {"x": "y"}}, {"seqs": [1]}],
)
def test_a_step_that_contradicts_itself_is_one_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(BlockMapError, match="do not fit together"):
        render_block_map(line() | change)
