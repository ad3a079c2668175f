"""``pagedbench run --verify`` end to end on the reference engine: sound, broken under load only, and nothing to judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.results.conformance import suites_in
from harness.results.reader import load_run

SOUND = "recipe:reference,model=smollm2,kv_blocks=256,max_model_len=512,max_num_seqs=8,threads=1"
DULL = SOUND.replace("smollm2", "sentinel")  # answers every prompt of English words with the same
LOAD = ("--workload", "long-output:input_mean=40,output_mean=24,concurrency=4", "--num-requests", "16", "--seed", "5")


def run(out: Path, engine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "run", "--engine", f"ours={engine}", "--out", str(out), *LOAD]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


def is_invalid(out: Path) -> bool:
    summary = load_run(out).summary
    assert summary is not None
    return any(cell.validity == "INVALID" for cell in summary.cells)


def suite(out: Path) -> Any:
    (found,) = suites_in(out, "verify")
    return found


@pytest.mark.long
def test_a_sound_engine_is_verified_by_both_rungs_and_the_report_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(out, SOUND, "--verify", "--verify-answers", "6", "--reference-model", "smollm2")
    assert "ours: 6 answers of the loaded run verified" in done.stderr, done.stderr
    assert suite(out).exit_code == 0
    # On a busy machine a cell of a few seconds may be called INVALID for its times; its answers are right all the same.
    assert done.returncode == (5 if is_invalid(out) else 0), done.stderr
    (result,) = suite(out).results
    assert (result.verdict, result.rungs) == ("PASS", ["baseline", "reference"])
    assert result.evidence["identical"] == 6
    assert result.evidence["scored_by_the_reference"] == 6
    page = (out / "report.html").read_text()
    assert "ANSWERS VERIFIED" in page
    assert "6 answers of the loaded runs judged" in page
    kept = load_run(out).answers.to_pylist()
    assert len(kept) == 6
    assert all(json.loads(row["body"])["stream"] and row["text"] for row in kept)


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_engine_that_breaks_under_load_fails_whatever_its_speed(tmp_path: Path, workers: str) -> None:
    out = tmp_path / "run"
    done = run(out, f"{SOUND},inject_fault=F24", "--verify", "--workers", workers)
    assert done.returncode == 5, done.stderr
    assert "ANSWERS WRONG under load" in done.stderr
    assert "Traceback" not in done.stderr
    (result,) = suite(out).results
    assert result.verdict == "FAIL"
    assert "nats apart" in result.reason
    page = (out / "report.html").read_text()
    assert "ANSWERS WRONG" in page
    assert "ANSWERS VERIFIED" not in page


def test_answers_that_are_all_alike_prove_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(out, DULL, "--verify")
    assert "answers not proven" in done.stderr
    (result,) = suite(out).results
    assert result.verdict == "INCONCLUSIVE"
    assert "same text" in result.reason
    assert "ANSWERS NOT PROVEN" in (out / "report.html").read_text()


def test_without_the_option_no_text_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(out, DULL, "--no-report")
    assert done.returncode in (0, 5), done.stderr  # a cell of half a second may be called INVALID
    assert suites_in(out, "verify") == []
    assert load_run(out).answers.num_rows == 0


def test_two_references_are_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path / "run", DULL, "--reference-model", "sentinel", "--reference-url", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "give one of them" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reference_that_is_not_there_is_one_sentence_and_the_run_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(out, DULL, "--verify", "--reference-url", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert "the reference of --verify" in done.stderr
    assert "Traceback" not in done.stderr
    assert load_run(out).requests.num_rows >= 16
