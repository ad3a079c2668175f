"""Every fault strikes when its trigger comes, and changes what a client sees; a clean engine shows no change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine
from reference_engine.faults.lab import Injection
from reference_engine.faults.registry import catalogue
from reference_engine.request import Request, SamplingParams
from reference_engine.server.api import ServedModel
from reference_engine.server.build import Serving
from tests.reference_engine import hash_model
from tests.reference_engine.faults.rig import Observed, exercise, serving, with_client

BLOCKS, BLOCK_SIZE = 40, 8

# The scene in which a fault shows, on real attention over a real pool or on a hash of the pool's tokens.
SCENES = {
    ("hits", True): "F01 F02 F05 F06 F07 F12 F14 F15 F16 F17 F18 F20 F25 P8 P14 K9 K15 K22 B4",
    ("crowd", True): "F03 F10 F19 F21 F22 F23 P1 P12 A3 K3 K7 R13",
    ("hang_ups", True): "P6 P17",
    ("wire", True): "F38 K1 E4",
    ("hits", False): "F04 F08 F33 F56 F59 F57 F60 F61 P2 A6 B5",
    ("crowd", False): "F24 F26 F54 F63 A19 K5 R2 R4",
    ("drawing", False): "E9 E10 F09 F27 F28 F29 F30 F31 F32 F34 F35 F36 F43 F44 F47 F64",
    ("wire", False): "F37 F39 F40 F41 F42 F45 F46 F49 F55 F62 F65 B6 B13 E1 E2 E3 E5 E6 E11 E12",
    ("hang_ups", False): "F13 F48 F52 A5 A8",
    ("forms", False): "F50 F51",
}
SHOWS = {name: scene for scene, names in SCENES.items() for name in names.split()}
# With the values at which one short scene is enough.
SETTINGS = {
    "F14": "rate=0.3",
    "F26": "rate=0.2",
    "F28": "rate=1",
    "F35": "spread=100",
    "F36": "rate=0.05",
    "F47": "rate=0.5",
    "F50": "every=2",
    "F48": "rate=0.5",
    "F64": "rate=0.5",
    "F39": "rate=0.3",
    "F21": "by=-30",
    "F22": "above=100,partition=32",
    "F60": "how=wrong",
    "K7": "short=60,long=100",
    "K15": "residue=0",
    "K22": "window=24",
    "F63": "load=3",
}
# Which requests share a step, and which block lies where, is left to the clock: some faults have no occasion, or miss every
# answer, now and then.
TRIES = 20
# What shows of these is an order, a delay, a size, or needs a pool on the host: they have tests of their own.
ELSEWHERE = {"F11", "F53", "F58", "F66", "E7", "E8"}
FAULTS = [entry.id for entry in catalogue().values() if entry.kind == "fault" and entry.id not in ELSEWHERE]


def observe(scene: str, real: bool, injection: Injection, window: int | None = None) -> Observed:
    subject = serving(real=real, num_blocks=BLOCKS, block_size=BLOCK_SIZE, window=window)
    return asyncio.run(with_client(subject, injection, lambda client: exercise(client, scene, real)))


@cache
def clean(scene: str, real: bool, window: int | None = None) -> Observed:
    return observe(scene, real, Injection([]), window)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_strikes_and_shows(name: str) -> None:
    scene, real = SHOWS[name]
    window = 100 if name == "F21" else None
    whole = clean(scene, real, window)
    fired = []
    for _ in range(TRIES):
        injection = Injection.parse((f"{name}:{SETTINGS.get(name, '')}",))
        broken = observe(scene, real, injection, window)
        fired.append(injection.labs[0].fired)
        if fired[-1] and any(whole[key] != broken[key] for key in whole):
            return
    raise AssertionError(f"{name} never struck so that it showed; its strikes in each try: {fired}")


@pytest.mark.parametrize("scene", ["hits", "crowd", "wire", "hang_ups"])
@pytest.mark.parametrize("real", [True, False])
def test_without_faults_nothing_changes(scene: str, real: bool) -> None:
    again = observe(scene, real, Injection([]))
    assert {key for key in again if again[key] != clean(scene, real)[key]} == set()


@contextmanager
def engine_with(*faults: str, num_blocks: int = 200, **settings: int) -> Iterator[tuple[Engine, Injection]]:
    """An engine on the hash model, without a server.  What the faults replaced is put back, however it ends."""
    engine, _ = hash_model.make_engine(num_blocks=num_blocks, block_size=8, audit_every=0, **settings)
    tokenizer = hash_model.ByteTokenizer()
    model = ServedModel("m", tokenizer, 400, "fp", {}, {})
    injection = Injection.parse(faults)
    try:
        injection.into(Serving(engine, model, TokenTable(tokenizer)))
        yield engine, injection
    finally:
        injection.remove()


def request(name: str, length: int, max_tokens: int) -> Request:
    prompt = tuple(97 + (sum(map(ord, name)) + i) % 26 for i in range(length))
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True))


def finished_in_order(*faults: str) -> list[str]:
    order = []
    with engine_with(*faults, max_num_seqs=1) as (engine, _):
        for name in ("first", "second", "third"):
            engine.add(request(name, 20, 5))
        while engine.has_work:
            order += [output.request_id for output in engine.step() if output.finish_reason is not None]
    return order


def test_the_newest_goes_first_under_f53() -> None:
    assert finished_in_order() == ["first", "second", "third"]
    assert finished_in_order("F53") == ["third", "second", "first"]


def decodes_beside_a_long_prompt(*faults: str) -> int:
    """Tokens that a running request gets while 300 tokens of another one's prompt are computed."""
    with engine_with(*faults, max_num_batched_tokens=64, max_model_len=512) as (engine, _):
        engine.add(request("short", 10, 100))
        for _ in range(3):
            engine.step()
        engine.add(request("long", 300, 3))
        count = 0
        while "long" not in (outputs := [output.request_id for output in engine.step()]):
            count += outputs.count("short")
        return count


def test_decodes_stall_under_f58() -> None:
    assert decodes_beside_a_long_prompt() >= 4
    assert decodes_beside_a_long_prompt("F58") <= 2


def ended(*faults: str, length: int, max_tokens: int, count: int = 1) -> tuple[int, int]:
    """Of ``count`` requests on a pool of 160 slots: how many end; and the strikes."""
    done = 0
    with engine_with(*faults, num_blocks=20, max_model_len=160) as (engine, injection):
        for number in range(count):
            engine.add(request(f"{number} of {count}", length, max_tokens))
        while engine.has_work:
            done += sum(output.finish_reason is not None for output in engine.step())
    return done, sum(lab.fired for lab in injection.labs)


def test_a_request_of_the_whole_pool_cannot_end_under_e7() -> None:
    assert ended(length=150, max_tokens=10) == (1, 0)
    assert ended("E7", length=140, max_tokens=10) == (1, 0)
    with pytest.raises(RuntimeError, match="no sequence can advance"):
        ended("E7", length=150, max_tokens=10)


def test_preempted_requests_are_forgotten_under_e8() -> None:
    assert ended(length=40, max_tokens=60, count=5) == (5, 0)
    done, fired = ended("E8:rate=1", length=40, max_tokens=60, count=5)
    assert (done < 5, done + fired) == (True, 5)
