"""Settings: types, units, options, and sentences for what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from harness.engines.errors import RecipeError
from harness.engines.settings import Setting, parse_bytes, resolve


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 2**20),
        ("200MiB", 200 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("64MB", 64 * 10**6),
        ("2g", 2**31),
        (" 7 kib ", 7 * 1024),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e6", "12 parsecs", "1.2.3MiB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="200MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("kind", "value", "parsed"),
    [
        ("int", "8", 8),
        ("int", 8.0, 8),
        ("float", "0.5", 0.5),
        ("bool", "yes", True),
        ("bool", "off", False),
        ("bool", True, True),
        ("bytes", 4096, 4096),
        ("str", 7, "7"),
        ("args", "--a 'b c'", ["--a", "b c"]),
        ("args", ["--n", 3], ["--n", "3"]),
    ],
)
def test_values_take_their_type(kind: Any, value: Any, parsed: Any) -> None:
    result = Setting(help="h", type=kind).parse("name", value)
    assert result == parsed
    assert type(result) is type(parsed)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("int", "8.5"), ("int", True), ("int", "many"), ("float", "x"), ("bool", "maybe"), ("bytes", "big"), ("str", {})],
)
def test_wrong_types_name_the_setting(kind: Any, value: Any) -> None:
    with pytest.raises(RecipeError, match="setting 'block_size'"):
        Setting(help="h", type=kind).parse("block_size", value)


def test_choices() -> None:
    setting = Setting(help="h", choices=("paged", "contiguous"))
    assert setting.parse("policy", "paged") == "paged"
    with pytest.raises(RecipeError, match="paged, contiguous"):
        setting.parse("policy", "pagd")


def test_options() -> None:
    assert Setting(help="h", flag="--n", type="int").options(3) == ["--n", "3"]
    assert Setting(help="h", type="int").options(3) == []
    switch = Setting(help="h", flag="--on", off_flag="--off", type="bool")
    assert (switch.options(True), switch.options(False)) == (["--on"], ["--off"])
    assert Setting(help="h", flag="--on", type="bool").options(False) == []
    assert Setting(help="h", type="args").options(["--x", "1"]) == ["--x", "1"]


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="bool"):
        Setting(help="h", flag="--a", off_flag="--b")
    with pytest.raises(ValueError, match="not both"):
        Setting(help="h", flag="--a", variable="A")


def test_resolve() -> None:
    settings = {
        "model": Setting(help="the model", required=True),
        "kv_memory": Setting(help="pool", type="bytes", default="1MiB"),
        "seed": Setting(help="seed", type="int"),
    }
    assert resolve(settings, {"model": "m"}, "r") == {"model": "m", "kv_memory": 2**20}
    assert resolve(settings, {"model": "m", "kv_memory": "2MiB", "seed": None}, "r") == {
        "model": "m",
        "kv_memory": 2**21,
    }
    with pytest.raises(RecipeError, match="did you mean 'kv_memory'"):
        resolve(settings, {"model": "m", "kv_memry": 1}, "r")
    with pytest.raises(RecipeError, match="known: kv_memory, model, seed"):
        resolve(settings, {"model": "m", "zzz": 1}, "r")
    with pytest.raises(RecipeError, match="needs the setting 'model'"):
        resolve(settings, {}, "r")
