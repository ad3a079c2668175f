"""The catalogue and how faults are named, chosen, counted and removed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from reference_engine.config import ConfigError, ModelConfig
from reference_engine.faults.lab import Injection
from reference_engine.faults.registry import catalogue, choose
from reference_engine.faults.ways import WAYS
from reference_engine.kv.ledger import LedgerSnapshot
from reference_engine.runner import num_blocks_for
from reference_engine.sentinel.circuit import MODEL_CONFIG
from reference_engine.server.options import ServerOptions
from tests.reference_engine.faults.rig import Client, serving, with_client
from tests.reference_engine.faults.test_faults import ELSEWHERE, SHOWS


def test_the_catalogue_holds_what_it_should() -> None:
    known = catalogue()
    faults = {f"F{number:02d}" for number in range(1, 67)}
    assert faults <= set(known)
    assert {f"N{number}" for number in range(1, 13)} == {id for id, entry in known.items() if entry.kind == "benign"}
    for entry in known.values():
        assert all((entry.title, entry.source, entry.trigger))
        assert {"rate", "skip", "most"} <= set(entry.parameters)


def test_every_way_can_be_chosen_and_is_another_fault() -> None:
    for name, ways in WAYS.items():
        usual = choose(name).parameters
        for way in ways:
            assert choose(f"{name}:{way}").parameters != usual


def test_every_fault_has_a_test() -> None:
    assert set(SHOWS) | ELSEWHERE == {id for id, entry in catalogue().items() if entry.kind == "fault"}


def test_parameters_are_read_in_their_own_types() -> None:
    chosen = choose("F22:above=100,rate=0.5")
    assert (chosen.parameters["above"], chosen.parameters["rate"]) == (100, 0.5)
    assert choose("F17:where=chunk").parameters["where"] == "chunk"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("F99", "F99"),
        ("N1", "N1"),
        ("F22:above", "above"),
        ("F22:bogus=1", "bogus"),
        ("F22:above=x", "above"),
        ("F22:rate=2", "rate"),
        ("F22:rate=x", "rate"),
    ],
)
def test_a_wrong_choice_is_one_sentence(text: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong) as caught:
        choose(text)
    assert "\n" not in str(caught.value)


def test_rate_skip_and_most_rule_the_strikes() -> None:
    lab = Injection.parse(("F20:rate=0.5,skip=10,most=7",)).labs[0]
    strikes = [lab.fires() for _ in range(1000)]
    assert not any(strikes[:10])
    assert sum(strikes) == lab.fired == 7
    rare = Injection.parse(("F20:rate=0.1",)).labs[0]
    assert 60 < sum(rare.fires() for _ in range(1000)) < 140
    assert _first_strikes(50) == _first_strikes(50)


def _first_strikes(count: int) -> list[bool]:
    lab = Injection.parse(("F20:rate=0.1",)).labs[0]
    return [lab.fires() for _ in range(count)]


@pytest.mark.parametrize("name", [id for id, entry in catalogue().items() if id not in ("F11", "N11")])
def test_removing_a_fault_leaves_nothing_behind(name: str) -> None:
    subject = serving(real=True, num_blocks=40, block_size=8)
    kind = catalogue()[name].kind
    injection = Injection.parse((name,), ()) if kind == "fault" else Injection.parse((), (name,))
    objects = (
        subject.engine,
        subject.engine.scheduler,
        subject.engine.scheduler.kv,
        subject.engine.scheduler.kv.pool,
        subject.engine.scheduler.kv.cache,
        subject.engine._runner.backend,
        subject.engine._sampler,
        ModelConfig,
        LedgerSnapshot,
    )
    before = [dict(vars(one)) for one in objects]
    injection.before_build()
    injection.into(subject)
    injection.remove()
    for one, kept in zip(objects, before, strict=True):
        assert set(vars(one)) == set(kept)
        assert all(vars(one)[key] is value for key, value in kept.items() if callable(value))


def test_a_server_without_faults_never_imports_them(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom reference_engine.server.launch import run_server\n"
        "from reference_engine.server.options import ServerOptions\nfrom reference_engine.server.build import build\n"
        "build(ServerOptions(model='sentinel', num_blocks=8))\n"
        "print(any(name.startswith('reference_engine.faults') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_debug_page_tells_what_struck() -> None:
    injection = Injection.parse(("F41", "F20:rate=0"))

    async def use(client: Client) -> object:
        await client.complete("hello")
        return await client.call("/debug/faults", None)

    status, text = asyncio.run(
        with_client(serving(real=False, num_blocks=40, block_size=8), _only(injection, "F41"), use)
    )
    shown = {entry["id"]: entry for entry in json.loads(text)["faults"]}
    assert status == 200
    assert shown["F41"]["fired"] == 1


def _only(injection: Injection, name: str) -> Injection:
    injection.labs = [lab for lab in injection.labs if lab.chosen.fault.id == name]
    return injection


def test_a_fault_that_cannot_be_put_in_is_refused() -> None:
    subject = serving(real=True, num_blocks=40, block_size=8)
    if getattr(subject.engine._runner, "host", None) is None:
        with pytest.raises(ConfigError, match="F11"):
            Injection.parse(("F11",)).into(subject)


def test_benign_variants_change_the_options() -> None:
    given = ServerOptions(num_blocks=100)
    assert Injection.parse((), ("N2",)).options(given).dtype == "bfloat16"
    assert Injection.parse((), ("N5:tokens=64",)).options(given).max_num_batched_tokens == 64
    larger = Injection.parse((), ("N6:size=32",)).options(given)
    assert (larger.block_size, larger.num_blocks) == (32, 50)


def test_sizing_for_query_heads_shrinks_the_pool() -> None:
    right = num_blocks_for(1 << 20, MODEL_CONFIG, 16, torch.float32)
    injection = Injection.parse(("F66",))
    injection.before_build()
    try:
        assert num_blocks_for(1 << 20, MODEL_CONFIG, 16, torch.float32) == right // 2
    finally:
        injection.remove()
    assert num_blocks_for(1 << 20, MODEL_CONFIG, 16, torch.float32) == right


def test_a_real_server_takes_faults_from_the_command_line() -> None:
    command = [
        sys.executable,
        "-m",
        "reference_engine.server",
        "--model",
        "sentinel",
        "--port",
        "0",
        "--num-blocks",
        "64",
    ]
    command += ["--inject-fault", "F41:by=-2", "--inject-fault", "F42", "--benign", "N5", "--debug-endpoints"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        call = urllib.request.Request(
            url + "/v1/completions",
            json.dumps({"prompt": "hi", "max_tokens": 5, "ignore_eos": True}).encode(),
            {"Content-Type": "application/json"},
        )
        answer = json.load(urllib.request.urlopen(call, timeout=60))
        assert answer["usage"]["completion_tokens"] == 3
        assert answer["choices"][0]["finish_reason"] == "stop"
        shown = json.load(urllib.request.urlopen(url + "/debug/faults", timeout=60))["faults"]
        assert [(one["id"], one["fired"]) for one in shown] == [("F41", 1), ("F42", 1), ("N5", 0)]
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_the_list_is_one_json_document() -> None:
    command = [sys.executable, "-m", "reference_engine.faults", "--list", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["schema"] == "pagedbench.faults/1"
    assert {entry["id"] for entry in document["faults"]} == set(catalogue())


def test_where_a_fault_can_be_seen_is_said_in_options_of_the_server() -> None:
    known = {field.name for field in fields(ServerOptions)} | {"sliding_window"}
    for entry in catalogue().values():
        assert set(entry.seen_with) <= known, entry.id
