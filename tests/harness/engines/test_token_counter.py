"""Counting tokens over a server's /tokenize, in both dialects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fake_api import FakeApi, serving

from harness.engines.token_counter import ServerCounter
from workloads.registry import make_workload
from workloads.tokens import CountError

HELLO: Any = [{"role": "user", "content": "hello"}]


async def ask(api: FakeApi, dialect: Any, question: Callable[[ServerCounter], Any], **options: Any) -> Any:
    """Run a blocking question in a thread while the server runs here."""

    def run(url: str) -> Any:
        with ServerCounter(url, dialect, **options) as counter:
            return question(counter)

    async with serving(api) as url:
        return await asyncio.to_thread(run, url)


async def test_vllm_dialect() -> None:
    api = FakeApi(tokenize="vllm")
    count = await ask(api, "vllm", lambda c: (c.count_prompt("abcd"), c.count_messages(HELLO)), model="m", api_key="k")
    assert count == (4, 8)
    assert all(body["model"] == "m" for _, body in api.asked)
    assert api.asked[1][1]["add_generation_prompt"] is True


async def test_llama_cpp_dialect() -> None:
    api = FakeApi(tokenize="llama.cpp")
    count = await ask(api, "llama.cpp", lambda c: (c.count_prompt("abcd"), c.count_messages(HELLO)))
    assert count == (4, len("<user>hello"))
    assert api.asked[0][1] == {"content": "abcd", "add_special": True, "parse_special": True}


async def test_it_is_what_workloads_need() -> None:
    api = FakeApi(tokenize="vllm")
    workload = make_workload("long-output", {"input_mean": 200.0, "input_cv": 0.0})
    requests = await ask(api, "vllm", lambda c: workload.requests(2, 1, c))
    assert all(request.prompt_tokens == len(request.prompt) for request in requests)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [(500, "HTTP 500"), ("<html>", "JSON object"), ("{}", "neither tokens nor a count"), ("[]", "JSON object")],
)
async def test_bad_answers_are_count_errors(wrong: Any, sentence: str) -> None:
    with pytest.raises(CountError, match=sentence):
        await ask(FakeApi(broken={"/tokenize": wrong}), "vllm", lambda c: c.count_prompt("x"))


async def test_no_template() -> None:
    with pytest.raises(CountError, match="apply-template"):
        await ask(
            FakeApi(broken={"/apply-template": "{}"}, tokenize="llama.cpp"),
            "llama.cpp",
            lambda c: c.count_messages(HELLO),
        )


def test_no_server() -> None:
    with ServerCounter("http://127.0.0.1:9", "vllm") as counter, pytest.raises(CountError, match="failed"):
        counter.count_prompt("x")
