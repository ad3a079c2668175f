"""``pagedbench calibrate``: what is measured, stored, shown and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli.calibrate import calibrate, sentence
from harness.cli.errors import CliError
from harness.emulator import calibration
from harness.emulator.calibration import CalibrationError, measure_level, why_not
from harness.emulator.calibration_store import calibration_file, load_calibration, save_calibration
from harness.emulator.options import make_options
from harness.emulator.server import Emulator
from harness.results.schema import Calibration, CalibrationLevel

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels of a fifth of a second."""
    for name, value in {"TTFT_MS": 10.0, "ITL_MS": 5.0, "TOKENS": 8, "ROUNDS": 4, "ANSWER_S": 0.045}.items():
        monkeypatch.setattr(calibration, name, value)


def level(streams: int = 10, **fields: Any) -> CalibrationLevel:
    values: dict[str, Any] = {
        "streams": streams, "chunks_per_s": streams * 50.0, "failed": 0, "ttft_p50_error_ms": 0.2,
        "ttft_p99_error_ms": 0.9, "itl_p99_error": 0.001, "delivered": 0.999, "cpu_us_per_chunk": 14.0,
        "client_cpu_percent": 3.0, "engine_itl_p99_ms": 20.1, "passed": True, **fields,
    }  # fmt: skip
    return CalibrationLevel(**values)


def judged(streams: int = 10, **fields: Any) -> CalibrationLevel:
    """A level with its verdict."""
    found = level(streams, **fields)
    reason = why_not(found)
    return found.model_copy(update={"passed": reason is None, "reason": reason})


def stored(levels: list[CalibrationLevel], **fields: Any) -> Calibration:
    import platform

    passed = [one.streams for one in levels if one.passed]
    values: dict[str, Any] = {
        "created_utc": "2026-01-01T00:00:00+00:00", "hostname": platform.node(), "cores": os.cpu_count(),
        "stamp": "kernel", "levels": levels, "ceiling_streams": max(passed, default=None),
        "ceiling_chunks_per_s": max(passed) * 50.0 if passed else None, **fields,
    }  # fmt: skip
    return Calibration(**values)


def fake_levels(monkeypatch: pytest.MonkeyPatch, ceiling: int) -> list[int]:
    """The measurement replaced: up to ``ceiling`` streams are kept up with.  What was measured is appended."""
    measured: list[int] = []

    async def measure(url: str, streams: int) -> tuple[CalibrationLevel, str]:
        measured.append(streams)
        return judged(streams, ttft_p50_error_ms=0.2 if streams <= ceiling else 9.0), "kernel"

    monkeypatch.setattr(calibration, "measure_level", measure)
    return measured


def run(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "calibrate", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)


def test_the_command_measures_stores_and_shows(tmp_path: Path) -> None:
    """The real thing at one stream.  Whether a busy machine keeps up is its own affair; that it is said is ours."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    done = run("--streams", "1", "--json", "--out", str(out), cache=cache)
    found = Calibration.model_validate_json(done.stdout)
    assert done.returncode == (0 if found.ceiling_streams == 1 else 4), done.stderr
    (only,) = found.levels
    assert only.streams == 1
    assert only.failed == 0
    assert only.chunks_per_s == pytest.approx(1 * 50 / 1.03)
    assert only.passed == (only.reason is None) == (found.ceiling_streams == 1)
    assert only.cpu_us_per_chunk > 0
    kept = json.loads(done.stdout)
    assert json.loads((out / "calibration.json").read_text()) == kept
    assert json.loads((cache / "pagedbench" / "calibration.json").read_text()) == kept
    assert "    1 streams  TTFT p50 " in done.stderr
    assert f"stored in {cache}" in done.stderr
    shown = run("--show", cache=cache)
    assert (shown.returncode, shown.stderr) == (done.returncode, "")
    assert shown.stdout.strip() == sentence(found)


def test_nothing_stored_is_a_sentence(tmp_path: Path) -> None:
    done = run("--show", cache=tmp_path / "empty")
    assert done.returncode == 4
    assert done.stderr == "pagedbench: no calibration of this machine is stored; run pagedbench calibrate\n"


@pytest.mark.parametrize("text", ["0", "-3", "10,0"])
def test_levels_below_one_are_refused(text: str) -> None:
    with pytest.raises(CliError, match="--streams takes numbers of 1 or more") as caught:
        calibrate([text])
    assert caught.value.code == 2


@pytest.mark.parametrize("text", ["ten", "1,,2", "1.5"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="--streams takes whole numbers separated by commas"):
        calibrate([text])


def test_levels_rise_and_end_at_the_first_that_is_not_kept_up_with(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    measured = fake_levels(monkeypatch, ceiling=40)
    calibrate(["80,20", "160", "40,20"])
    assert measured == [20, 40, 80]
    found = load_calibration()
    assert found is not None
    assert (found.ceiling_streams, found.stamp) == (40, "kernel")
    assert found.ceiling_chunks_per_s == pytest.approx(40 * 50 / 1.03)
    assert [one.passed for one in found.levels] == [True, True, False]
    said = capsys.readouterr()
    assert said.out.startswith("kernel stamps; up to 40 streams (1942 chunks/s): TTFT p50 +0.20 ms, ITL p99 +0.1%")
    assert "TTFT p50 was off by 9.0 ms" in said.err


def test_a_machine_that_never_keeps_up_ends_with_4_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    fake_levels(monkeypatch, ceiling=0)
    with pytest.raises(typer.Exit) as caught:
        calibrate(["1,2"])
    assert caught.value.exit_code == 4
    assert "did not keep up even at the first level (TTFT p50 was off by 9.0 ms)" in capsys.readouterr().out
    found = load_calibration()
    assert found is not None
    assert (found.ceiling_streams, found.ceiling_chunks_per_s) == (None, None)  # kept, so that reports say so


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"failed": 3}, "3 requests failed"),
        ({"engine_itl_p99_ms": 22.1}, "the emulator itself was late (its own ITL p99 22.1 ms, not 20)"),
        ({"ttft_p50_error_ms": 5.1}, "TTFT p50 was off by 5.1 ms"),
        ({"ttft_p50_error_ms": -5.1}, "TTFT p50 was off by -5.1 ms"),
        ({"itl_p99_error": 0.11}, "ITL p99 was off by 11%"),
        ({"itl_p99_error": -0.11}, "ITL p99 was off by -11%"),
        ({"delivered": 0.979}, "only 97.9% of the load was delivered"),
    ],
)
def test_every_bound_has_its_words(fields: dict[str, Any], words: str) -> None:
    assert why_not(level(**fields)) == words


def test_within_the_bounds_nothing_is_said() -> None:
    assert why_not(level()) is None
    assert why_not(level(delivered=None)) is None  # too short to tell


async def test_a_client_that_lies_is_found_out(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run twice: the second client reports first chunks 20 ms later than they came."""
    honest_drive = calibration._drive

    async def lie(url: str, streams: int) -> Any:
        rows, cpu_s, wall_s = await honest_drive(url, streams)
        rows.rows["requests"] = [{**row, "t_first": row["t_first"] + 20_000_000} for row in rows.rows["requests"]]
        return rows, cpu_s, wall_s

    async with Emulator(make_options(ttft_ms=10, itl_ms=5, tokens=8)) as emulator:
        honest, stamp = await measure_level(emulator.url, 2)
        monkeypatch.setattr(calibration, "_drive", lie)
        lying, _ = await measure_level(emulator.url, 2)
    assert honest.failed == lying.failed == 0
    assert stamp in ("kernel", "user")
    assert lying.ttft_p50_error_ms > 15
    assert (lying.passed, lying.reason is None) == (False, False)
    assert abs(honest.ttft_p50_error_ms) < lying.ttft_p50_error_ms


async def test_requests_that_all_fail_are_a_sentence(short: None) -> None:
    async with Emulator(make_options(faults={"http_500": 1.0})) as emulator:
        with pytest.raises(
            CalibrationError, match=r"at 2 streams not one request to the emulator succeeded: http_5xx: "
        ):
            await measure_level(emulator.url, 2)


def raising(error: Exception) -> Callable[..., Any]:
    async def measure(levels: Sequence[int], note: object) -> Calibration:
        raise error

    return measure


def test_a_failure_has_exit_code_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "calibrate", raising(CalibrationError("not one succeeded")))
    with pytest.raises(CliError, match="not one succeeded") as caught:
        calibrate(["1"])
    assert caught.value.code == 4


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    fake_levels(monkeypatch, ceiling=5)
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    calibrate(["1"])  # measured and told, though not stored
    said = capsys.readouterr()
    assert f"not stored: {blocked}" in said.err
    assert said.out.startswith("kernel stamps; up to 1 streams")
    with pytest.raises(CliError, match=r"--out .*file/out cannot be written: Not a directory") as caught:
        calibrate(["1"], out=blocked / "out")
    assert caught.value.code == 4


def test_another_machines_calibration_is_not_ours(capsys: Any) -> None:
    save_calibration(stored([level()], hostname="elsewhere"))
    assert load_calibration() is None
    save_calibration(stored([level()], cores=(os.cpu_count() or 1) + 1))
    assert load_calibration() is None
    with pytest.raises(CliError, match="no calibration of this machine is stored"):
        calibrate(show=True)
    save_calibration(stored([level()]))
    calibrate(show=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["ceiling_streams"] == 10


@pytest.mark.parametrize("text", ["", "{", '{"levels": []}', '{"schema_version": 1, "surprise": 1}'])
def test_a_damaged_record_is_none(text: str) -> None:
    file = calibration_file()
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert load_calibration() is None


def test_delivered_sees_pauses_exactly() -> None:
    """Ten streams in lockstep, four rounds, so much of an answer's length between an answer and the next request."""
    period = round(calibration.ANSWER_S * 1e9)

    def closed(pause: float) -> list[list[int]]:
        starts = [round(turn * period * (1 + pause)) for turn in range(4) for _ in range(10)]
        return [[start, start + 50_000_000] for start in starts]

    assert calibration._delivered(closed(0.0), 10) == pytest.approx(1.0, abs=1e-6)
    assert calibration._delivered(closed(0.25), 10) == pytest.approx(0.8, abs=1e-6)
    assert calibration._delivered(closed(0.0)[:10], 10) is None
