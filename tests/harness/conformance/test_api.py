"""Asking: a call that is sent away for now is repeated, within bounds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from hostile import answer, serving

from harness.conformance import api as asking
from harness.conformance.api import Api


class Busy:
    """Sends the first ``times`` calls away."""

    def __init__(self, times: int, status: int = 429, retry_after: str | None = None) -> None:
        self.left, self.status, self.calls = times, status, 0
        self.headers = {} if retry_after is None else {"Retry-After": retry_after}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        if self.left:
            self.left -= 1
            return web.json_response({"error": {"message": "later"}}, status=self.status, headers=self.headers)
        return web.json_response(answer(request, await request.json()))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which lasts."""
    made: list[float] = []

    class Hasty:
        @staticmethod
        async def sleep(seconds: float) -> None:
            made.append(seconds)

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

    monkeypatch.setattr(asking, "asyncio", Hasty())
    return made


async def ask(server: Busy, *, stream: bool = False) -> Any:
    async with serving(server.handle) as url, Api(url, "m", timeout_s=10.0) as api:
        if stream:
            return (await api.stream_complete("x", max_tokens=1)).exchange
        return await api.post("/v1/completions", {"prompt": "x", "max_tokens": 1})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_sent_away_is_repeated(pauses: list[float], stream: bool) -> None:
    server = Busy(4)
    exchange = await ask(server, stream=stream)
    assert exchange.status == 200
    assert server.calls == 5
    assert pauses == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("told", "pause_s"),
    [("2", 2.0), ("0", 0.25), ("3600", 5.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.25), ("nan", 0.25)],
)
async def test_the_server_says_how_long_within_bounds(pauses: list[float], told: str, pause_s: float) -> None:
    assert (await ask(Busy(1, retry_after=told))).status == 200
    assert pauses == [pause_s]


async def test_patience_ends(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 0.2)
    server = Busy(10**9)
    assert (await ask(server)).status == 429
    assert server.calls > 1
    assert len(pauses) == server.calls - 1


@pytest.mark.parametrize("status", [400, 500, 503])
async def test_other_refusals_are_told_at_once(pauses: list[float], status: int) -> None:
    server = Busy(1, status)
    assert (await ask(server)).status == status
    assert server.calls == 1
    assert not pauses
