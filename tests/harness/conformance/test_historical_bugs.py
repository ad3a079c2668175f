"""The suite finds bugs that it was not written against: five from public reports, put back by patch."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.conformance.context import Options
from harness.conformance.runner import run_suite
from tests.harness.conformance.historical_bugs import BUGS

# Cases of the default suite that look at what the bug breaks; that one of them fails is what is shown.
CASES = {
    "stale_hash_entry": ["PFX-07", "PFX-08"],
    "decode_position": ["NUM-03", "NUM-04"],
    "stop_string_over_tokens": ["STR-07", "API-10"],
    "token_lost_at_resume": ["PRE-01"],
    "oversized_request_waits": ["PRE-03", "ERR-03"],
}
POOL = ["--num-blocks", "192", "--max-model-len", "2048", "--max-num-seqs", "16", "--max-num-batched-tokens", "128"]


@contextmanager
def serving(*, bug: str | None) -> Iterator[str]:
    module = ["reference_engine.server"] if bug is None else ["tests.harness.conformance.historical_bugs", bug]
    command = [sys.executable, "-m", *module, "--model", "sentinel", "--port", "0", *POOL]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
    finally:
        server.kill()
        server.wait(timeout=30)


def failures(url: str, cases: list[str]) -> set[str]:
    result = asyncio.run(run_suite(url, cases, Options(timeout_s=20.0, effort=0.3)))
    failed = {one.id for one in result.results if one.verdict == "FAIL"}
    return failed | ({result.results[-1].id} if result.status == "lost" else set())


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_historical_bug_is_killed(bug: str) -> None:
    with serving(bug=None) as url:
        clean = failures(url, CASES[bug])
    with serving(bug=bug) as url:
        assert failures(url, CASES[bug]) - clean
