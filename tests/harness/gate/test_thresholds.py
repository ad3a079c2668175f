"""The thresholds file: strict, with its units, and the nearest known key for a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness.gate.catalogue import DEFAULT_MEMORY, DEFAULT_TIMING, METRICS
from harness.gate.thresholds import Thresholds, ThresholdsError, commented_file, load_thresholds


def written(path: Path, text: str) -> Path:
    file = path / "gate.yaml"
    file.write_text(text)
    return file


def test_the_commented_file_says_the_defaults(tmp_path: Path) -> None:
    loaded = load_thresholds(written(tmp_path, commented_file()))
    measured = [f"c/{name}" for name in METRICS]
    assert loaded.spec(["c"], measured) == Thresholds().spec(["c"], measured)
    assert loaded.model_copy(update={"metrics": {}}) == Thresholds()


def test_every_commented_metric_can_be_switched_on(tmp_path: Path) -> None:
    text = "\n".join(
        line.replace("  # ", "  ", 1) if line.startswith("  # ") and "%" in line and ":" in line else line
        for line in commented_file().splitlines()
    )
    assert set(yaml.safe_load(text)["metrics"]) == set(METRICS)
    load_thresholds(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metrics: {itl_p5: 2%}", "did you mean 'itl_p50'"),
        ("metrcs: {}", "did you mean 'metrics'"),
        ("metrics: {itl_p50: {limt: 2%}}", "did you mean 'limit'"),
        ("metrics: {itl_p50: 2}", "percentage such as 2%"),
        ("metrics: {itl_p50: 0.02}", "percentage such as 2%"),
        ("metrics: {itl_p50: {limit: -1%}}", "percentage such as 2%"),
        ("pairs: {looks: [12, 8]}", "rising"),
        ("pairs: {looks: [500]}", "at most 200"),
        ("rates: {fail: 0%}", "rates.fail"),
        ("answers: maybe", "answers"),
        ("void: {foreign: 2%}", "did you mean 'foreign_cpu'"),
        ("- a", "mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ThresholdsError) as caught:
        load_thresholds(written(tmp_path, text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ThresholdsError, match="--init"):
        load_thresholds(tmp_path / "none.yaml")


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_thresholds(written(tmp_path, "# nothing\n")) == Thresholds()


def test_memory_is_what_the_baseline_measures() -> None:
    def memory(measured: list[str]) -> str:
        return Thresholds().spec(["c"], measured).rules[-1].metric

    assert memory(["c/kv_peak_tokens", "c/device_used_bytes"]) == "kv_peak_tokens"
    assert memory(["c/device_used_bytes"]) == "device_used_bytes"
    assert memory([]) == DEFAULT_MEMORY[0]
    assert len(Thresholds().spec(["c"], []).rules) == len(DEFAULT_TIMING) + 1 <= 6


def test_several_cells_have_rules_of_their_own() -> None:
    rules = Thresholds().spec(["a", "b"], []).rules
    assert len({rule.key for rule in rules}) == 12
    assert rules[0].label.endswith(", a")
