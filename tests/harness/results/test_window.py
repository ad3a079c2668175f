"""The measured window: while the load could be kept up, no longer and no shorter."""

from __future__ import annotations

import pytest

from harness.results.cells import CellData
from harness.results.window import drain_start
from tests.harness.results.test_metrics import MS, T0, Log, S, cell_info


def closed_loop(log: Log, cell: object, durations: list[int], slots: int, **fields: object) -> None:
    """Requests of these durations (ns), each sent by the slot that is free first."""
    free = [T0] * slots
    for index, duration in enumerate(durations):
        slot = free.index(min(free))
        log.request(cell, index, free[slot], duration // 2, [duration - duration // 2], **fields)  # type: ignore[arg-type]
        free[slot] += duration


def test_rounds_in_lockstep_end_with_a_part_of_a_round_that_is_not_missing_load() -> None:
    """Four slots, all answers equally long: the last round has one request, and the load ends before it."""
    cell = cell_info(concurrency=4)
    log = Log(cell)
    closed_loop(log, cell, [S] * 13, 4)
    summary = log.summary()
    assert summary.window_s == pytest.approx(3)
    assert summary.validity == "VALID", summary.reasons


def test_a_client_that_leaves_slots_empty_is_still_told() -> None:
    cell = cell_info(concurrency=4)
    log = Log(cell)
    closed_loop(log, cell, [S] * 24, 3)  # one slot of the four never opens
    summary = log.summary()
    assert summary.validity == "INVALID"
    assert any("requests in flight were missing" in reason for reason in summary.reasons)


def test_a_client_that_follows_late_is_still_told() -> None:
    cell = cell_info(concurrency=2)
    log = Log(cell)
    for index in range(40):
        log.request(cell, index, T0 + (index // 2) * 1300 * MS, 500 * MS, [500 * MS])
    assert any("requests in flight were missing" in reason for reason in log.summary().reasons)


def test_a_slot_is_held_by_a_conversation_and_not_by_a_request() -> None:
    """Two slots, four conversations of 2, 2, 2 and 6 turns: from the end of the third one slot is empty."""
    cell = cell_info(concurrency=2)
    log = Log(cell)
    index = 0
    for conversation, (start, turns) in enumerate([(0, 2), (0, 2), (2, 2), (2, 6)]):
        for turn in range(turns):
            at = T0 + (start + turn) * S
            log.request(cell, index, at, S // 2, [S // 2], conversation=conversation, turn=turn)
            index += 1
    run = log.run()
    assert drain_start(CellData.of(run, cell)) == T0 + 4 * S
    assert log.summary().window_s == pytest.approx(4)
    assert log.summary().validity == "VALID", log.summary().reasons


def test_warmup_conversations_are_others_although_they_have_the_same_numbers() -> None:
    """Three slots: warm-up conversation 0 and measured conversation 0 outlast the five short ones of the third slot."""
    cell = cell_info(concurrency=3)
    log = Log(cell)
    log.request(cell, -1, T0, S, [9 * S], conversation=0, turn=0)
    log.request(cell, 0, T0, S, [8 * S], conversation=0, turn=0)
    for number in range(1, 6):
        log.request(cell, number, T0 + (number - 1) * S, S // 2, [S // 2], conversation=number, turn=0)
    assert drain_start(CellData.of(log.run(), cell)) == T0 + 5 * S


def test_a_request_without_an_end_never_freed_its_slot() -> None:
    cell = cell_info(concurrency=1)
    log = Log(cell)
    for index in range(3):
        log.request(cell, index, T0 + index * S, S // 2, [S // 2])
    log.request(cell, 3, T0 + 3 * S, S // 2, [S // 2], t_done=None, ok=False, error_class="interrupted")
    assert drain_start(CellData.of(log.run(), cell)) is None


def test_too_few_requests_tell_no_drain() -> None:
    cell = cell_info(concurrency=4)
    log = Log(cell)
    closed_loop(log, cell, [S] * 7, 4)
    assert drain_start(CellData.of(log.run(), cell)) is None


def test_slots_that_the_engine_emptied_by_refusing_are_not_the_clients_fault() -> None:
    cell = cell_info(concurrency=4)
    log = Log(cell)
    for index in range(10):
        log.request(cell, index, T0 + (index // 2) * S, S // 2, [S // 2])
    for index in range(10, 40):  # refused at once, in the two slots that the engine does not serve
        at = T0 + (index - 10) * 100 * MS
        refused = {"ok": False, "error_class": "http_429", "t_first": None, "t_last": None, "t_done": at + MS}
        log.request(cell, index, at, MS, [], **refused)
    reasons = log.summary().reasons
    assert any("failed" in reason for reason in reasons)
    assert not any("in flight were missing" in reason for reason in reasons)
