"""Files of pytest-benchmark, judged by the same statistics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.gate.bench_files import BenchFileError, bench_gate, fold
from harness.gate.judge import judge
from harness.gate.thresholds import Thresholds
from harness.results.gate import GateResult


def bench_file(path: Path, benchmarks: dict[str, list[float]], with_data: bool = True) -> Path:
    entries = [
        {"fullname": name, "stats": {"median": float(np.median(data)), **({"data": data} if with_data else {})}}
        for name, data in benchmarks.items()
    ]
    path.write_text(json.dumps({"benchmarks": entries, "machine_info": {"node": "n"}, "datetime": "2026"}))
    return path


def rounds(factor: float, seed: int) -> list[float]:
    return (1e-3 * factor * np.exp(np.random.default_rng(seed).normal(0, 0.01, 200))).tolist()


def judged(base: Path, cand: Path) -> GateResult:
    record = bench_gate(base, cand, Thresholds(), tool_version="0", created_utc="2026", command=[])
    return judge(record.spec, record.pairs, warnings=record.warnings)


def test_slower_fails_equal_passes(tmp_path: Path) -> None:
    base = bench_file(tmp_path / "a.json", {"t::one": rounds(1, 0), "t::two": rounds(1, 1)})
    cand = bench_file(tmp_path / "b.json", {"t::one": rounds(1, 2), "t::two": rounds(1.2, 3)})
    result = judged(base, cand)
    assert [rule.verdict for rule in result.rules] == ["PASS", "FAIL"]
    assert result.exit_code == 1


def test_a_benchmark_that_is_gone_fails_and_a_new_one_is_said(tmp_path: Path) -> None:
    base = bench_file(tmp_path / "a.json", {"t::one": rounds(1, 0)})
    cand = bench_file(tmp_path / "b.json", {"t::other": rounds(0.5, 1)})
    result = judged(base, cand)
    assert result.verdict == "FAIL"
    assert any("t::other" in warning for warning in result.warnings)


def test_medians_alone_decide_nothing(tmp_path: Path) -> None:
    base = bench_file(tmp_path / "a.json", {"t::one": rounds(1, 0)}, with_data=False)
    result = judged(base, bench_file(tmp_path / "b.json", {"t::one": rounds(3, 0)}, with_data=False))
    assert result.verdict == "INCONCLUSIVE"
    assert any("--benchmark-save-data" in warning for warning in result.warnings)


def test_fold_takes_medians_of_consecutive_parts() -> None:
    assert fold([1, 2, 3, 10, 20, 30], 2) == [2, 20]
    assert fold([1, 2, 3], 3) == [1, 2, 3]


@pytest.mark.parametrize("text", ["{", "[]", '{"benchmarks": []}', '{"benchmarks": [{}]}'])
def test_other_files_are_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BenchFileError):
        judged(tmp_path / "a.json", tmp_path / "a.json")
