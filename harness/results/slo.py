"""Which requests met every service level objective.  The same rule for goodput and for the search for the highest load."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.results.cells import CellData

NS_PER_MS = 1e6


def meets_slo(data: CellData, slo: Mapping[str, float]) -> np.ndarray:
    """A mask over ``data.requests``: successes within every limit (ms on ttft, tpot, e2e; from the moment of sending).

    An answer of one token has no time between tokens, so its tpot counts as 0.
    """
    send, first, last, done = (data.column(name) for name in ("t_send", "t_first", "t_last", "t_done"))
    output = data.column("output_tokens")
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(output > 1, (last - first) / (output - 1), 0.0)
    times = {"ttft": first - send, "tpot": tpot, "e2e": done - send}
    good = data.ok.copy()
    for name, limit in slo.items():
        good &= times[name] / NS_PER_MS <= limit
    return good


def attainment(data: CellData, slo: Mapping[str, float]) -> tuple[int, int]:
    """Measured requests that met every objective, and all that were asked; one that the user cancelled is not asked."""
    cancelled = np.array([value == "cancelled" for value in data.requests["error_class"].to_pylist()], dtype=bool)
    asked = data.measured & ~cancelled
    return int((meets_slo(data, slo) & asked).sum()), int(asked.sum())
