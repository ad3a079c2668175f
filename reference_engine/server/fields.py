"""Strict reading of a JSON body, one field at a time.  A wrong type or range is a 400 that names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from reference_engine.server.errors import ApiError

INT64 = (-(2**63), 2**63 - 1)


def wrong(param: str, message: str) -> ApiError:
    return ApiError(f"{param}: {message}", param=param)


def _kind(value: object) -> str:
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null")


class Fields:
    """A JSON object.  A field that is absent or null has its default; fields nobody asks for are ignored."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def get(self, name: str) -> Any:
        return self._body.get(name)

    def integer(self, name: str, default: int | None = None, *, low: int, high: int = INT64[1]) -> int | None:
        value = self._body.get(name)
        if value is None:
            return default
        if type(value) is not int:
            raise wrong(name, f"must be an integer, not {_kind(value)}")
        if not low <= value <= high:
            raise wrong(name, f"must be at least {low}, not {value}" if high == INT64[1] else _range(low, high, value))
        return value

    def number(self, name: str, default: float, *, low: float, high: float, above: bool = False) -> float:
        """``above``: ``low`` itself is excluded."""
        value = self._body.get(name)
        if value is None:
            return default
        if type(value) not in (int, float):
            raise wrong(name, f"must be a number, not {_kind(value)}")
        if not low <= value <= high or (above and value == low) or not math.isfinite(value):
            raise wrong(
                name, f"must be above {low} and at most {high}, not {value}" if above else _range(low, high, value)
            )
        return float(value)

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self._body.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise wrong(name, f"must be true or false, not {_kind(value)}")
        return value

    def string(self, name: str) -> str | None:
        value = self._body.get(name)
        if value is not None and type(value) is not str:
            raise wrong(name, f"must be a string, not {_kind(value)}")
        return value

    def strings(self, name: str, *, most: int) -> tuple[str, ...]:
        """A string or a list of strings, none of them empty."""
        value = self._body.get(name)
        if value is None:
            return ()
        values = [value] if type(value) is str else value
        if type(values) is not list or not all(type(item) is str for item in values):
            raise wrong(name, "must be a string or a list of strings")
        if len(values) > most:
            raise wrong(name, f"holds {len(values)} strings; at most {most} are possible")
        if not all(values):
            raise wrong(name, "must not hold an empty string")
        return tuple(values)

    def integers(self, name: str) -> tuple[int, ...]:
        value = self._body.get(name)
        if value is None:
            return ()
        if type(value) is not list or not all(type(item) is int for item in value):
            raise wrong(name, "must be a list of integers")
        return tuple(value)

    def object(self, name: str) -> dict[str, Any] | None:
        value = self._body.get(name)
        if value is not None and type(value) is not dict:
            raise wrong(name, f"must be an object, not {_kind(value)}")
        return value


def _range(low: float, high: float, value: float) -> str:
    return f"must be from {low} to {high}, not {value}"
