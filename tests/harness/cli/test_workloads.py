"""``pagedbench workloads``: the same digests as a run, without an engine."""

from __future__ import annotations

import json

import pytest

from harness.cli.errors import CliError
from harness.cli.workloads import workloads
from workloads.registry import WORKLOADS


def printed(capsys: pytest.CaptureFixture[str], **options: object) -> str:
    workloads(**options)  # type: ignore[arg-type]
    return capsys.readouterr().out


def options(**given: object) -> dict[str, object]:
    names = ("spec", "concurrency", "rate", "duration", "num_requests", "tokenizer", "max_model_len")
    return {**dict.fromkeys(names), "repeats": 1, "seed": 0, "as_json": False, **given}


def test_listing_names_every_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, **options())
    for word in ("chat", "long-output", "concurrency", "max_level=256", "input_mean=161.31"):
        assert word in text
    assert set(json.loads(printed(capsys, **options(as_json=True)))["workloads"]) == set(WORKLOADS)


def test_a_schedule_is_printed_whole_and_repeats(capsys: pytest.CaptureFixture[str]) -> None:
    asked = options(spec=["chat:turns=2,scale=0.1"], rate=["4"], num_requests=12, seed=9, as_json=True)
    first, second = (json.loads(printed(capsys, **asked)) for _ in range(2))
    assert first == second
    (schedule,) = first["schedules"]
    assert len(schedule["requests"]) == 12
    assert len(schedule["arrivals_ns"]) == 6
    assert schedule["workload"]["parameters"]["schedule"]["exact"] is False
    other = json.loads(printed(capsys, **{**asked, "seed": 10}))
    assert other["schedules"][0]["workload"]["digest"] != schedule["workload"]["digest"]


def test_text_shows_digest_times_and_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, **options(spec=["chat"], rate=["2"], num_requests=8))
    assert "8 requests, digest " in text
    assert "estimated" in text
    assert "... 3 more" in text


def test_mistakes_are_sentences() -> None:
    with pytest.raises(CliError, match="did you mean 'long-output'"):
        workloads(**options(spec=["long-outptu"]))  # type: ignore[arg-type]
    with pytest.raises(CliError, match="--rate takes numbers"):
        workloads(**options(spec=["chat"], rate=["fast"]))  # type: ignore[arg-type]
