"""The detection curve of docs/gate.md, redrawn from the recorded pairs with a known slowdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.gate.record_file import read_record
from harness.gate.replays import replay
from harness.gate.spending import DEFAULT_LOOKS

RESULTS = Path(__file__).parents[3] / "docs" / "results" / "gate"


@pytest.mark.parametrize(
    ("name", "count", "by_twelve", "in_all"),
    [
        ("emulator-slowdown-1.03", 40, 0.90, 0.95),
        ("emulator-slowdown-1.05", 40, 0.95, 0.99),
        ("reference-slowdown-1.03", 24, 0.95, 0.99),
        ("reference-slowdown-1.05", 24, 0.95, 0.99),
        ("reference-slowdown-1.10", 24, 0.95, 0.99),
    ],
)
def test_recorded_slowdowns_are_found(name: str, count: int, by_twelve: float, in_all: float) -> None:
    record = read_record(RESULTS / f"{name}.json")
    pairs = [pair for pair in record.pairs if not pair.is_void]
    assert len(pairs) == count
    found = replay(pairs, record.spec.model_copy(update={"looks": list(DEFAULT_LOOKS)}), 100, seed=1, keep_arms=True)
    assert found["FAIL after 12"] >= 100 * by_twelve
    assert found["FAIL"] >= 100 * in_all
