"""What is known of the load client's own error on the machine of each run, beside what the run asked of it."""

from __future__ import annotations

from dataclasses import dataclass

from harness.results.schema import Calibration, CalibrationLevel
from reports.dataset import Dataset, RunTables
from reports.fingerprint import client_words
from reports.words import NULL_TEXT, number, plural

COLUMNS = [
    "streams",
    "chunks/s",
    "TTFT p50 off by, ms",
    "p99, ms",
    "ITL p99 off by",
    "delivered",
    "µs/chunk",
    "verdict",
]


@dataclass(frozen=True)
class ClientRecord:
    """The calibration that one run carries; ``levels`` are rows of ``COLUMNS``, empty where there is none."""

    run_id: str
    sentence: str
    levels: list[list[str]]


def client_records(data: Dataset) -> list[ClientRecord]:
    """One record a run."""
    return [_record(run) for run in data.runs]


def _record(run: RunTables) -> ClientRecord:
    manifest = run.run.manifest
    found = manifest.machine.calibration
    if found is None:
        sentence = (
            f"There is no calibration of {manifest.machine.hostname}, so the client's own error is not known here. "
            "Make one with `pagedbench calibrate` while nothing else runs; every later run on that machine carries it."
        )
        return ClientRecord(manifest.run_id, sentence, [])
    words = client_words(found)
    sentence = f"{words[0].upper()}{words[1:]}.{_against_the_run(found, run)}"
    return ClientRecord(manifest.run_id, sentence, [_row(level) for level in found.levels])


def _against_the_run(found: Calibration, run: RunTables) -> str:
    """Did the run stay within what the client was shown to keep up with?"""
    summary = run.run.summary
    most = max((cell.in_flight_max or 0 for cell in summary.cells), default=0) if summary is not None else 0
    if not most or found.ceiling_streams is None:
        return ""
    if most <= found.ceiling_streams:
        return f" This run had at most {plural(most, 'request')} in flight, within that."
    return f" This run had up to {plural(most, 'request')} in flight, more than was calibrated."


def _row(level: CalibrationLevel) -> list[str]:
    return [
        f"{level.streams:,}",
        number(level.chunks_per_s),
        f"{level.ttft_p50_error_ms:+.2f}",
        f"{level.ttft_p99_error_ms:+.2f}",
        f"{level.itl_p99_error:+.1%}",
        NULL_TEXT if level.delivered is None else f"{level.delivered:.3f}",
        number(level.cpu_us_per_chunk),
        "kept up" if level.passed else level.reason or "did not keep up",
    ]
