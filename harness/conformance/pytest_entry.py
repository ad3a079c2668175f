"""Entry point for pytest.  Kept apart, so that every pytest run of a project that has PagedBench installed stays fast."""

from __future__ import annotations

import sys


def wants_suite(arguments: list[str]) -> bool:
    return any(argument.startswith("--pagedbench-") for argument in arguments)


if wants_suite(sys.argv):
    from harness.conformance.pytest_plugin import *  # noqa: F403 - pytest reads the hooks from this module
