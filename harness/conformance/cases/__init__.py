"""The catalogue of cases, a family a file or a few.  ``all_cases`` imports them all and returns them by id, in order."""

from __future__ import annotations

import importlib

from harness.conformance.case import FAMILIES, REGISTRY, Case

MODULES = (
    "api",
    "choices",
    "forms",
    "ends",
    "streaming",
    "arrival",
    "tokens",
    "sampling",
    "decoding",
    "logprobs",
    "numerics",
    "batching",
    "prefix",
    "pressure",
    "lifecycle",
    "errors",
    "metrics",
    "memory",
    "integrity",
)


def all_cases() -> dict[str, Case]:
    """Every case by id: families in their order, numbers ascending."""
    for module in MODULES:
        importlib.import_module(f"harness.conformance.cases.{module}")
    order = list(FAMILIES)
    return dict(sorted(REGISTRY.items(), key=lambda item: (order.index(item[1].family), item[0])))
