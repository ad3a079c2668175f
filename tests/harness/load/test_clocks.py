"""Other machines' clocks, told in ours."""

from __future__ import annotations

import random

import pytest

from harness.load.clocks import TIME_COLUMNS, boot_id, in_our_time, measure_offset
from harness.load.plan import PlanError, make_plan
from harness.load.ray_address import parse_workers
from harness.results.reader import TABLES


class Far:
    """Two clocks and a way between them that takes a while in each direction."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.true = rng.randrange(-(10**15), 10**15)
        self.now = 10**12

    def clock(self) -> int:
        return self.now

    def ask(self) -> int:
        self.now += self.rng.randrange(1_000, 3_000_000)  # there
        theirs = self.now + self.true
        self.now += self.rng.randrange(1_000, 3_000_000)  # and back
        return theirs


def test_the_offset_is_within_what_it_says() -> None:
    rng = random.Random(random.randrange(10**6))
    for _ in range(50):
        far = Far(rng)
        offset = measure_offset(far.ask, far.clock)
        assert abs(offset.ns - far.true) <= offset.uncertainty_ns
        assert offset.uncertainty_ns <= 3_000_000


def test_rows_are_moved_and_null_stays_null() -> None:
    (row,) = in_our_time("requests", [{"t_send": 105, "t_sched": None, "t_done": 130, "status": 200}], 100)
    assert row == {"t_send": 5, "t_sched": None, "t_done": 30, "status": 200}
    assert in_our_time("chunks", [{"t": 7, "chunk": 7}], -3) == [{"t": 10, "chunk": 7}]


def test_every_time_column_of_the_schema_is_moved() -> None:
    for name, schema in TABLES.items():
        times = {field.name for field in schema if field.name == "t" or field.name.startswith("t_")}
        assert set(TIME_COLUMNS[name]) == times


def test_this_machine_knows_itself() -> None:
    assert boot_id() == boot_id()


def test_how_workers_are_named() -> None:
    assert parse_workers("ray") == (None, None)
    assert parse_workers("ray,8") == (None, 8)
    assert parse_workers("ray://head:10001,16") == ("ray://head:10001", 16)
    engine = {"engines": ["a=http://h:1"]}
    assert make_plan({**engine, "workers": "4"}, "t").workers == 4
    assert make_plan({**engine, "workers": "ray,2"}, "t").workers == "ray,2"
    for wrong in ("many", "ray,0", "0", "ray://h:1,x"):
        with pytest.raises(PlanError, match="workers"):
            make_plan({**engine, "workers": wrong}, "t")
