"""Is like compared with like?  What differs between the engines beside the engines."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.results.schema import CellSummary
from reports.dataset import Dataset, Engine, Group
from reports.words import count, listing

# Names that engines give to one element type.
_DTYPES = {
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "f16": "float16",
}
_DTYPES |= {"bf16": "bfloat16"}

TOKEN_TOLERANCE = 0.01  # token totals that differ by more than this are not the same work


def differences(data: Dataset) -> list[str]:
    """One sentence for each thing that makes the comparison unfair or doubtful; empty when nothing was found."""
    found = [
        *_models(data.engines),
        *_stated(data.engines, "dtype", _dtype),
        *_machines(data),
    ]
    for group in data.groups:
        found += _requests(group)
        found += _tokens(group, "prompt", lambda cell: cell.prompt_tokens)
        found += _tokens(group, "output", lambda cell: cell.output_tokens)
    return found


def _models(engines: list[Engine]) -> list[str]:
    names = {e.label: e.info.model for e in engines if e.info.model}
    plain = {label: re.sub(r"[^a-z0-9]", "", str(name).lower().rsplit("/", 1)[-1]) for label, name in names.items()}
    shortest = min(plain.values(), key=len, default="")
    if all(shortest in name for name in plain.values()):
        return []
    told = listing([f"{name} ({label})" for label, name in names.items()])
    return [f"The engines name different models: {told}."]


def _dtype(engine: Engine) -> str | None:
    told = engine.info.dtype
    plain = told.lower().removeprefix("torch.") if told else None
    return _DTYPES.get(plain, plain) if plain else None


def _stated(engines: list[Engine], what: str, read: Callable[[Engine], str | None]) -> list[str]:
    values = {e.label: value for e in engines if (value := read(e)) is not None}
    if len(set(values.values())) < 2:
        return []
    return [f"The engines differ in {what}: {listing([f'{v} ({label})' for label, v in values.items()])}."]


def _machines(data: Dataset) -> list[str]:
    seen = {run.run.manifest.machine.model_dump_json(include={"hostname", "cpu", "cores", "gpus"}) for run in data.runs}
    return ["The runs come from different machines."] if len(seen) > 1 else []


def _requests(group: Group) -> list[str]:
    digests = {cell.info.workload.digest for cells in group.cells.values() for cell in cells}
    return [f"The requests differ between the cells of {group.title}."] if len(digests) > 1 else []


def _tokens(group: Group, what: str, read: Callable[[CellSummary], float | None]) -> list[str]:
    """Token totals a request, which must be equal when the same requests were served to their planned length."""
    means = {}
    for label in group.cells:
        pairs = [
            (value, cell.summary.requests_ok)
            for cell in group.valid(label)
            if cell.summary is not None and (value := read(cell.summary)) is not None
        ]
        served = sum(n for _, n in pairs)
        if served:
            means[label] = sum(value for value, _ in pairs) / served
    if len(means) < 2 or max(means.values()) <= (1 + TOKEN_TOLERANCE) * min(means.values()):
        return []
    told = listing([f"{count(round(value, 1))} ({label})" for label, value in means.items()])
    return [f"Mean {what} tokens a request differ under {group.title}: {told}."]
