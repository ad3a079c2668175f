"""Every fault strikes when its trigger comes, and changes what a client sees; a clean engine shows no change."""

from __future__ import annotations

import asyncio
from functools import cache

import pytest

from reference_engine.faults.lab import Injection
from reference_engine.faults.registry import catalogue
from tests.reference_engine.faults.rig import Observed, exercise, serving, with_client

BLOCKS, BLOCK_SIZE = 40, 8

# Where a fault shows: the scene, and whether real attention over a real pool is needed.
REAL_HITS, REAL_CROWD, REAL_HANG_UPS = ("hits", True), ("crowd", True), ("hang_ups", True)
HITS, CROWD, DRAWING, WIRE, HANG_UPS = ((name, False) for name in ("hits", "crowd", "drawing", "wire", "hang_ups"))
SHOWS: dict[str, tuple[str, bool]] = {
    **dict.fromkeys("F01 F02 F07 F12 F14 F05 F06 F15 F16 F17 F18 F20 F25 P8 P14 K15 K22 B4".split(), REAL_HITS),
    **dict.fromkeys("F19 R13 F03 F10 F21 F22 F23 P1 P12 A3 K3 K7".split(), REAL_CROWD),
    **dict.fromkeys("P6 P17".split(), REAL_HANG_UPS),
    **dict.fromkeys("F08 F33 F56 F61 P2 F04 A6 B5 F59 F60".split(), HITS),
    **dict.fromkeys("F24 F26 F54 F57 F63 A19 K5 R2 R4".split(), CROWD),
    **dict.fromkeys("F27 F28 F29 F30 F31 F32 F34 F35 F36 F43 F44 F09 F64 F47".split(), DRAWING),
    **dict.fromkeys("F37 F39 F40 F41 F42 F45 F46 F49 F55 F62 F65 B6 B13".split(), WIRE),
    **dict.fromkeys("F38 K1".split(), ("wire", True)),
    **dict.fromkeys("F48 F52 F13 A5 A8".split(), HANG_UPS),
}
# With the values at which one short scene is enough.
SETTINGS = {
    "F14": "rate=0.3",
    "F26": "rate=0.2",
    "F28": "rate=1",
    "F35": "spread=100",
    "F36": "rate=0.05",
    "F47": "rate=0.5",
    "F48": "rate=0.5",
    "F64": "rate=0.5",
    "F39": "rate=0.3",
    "F21": "by=-30",
    "F22": "above=100,partition=32",
    "F60": "how=wrong",
    "K7": "short=60,long=100",
    "K15": "residue=0",
    "K22": "window=24",
    "F15": "",
    "F63": "load=3",
}
# What others see is time or memory: their own tests are below.
ELSEWHERE = {"F11", "F53", "F58", "F66", "K9"}
# Too small to flip an answer of the sentinel; what they change is logprobs, which the scene asks for.
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
    injection = Injection.parse((f"{name}:{SETTINGS.get(name, '')}",))
    broken = observe(scene, real, injection, window)
    assert injection.labs[0].fired, f"{name} had {injection.labs[0].occasions} occasions"
    whole = clean(scene, real, window)
    assert {key for key in whole if whole[key] != broken[key]}, f"{name} fired and nothing changed"


@pytest.mark.parametrize("scene", ["hits", "crowd", "wire", "hang_ups"])
@pytest.mark.parametrize("real", [True, False])
def test_without_faults_nothing_changes(scene: str, real: bool) -> None:
    again = observe(scene, real, Injection([]))
    assert {key for key in again if again[key] != clean(scene, real)[key] and key not in ("twice",)} == set()
