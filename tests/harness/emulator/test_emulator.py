"""The emulator over its socket: what it was told to do is what a client sees, and its truth is true."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import pytest

from harness.emulator.options import EmulatorError, EmulatorOptions, load_script, make_options, parse_faults
from harness.emulator.process import spawned
from harness.emulator.server import Emulator
from harness.engines.metrics import parse_exposition
from harness.engines.probe import probe
from harness.results.schema import METRIC_NAMES

FAST = {"ttft_ms": 2.0, "itl_ms": 1.0, "tokens": 4}


@asynccontextmanager
async def emulated(**options: Any) -> AsyncIterator[tuple[Emulator, aiohttp.ClientSession]]:
    async with (
        Emulator(make_options(**{**FAST, **options})) as emulator,
        aiohttp.ClientSession(emulator.url) as session,
    ):
        yield emulator, session


async def events(session: aiohttp.ClientSession, path: str = "/v1/completions", **body: Any) -> list[Any]:
    """The events of one stream, parsed; ``[DONE]`` stays a text."""
    prompt = {"messages": [{"role": "user", "content": "a b"}]} if "chat" in path else {"prompt": "one two three"}
    async with session.post(path, json={**prompt, "stream": True, **body}) as response:
        text = await response.text()
    datas = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


async def test_streams_of_both_endpoints_are_whole() -> None:
    async with emulated() as (_, session):
        told = {"stream_options": {"include_usage": True}, "max_tokens": 3}
        completion = await events(session, **told)
        chat = await events(session, "/v1/chat/completions", **told)
    assert [event["choices"][0]["finish_reason"] for event in completion[:4]] == [None, None, None, "length"]
    assert all(event["choices"][0]["text"].startswith(" ") for event in completion[:3])
    assert completion[4]["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert completion[5] == "[DONE]"
    assert chat[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chat[-2]["usage"]["prompt_tokens"] == 5
    assert len(chat) == 1 + 3 + 1 + 2


async def test_lengths_follow_the_request() -> None:
    async with emulated() as (_, session):
        for body, tokens, reason in (
            ({}, 4, "length"),
            ({"max_tokens": 9}, 4, "stop"),
            ({"max_tokens": 9, "ignore_eos": True}, 9, "length"),
            ({"max_tokens": 2}, 2, "length"),
        ):
            async with session.post("/v1/completions", json={"prompt": "a", **body}) as response:
                document = await response.json()
            assert document["usage"]["completion_tokens"] == tokens
            assert document["choices"][0]["finish_reason"] == reason
            assert len(document["choices"][0]["text"].split()) == tokens


async def test_answers_depend_on_the_prompt_alone() -> None:
    async with emulated() as (_, session):
        same = [(await events(session))[:4] for _ in range(2)]
        other = (await events(session, prompt="something else"))[:4]
    assert same[0] == same[1] != other


async def test_several_tokens_a_chunk_and_several_choices() -> None:
    async with emulated(tokens_per_chunk=3, tokens=7) as (emulator, session):
        told = await events(session, n=2, stream_options={"include_usage": True})
    texts = [event["choices"][0] for event in told if event != "[DONE]" and event["choices"]]
    counts = {index: [len(c["text"].split()) for c in texts if c["index"] == index and c["text"]] for index in (0, 1)}
    assert counts == {0: [3, 3, 1], 1: [3, 3, 1]}
    assert told[-2]["usage"]["completion_tokens"] == 14
    assert emulator.engine.counts.generation_tokens == 14


async def test_truth_says_when_chunks_left_and_times_are_kept() -> None:
    async with emulated(ttft_ms=20, itl_ms=10, tokens=5) as (_, session):
        await events(session)
        async with session.get("/truth") as response:
            truth = await response.json()
        (stamps,) = truth["answers"]
        assert len(stamps) == 6
        assert stamps[1] - stamps[0] >= 20_000_000
        assert all(b > a for a, b in pairwise(stamps))
        assert stamps[5] - stamps[0] >= 60_000_000
        async with session.post("/truth/reset") as response:
            assert response.status == 200
        async with session.get("/truth") as response:
            assert (await response.json())["answers"] == []


async def test_metrics_use_the_vocabulary_and_the_pool_empties() -> None:
    async with emulated(kv_tokens=160, itl_ms=200, tokens=6) as (emulator, session):
        async with session.post("/v1/completions", json={"prompt": "a b c", "stream": True}) as response:
            await response.content.readany()
            async with session.get("/metrics") as metrics:
                during = parse_exposition(await metrics.text())
            await response.read()
        async with session.get("/metrics") as metrics:
            after = parse_exposition(await metrics.text())
    assert set(during) <= set(METRIC_NAMES)
    assert during["requests_running"] == 1
    assert during["kv_slots_allocated"] == 16
    assert during["kv_slots_live"] >= 4
    assert during["kv_slots_reserved"] == 160
    assert after["kv_slots_live"] == after["kv_slots_allocated"] == after["requests_running"] == 0
    assert after["generation_tokens_total"] == 6
    assert emulator.engine.counts.peak_live == 9


@pytest.mark.parametrize(
    ("fault", "status"), [("http_400", 400), ("http_429", 429), ("http_500", 500), ("http_503", 503)]
)
async def test_faults_with_a_status(fault: str, status: int) -> None:
    async with (
        emulated(faults={fault: 1.0}) as (_, session),
        session.post("/v1/completions", json={"prompt": "a"}) as response,
    ):
        assert response.status == status
        assert "error" in await response.json()


async def test_faults_inside_a_stream() -> None:
    async with emulated(faults={"in_band": 1.0}) as (emulator, session):
        told = await events(session)
        assert "error" in told[2]
        assert emulator.engine.live == 0
    async with emulated(faults={"no_done": 1.0}) as (_, session):
        assert "[DONE]" not in await events(session)
    async with emulated(faults={"no_finish": 1.0}) as (_, session):
        told = await events(session)
        assert all(event["choices"][0]["finish_reason"] is None for event in told[:-1])
        assert told[-1] == "[DONE]"
    for fault in ("reset", "close"):
        async with emulated(faults={fault: 1.0}) as (emulator, session):
            with pytest.raises(aiohttp.ClientError):
                await events(session)
            assert emulator.engine.live == 0


async def test_a_stalled_answer_holds_its_memory_until_the_client_leaves() -> None:
    async with emulated(faults={"stall": 1.0}, kv_tokens=64) as (emulator, session):
        response = await session.post("/v1/completions", json={"prompt": "a", "stream": True})
        await response.content.readany()
        while emulator.engine.live < 3:
            await response.content.readany()
        assert emulator.engine.held == 1
        response.close()
        while emulator.engine.live:
            async with session.get("/health"):
                pass
        assert emulator.engine.counts.finished["abort"] == 1


async def test_a_share_of_faults_is_drawn_from_the_seed() -> None:
    async def failures(seed: int) -> list[int]:
        async with emulated(faults={"http_500": 0.3}, seed=seed) as (_, session):
            statuses = []
            for _ in range(60):
                async with session.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}) as response:
                    statuses.append(response.status)
        return statuses

    first, again, other = await failures(1), await failures(1), await failures(2)
    assert first == again != other
    assert 8 <= first.count(500) <= 30


async def test_bad_requests_are_refused() -> None:
    async with emulated(kv_tokens=64, max_model_len=100, api_key="k") as (_, session):
        key = {"Authorization": "Bearer k"}
        for body in ({}, {"prompt": ""}, {"prompt": 3}, {"prompt": "a", "max_tokens": 0}, {"prompt": "a", "n": True},
                     {"prompt": "a", "max_tokens": 100}, {"prompt": "a", "max_tokens": 90, "ignore_eos": True}):  # fmt: skip
            async with session.post("/v1/completions", json=body, headers=key) as response:
                assert response.status == 400, body
        async with session.post("/v1/completions", data=b"{", headers=key) as response:
            assert response.status == 400
        async with session.post("/v1/completions", json={"prompt": "a"}) as response:
            assert response.status == 401
        async with session.get("/nowhere", headers=key) as response:
            assert response.status == 404


async def test_the_probe_finds_a_full_api() -> None:
    async with Emulator(EmulatorOptions(ttft_ms=0, itl_ms=0)) as emulator:
        found = await probe(emulator.url)
    able = found.capabilities
    assert (found.info.kind, found.info.model) == ("pagedbench", "emulated")
    assert able.completions
    assert able.chat
    assert able.done_marker
    assert able.stream_usage == "asked"
    assert able.ignore_eos in ("honoured", "accepted")
    assert able.tokenize == "vllm"
    assert able.metrics


def test_options_and_scripts_are_strict(tmp_path: Any) -> None:
    with pytest.raises(EmulatorError, match="itl_ms"):
        make_options(itl_ms=-1)
    with pytest.raises(EmulatorError, match="add up"):
        make_options(faults={"reset": 0.6, "stall": 0.6})
    with pytest.raises(EmulatorError, match="KIND=SHARE"):
        parse_faults(["reset"])
    with pytest.raises(EmulatorError, match="choose one of"):
        parse_faults(["boom=1"])
    script = tmp_path / "script.jsonl"
    script.write_text('{"times_ms": [5, 3]}\n')
    with pytest.raises(EmulatorError, match=r"line 1.*in order"):
        load_script(script)
    script.write_text('{"ttft_ms": 1}\n\n{"fault": "reset", "fault_after_tokens": 1}\n')
    assert [answer.fault for answer in load_script(script)] == [None, "reset"]


def test_it_runs_as_a_process() -> None:
    import urllib.request

    with spawned(make_options(model="other")) as url, urllib.request.urlopen(f"{url}/v1/models") as response:
        assert json.load(response)["data"][0]["id"] == "other"
    with (
        spawned() as url,
        pytest.raises(EmulatorError, match="cannot listen"),
        spawned(make_options(port=int(url.rpartition(":")[2]))),
    ):
        pass
