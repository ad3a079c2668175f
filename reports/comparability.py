"""Is like compared with like?  What differs between the engines beside the engines."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from reports.dataset import Cell, Dataset, Engine, Group
from reports.words import listing, percent

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

_SIZE = re.compile(r"\d[bm]\b")  # a name that gives the size of the model gives its tuning, too
_TUNINGS = {"instruct", "chat", "it"}

TOKEN_TOLERANCE = 0.01  # token totals that differ by more than this are not the same work


def differences(data: Dataset) -> list[str]:
    """One sentence for each thing that makes the comparison unfair or doubtful; empty when nothing was found."""
    found = [
        *_models(data.engines),
        *_stated(data.engines, "dtype", dtype_name),
        *_machines(data),
    ]
    for group in data.groups:
        found += _requests(group)
        found += _tokens(group, "prompt", "prompt_tokens")
        found += _tokens(group, "output", "output_tokens")
    return found


def _models(engines: list[Engine]) -> list[str]:
    names = {e.label: model_name(e.info.model) for e in engines if e.info.model}
    plain = {label: _bare(name) for label, name in names.items()}
    shortest = min(plain.values(), key=len, default="")
    tunings = {_tuning(name) for name in names.values() if _SIZE.search(name.lower())}
    if all(shortest in name for name in plain.values()) and len(tunings) < 2:
        return []
    told = listing([f"{name} ({label})" for label, name in names.items()])
    return [f"The engines name different models: {told}."]


def model_name(model: str) -> str:
    """The last part of a path or hub id."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def _tuning(name: str) -> str:
    """``instruct`` of ``Llama-3.1-8B-Instruct``, nothing of the base model: same words, other weights."""
    return next((word for word in re.split(r"[^a-z0-9]+", name.lower()) if word in _TUNINGS), "")


def _bare(name: str) -> str:
    """A model's name without punctuation, file type and element type."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return "".join(word for word in words if word not in _DTYPES and word not in _DTYPES.values() and word != "gguf")


def dtype_name(engine: Engine) -> str | None:
    """The element type an engine states, under one spelling."""
    told = engine.info.dtype
    plain = told.lower().removeprefix("torch.").removeprefix("all ") if told else None
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


def _tokens(group: Group, what: str, column: str) -> list[str]:
    """Token counts on the requests that every engine answered; they are equal when the same work was done."""
    counts = {label: _by_request(cells[0], column) for label in group.cells if (cells := group.valid(label))}
    counts = {label: found for label, found in counts.items() if found}
    common = set.intersection(*(set(found) for found in counts.values())) if counts else set()
    totals = {label: sum(found[index] for index in common) for label, found in counts.items()}
    most, least = max(totals, key=totals.__getitem__, default=""), min(totals, key=totals.__getitem__, default="")
    if not common or totals[most] <= (1 + TOKEN_TOLERANCE) * totals[least]:
        return []
    more = f"{percent(totals[most] / totals[least] - 1)} more" if totals[least] > 0 else "more"
    return [f"The same requests came to {more} {what} tokens on {most} than on {least} ({group.title})."]


def _by_request(cell: Cell, column: str) -> dict[int, float]:
    """The token counts of the requests that succeeded; empty where one of them is not known."""
    rows = cell.tables.requests.rows(cell.info.cell_id, ("request_index", column, "ok", "warmup"))
    counted = rows["ok"].astype(bool) & ~rows["warmup"].astype(bool)
    tokens = rows[column][counted].astype(np.float64)
    if not np.isfinite(tokens).all():
        return {}
    return dict(zip(rows["request_index"][counted].astype(np.int64).tolist(), tokens.tolist(), strict=True))
