"""Reading traces of real services.  Each row: when, how many tokens in and out, and what is known of the prompt.

========  =====================================================================================================
mooncake  JSON Lines: ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids`` (one for each 512 tokens of
          the prompt; equal ids mean equal tokens) -- github.com/kvcache-ai/Mooncake
burstgpt  CSV: ``Timestamp`` (s), ``Request tokens``, ``Response tokens``, failed ones with 0 answer tokens are left
          out -- github.com/HPMLL/BurstGPT
azure     CSV: ``TIMESTAMP`` (date and time), ``ContextTokens``, ``GeneratedTokens`` -- Azure/AzurePublicDataset
jsonl     JSON Lines: ``prompt`` or ``messages`` or ``input_length``; ``output_length`` or ``max_tokens``;
          ``timestamp`` (s) on all rows or on none
========  =====================================================================================================
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from workloads.request import Message, WorkloadError

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace.  ``t_ns`` counts from an origin of the file's own."""

    t_ns: int | None
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None


def read_trace(path: Path, form: str, limit: int | None = None) -> list[TraceRow]:
    """The rows of a trace file in its order.  ``form`` is one of ``FORMATS`` or ``auto``.  Raises WorkloadError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"workload trace: cannot read {path}: {error}") from None
    if form == "auto":
        form = guess_format(text, path)
    rows: list[TraceRow] = []
    for number, values in FORMATS[form][0](text, path):
        try:
            row = FORMATS[form][1](values)
        except (KeyError, TypeError, ValueError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise WorkloadError(f"workload trace: {path} line {number} is no row of a {form} trace ({why})") from None
        if row is not None:
            rows.append(row)
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        raise WorkloadError(f"workload trace: {path} holds no request")
    timed = sum(row.t_ns is not None for row in rows)
    if timed not in (0, len(rows)):
        raise WorkloadError(f"workload trace: {path} has timestamps on some rows only; give all or none")
    return rows


def guess_format(text: str, path: Path) -> str:
    """The format by what its first line shows.  Raises WorkloadError."""
    first = text.lstrip().partition("\n")[0]
    if first.startswith("{"):
        return "mooncake" if '"hash_ids"' in first else "jsonl"
    if "ContextTokens" in first:
        return "azure"
    if "Request tokens" in first:
        return "burstgpt"
    raise WorkloadError(f"workload trace: {path} looks like no format that is known; say format={'|'.join(FORMATS)}")


def json_lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise WorkloadError(f"workload trace: {path} line {number} is not JSON ({error})") from None
        if not isinstance(values, dict):
            raise WorkloadError(f"workload trace: {path} line {number} is not a JSON object")
        yield number, values


def csv_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(csv.DictReader(text.splitlines()), start=2)


def mooncake_row(values: dict[str, Any]) -> TraceRow:
    hashes = tuple(int(value) for value in values.get("hash_ids", ()))
    return TraceRow(
        round(float(values["timestamp"]) * 1e6), whole(values["input_length"]), whole(values["output_length"]), hashes
    )


def burstgpt_row(values: dict[str, Any]) -> TraceRow | None:
    output = whole(values["Response tokens"])
    if output == 0:
        return None
    return TraceRow(round(float(values["Timestamp"]) * NS_PER_S), whole(values["Request tokens"]), output)


def azure_row(values: dict[str, Any]) -> TraceRow:
    moment, _, fraction = str(values["TIMESTAMP"]).partition(".")
    parsed = datetime.fromisoformat(f"{moment}+00:00" if "+" not in moment else moment)
    digits = fraction.partition("+")[0].removesuffix("Z")
    t_ns = int(parsed.timestamp()) * NS_PER_S + (int(digits.ljust(9, "0")[:9]) if digits else 0)
    return TraceRow(t_ns, whole(values["ContextTokens"]), max(1, whole(values["GeneratedTokens"])))


def plain_row(values: dict[str, Any]) -> TraceRow:
    t_ns = None if values.get("timestamp") is None else round(float(values["timestamp"]) * NS_PER_S)
    output = values.get("output_length", values.get("max_tokens"))
    if output is None:
        raise ValueError("neither output_length nor max_tokens")
    prompt, messages = values.get("prompt"), values.get("messages")
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError("prompt is not a text")
    if prompt is None and messages is None and "input_length" not in values:
        raise ValueError("none of prompt, messages and input_length")
    said = None
    if messages is not None:
        said = tuple(Message(role=str(one["role"]), content=str(one["content"])) for one in messages)
    return TraceRow(t_ns, whole(values.get("input_length", 0)), max(1, whole(output)), (), prompt, said)


def whole(value: Any) -> int:
    """A count of tokens.  Raises ValueError."""
    number = float(value)
    if number < 0 or number != int(number):
        raise ValueError(f"{value!r} is no number of tokens")
    return int(number)


Rows = Callable[[str, Path], Iterator[tuple[int, dict[str, Any]]]]
FORMATS: dict[str, tuple[Rows, Callable[[dict[str, Any]], TraceRow | None]]] = {
    "mooncake": (json_lines, mooncake_row),
    "burstgpt": (csv_rows, burstgpt_row),
    "azure": (csv_rows, azure_row),
    "jsonl": (json_lines, plain_row),
}
