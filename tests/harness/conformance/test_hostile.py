"""Whatever a server does, the suite ends, says what happened, and has an exit code of the contract."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hostile import Liar, hang, html, serving

from harness.conformance.context import Options
from harness.conformance.runner import run_suite
from harness.engines.errors import UnreachableError

HASTY = Options(timeout_s=1.0, effort=0.1, structural_only=True)
FAST = dataclasses.replace(
    HASTY, timeout_s=20.0
)  # servers that answer at once, but for what a busy machine makes of it


async def test_html_is_no_api() -> None:
    async with serving(html) as url:
        with pytest.raises(UnreachableError, match="no OpenAI API"):
            await run_suite(url, None, FAST)


async def test_a_server_that_hangs_is_unreachable() -> None:
    async with serving(hang) as url:
        with pytest.raises(UnreachableError, match="no answer within 1 s"):
            await run_suite(url, None, HASTY)


async def test_nothing_listens() -> None:
    with pytest.raises(UnreachableError):
        await run_suite("http://127.0.0.1:9", None, FAST)


@pytest.mark.parametrize("stream", ["json", "empty", "garbage", "cut"])
async def test_a_server_that_lies_about_streaming_fails(stream: str) -> None:
    async with serving(Liar(stream=stream).handle) as url:
        result = await run_suite(url, ["API-01", "STR-01", "STR-03", "STR-05", "API-05", "ERR-01"], FAST)
    verdicts = {case.id: case for case in result.results}
    assert len(verdicts) == 6
    assert not [case for case in result.results if case.verdict == "ERROR"], [c.reason for c in result.results]
    assert verdicts["API-01"].verdict == "PASS"
    assert verdicts["ERR-01"].verdict == "FAIL"
    assert verdicts["STR-01"].verdict in ("FAIL", "UNSUPPORTED")
    assert result.exit_code == 1


async def test_a_server_that_dies_ends_the_run() -> None:
    async with serving(Liar(alive=60).handle) as url:
        result = await run_suite(url, ["API", "ERR"], FAST)
    assert result.status == "lost"
    assert "stopped answering" in result.status_reason
    assert result.exit_code in (1, 3)
    assert not [case for case in result.results if case.verdict == "ERROR"], [c.reason for c in result.results]


async def test_the_whole_structural_subset_survives_a_liar() -> None:
    async with serving(Liar(stream="garbage").handle) as url:
        result = await run_suite(url, None, dataclasses.replace(FAST, effort=0.05))
    errors = [(case.id, case.reason) for case in result.results if case.verdict == "ERROR"]
    assert not errors
    assert result.exit_code == 1


async def test_an_interrupted_run_keeps_what_it_found() -> None:
    liar = Liar()
    async with serving(liar.handle) as url:
        task = asyncio.ensure_future(run_suite(url, ["API", "STR", "ERR", "TOK"], FAST))
        while liar.calls < 100 and not task.done():  # of some 340; the first 80 are preparations
            await asyncio.sleep(0.01)
        task.cancel()
        result = await task
    assert result.status in ("interrupted", "complete")
    assert result.exit_code in (1, 2)
