"""The search for the highest load, and the staircase: against engines whose capacity is known."""

from __future__ import annotations

import random

import pytest

from harness.load.levels import Showing, find_max, search_info
from harness.load.search import MaxSearch, Staircase, requests_to_pass, wilson
from workloads.request import Load


def test_wilson_matches_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    assert wilson(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148, 0.95) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20, 0.95) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(29, 29, 0.95) == pytest.approx((0.8830, 1.0), abs=5e-5)
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


@pytest.mark.parametrize("attainment", [0.5, 0.9, 0.95, 0.99])
def test_the_fewest_requests_that_can_pass(attainment: float) -> None:
    n = requests_to_pass(attainment, 0.95)
    assert wilson(n, n, 0.95)[0] >= attainment - 1e-12
    assert wilson(n - 1, n - 1, 0.95)[0] < attainment


def run(search: MaxSearch, capacity: float, requests: int = 200, rng: random.Random | None = None) -> int:
    """An engine that serves 99.5 % well up to ``capacity`` and 60 % beyond; the number of cells it took."""
    rng = rng or random.Random()
    cells = 0
    while (level := search.next_level()) is not None:
        share = 0.995 if level <= capacity else 0.6
        search.observe(level, sum(rng.random() < share for _ in range(requests)), requests)
        cells += 1
        assert cells < 60
    return cells


def test_a_rate_is_found_to_its_precision() -> None:
    rng = random.Random(random.randrange(10**6))
    for _ in range(60):
        capacity = 10 ** rng.uniform(-1.5, 2.5)
        search = MaxSearch("rate", precision=0.1)
        cells = run(search, capacity, rng=rng)
        assert search.best is not None
        assert search.best <= capacity * 1.005 < search.best * 1.12
        assert cells < 40


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 12, 100])
def test_a_concurrency_is_found_exactly(capacity: int) -> None:
    search = MaxSearch("concurrency")
    run(search, capacity)
    assert (search.best, search.refuted) == (capacity, capacity + 1)
    assert f"up to {capacity} requests in flight" in search.sentence("ttft <= 5 ms")


def test_too_few_requests_show_nothing_and_are_pooled() -> None:
    search = MaxSearch("rate", tries=3)
    assert search.next_level() == 1.0
    search.observe(1.0, 50, 50)  # all good, yet the interval reaches below 95 %
    assert search.verdict(1.0) == "undecided"
    assert search.next_level() == 1.0
    search.observe(1.0, 50, 50)
    assert search.verdict(1.0) == "pass"
    assert search.next_level() == 2.0


def test_a_level_that_stays_undecided_does_not_pass() -> None:
    search = MaxSearch("concurrency", tries=2)
    for _ in range(2):
        assert search.next_level() == 1.0
        search.observe(1.0, 19, 20)
    assert search.next_level() is None
    assert (search.best, search.refuted) == (None, 1.0)
    assert "no probed level" in search.sentence("ttft <= 5 ms")


def test_the_limit_ends_the_search() -> None:
    search = MaxSearch("concurrency", limit=16)
    run(search, 10**6)
    assert (search.best, search.refuted) == (16, None)
    assert "the limit of the search" in search.sentence("ttft <= 5 ms")


def test_a_cell_that_cannot_be_believed_decides_nothing() -> None:
    search = MaxSearch("concurrency", limit=16)
    search.observe(1.0, 100, 100)
    search.disbelieve(2.0, "requests left late")
    assert search.verdict(2.0) == "undecided"
    assert search.next_level() == 2.0  # once more
    search.observe(2.0, 100, 100)
    assert search.verdict(2.0) == "pass"
    assert search.next_level() == 4.0


@pytest.mark.parametrize("capacity", [3, 6, 40])
def test_levels_that_cannot_be_measured_bound_the_answer_and_it_says_so(capacity: int) -> None:
    """The client keeps up to 10 at once; what the engine does beyond that, nobody knows."""
    search = MaxSearch("concurrency", start=2, limit=64)
    cells = 0
    while (level := search.next_level()) is not None:
        if level > 10:
            search.disbelieve(level, "the client used 99 % of a core")
        else:
            search.observe(level, 200 if level <= capacity else 0, 200)
        cells += 1
        assert cells < 40
    assert search.best == min(capacity, 10)
    assert search.is_inconclusive == (capacity > 10)
    said = search.sentence("ttft <= 5 ms")
    assert said.startswith("INCONCLUSIVE: up to 10") == (capacity > 10)
    assert ("11 could not be measured (the client used 99 % of a core)" in said) == (capacity > 10)
    assert all(search.probes[level].disbelieved == 2 for level in search.probes if level > 10)


def test_nothing_measured_at_all_is_inconclusive() -> None:
    search = MaxSearch("rate")
    while (level := search.next_level()) is not None:
        search.disbelieve(level, "the clocks were held down")
    assert search.best is None
    assert search.is_inconclusive
    assert search.sentence("ttft <= 5 ms").startswith("INCONCLUSIVE: nothing was shown; ")


@pytest.mark.parametrize("good", [0, 100])
async def test_the_search_does_not_count_what_it_cannot_believe(good: int) -> None:
    """Every request met the SLO, or none did: in a cell that cannot be believed it is the same nothing."""
    search, asked, notes = MaxSearch("concurrency", start=2, limit=2), [], []

    async def measure(load: Load, repeat: int, number: int | None) -> str:
        asked.append(repeat)
        return f"cell.{repeat}"

    await find_max(search, 100, measure, lambda _: Showing(good, 100, "requests left late"), notes.append)
    assert search.probes[2.0].total == 0
    assert (search.best, search.refuted, search.unmeasured) == (None, None, 1.0)
    assert asked == [0, 1, 0, 1]  # two cells of their own at 2, then at 1
    assert "cell.0 decides nothing: requests left late; once more" in notes
    info = search_info(search, "a", "chat", {"ttft": 5.0})
    assert info.inconclusive
    assert {probe.verdict for probe in info.probes} == {"inconclusive"}
    assert {probe.reason for probe in info.probes} == {"requests left late"}


def climb(speeds: dict[int, float | None]) -> Staircase:
    stairs = Staircase(list(speeds))
    while (level := stairs.next_level()) is not None:
        stairs.observe(level, speeds[level])
    return stairs


def test_the_staircase_ends_two_levels_beyond_the_knee() -> None:
    stairs = climb({1: 10, 2: 19, 4: 36, 8: 37, 16: 36.5, 32: 80})
    assert (stairs.knee, list(stairs.seen)) == (4, [1, 2, 4, 8, 16])


def test_a_late_gain_moves_the_knee_on() -> None:
    stairs = climb({1: 10, 2: 10.2, 4: 30, 8: 31, 16: 31, 32: 90})
    assert (stairs.knee, list(stairs.seen)) == (4, [1, 2, 4, 8, 16])


def test_without_a_knee_every_level_is_run() -> None:
    stairs = climb({1: 10, 2: 20, 4: 40})
    assert (stairs.knee, len(stairs.seen)) == (None, 3)
    assert climb({1: None, 2: None, 4: 10, 8: 10, 16: 10, 32: 10}).knee == 4
