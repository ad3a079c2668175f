"""A profile from a measured run: least squares over the steps of a plan log.

The time of a step is that from its line to the next, where the next step goes on with one of its sequences: then the
engine did not stand idle in between.  Fitted is, with no coefficient below 0::

    seconds = (fixed + weights) + per_sequence * sequences + per_context_token * context + per_token * tokens
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from reference_engine.config import ConfigError
from reference_engine.simulate.profile import Profile

MIN_STEPS = 50
_NAMES = ("fixed", "per_sequence", "per_context_token", "per_token")


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fitted profile and how well it tells the steps it was fitted to."""

    profile: Profile
    steps: int
    r_squared: float
    mean_error: float  # mean of |fitted - measured| / mean of measured


def calibrate(lines: Iterable[str], base: Profile, name: str) -> Calibration:
    """Fit the times of ``base`` to a log of ``serve --log-plans``.  Raises ConfigError if the log is too short."""
    samples, seconds = _samples(lines)
    if len(samples) < MIN_STEPS:
        raise ConfigError(
            f"the plan log has {len(samples)} steps with a time; {MIN_STEPS} are needed to fit a profile: log a longer run"
        )
    rows, measured = np.array(samples, dtype=float), np.array(seconds)
    # The slowest hundredth are hiccups of the machine, not costs of a step.
    kept = measured <= np.quantile(measured, 0.99)
    rows, measured = rows[kept], measured[kept]
    scale = np.maximum(rows.max(axis=0), 1e-12)
    coefficients = nnls(rows / scale, measured)[0] / scale
    fitted = rows @ coefficients
    spread = float(((measured - measured.mean()) ** 2).sum())
    r_squared = 1 - float(((measured - fitted) ** 2).sum()) / spread if spread else 1.0
    values: dict[str, Any] = dict(zip(_NAMES, map(float, coefficients), strict=True))
    source = f"measured: least squares over {len(measured)} steps of a plan log"
    profile = replace(
        base,
        name=name,
        about=f"fitted to {len(measured)} measured steps; all else from {base.name}",
        roofline=False,
        weights=0.0,
        page_overhead=0.0,
        sources={**base.sources, **dict.fromkeys(_NAMES, source), "weights": "measured: part of fixed"},
        **values,
    )
    return Calibration(profile, len(measured), r_squared, float(abs(measured - fitted).mean() / measured.mean()))


def _samples(lines: Iterable[str]) -> tuple[list[list[float]], list[float]]:
    """Per timed step (1, sequences, context, tokens), and its seconds."""
    samples: list[list[float]] = []
    seconds: list[float] = []
    before: dict[str, Any] | None = None
    for text in lines:
        try:
            line = json.loads(text)
            line["t_ns"], line["seqs"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError("this is not a plan log with times; give a file that serve --log-plans wrote") from None
        if before is not None and {s["seq_id"] for s in before["seqs"]} & {s["seq_id"] for s in line["seqs"]}:
            parts = before["seqs"]
            tokens = sum(len(s["tokens"]) for s in parts)
            samples.append([1.0, len(parts), sum(s["start"] for s in parts) + tokens, tokens])
            seconds.append((line["t_ns"] - before["t_ns"]) * 1e-9)
        before = line
    return samples, seconds
