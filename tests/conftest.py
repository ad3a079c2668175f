"""Options and groups of the whole suite.  Groups that cannot run here are skipped with the reason."""

from __future__ import annotations

import contextlib
import os

# Before torch is imported anywhere: tests run in parallel processes on few cores, and spinning OpenMP workers starve them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# A machine that pauses for 0.2 s is no failure of an example, nor is one that draws its examples slowly.
with contextlib.suppress(ImportError):
    from hypothesis import HealthCheck, settings

    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pagedbench")
    group.addoption("--slow", action="store_true", help="also run tests that take minutes")
    group.addoption(
        "--external", action="store_true", help="also run tests against other engines (see docs/engines.md)"
    )


def has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # One that begins when all others have ended would keep a single worker busy.
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    cuda: bool | None = None
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        if item.get_closest_marker("external") and not config.getoption("--external"):
            item.add_marker(pytest.mark.skip(reason="needs other engines; run with --external"))
        if item.get_closest_marker("gpu"):
            cuda = has_cuda() if cuda is None else cuda
            if not cuda:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
