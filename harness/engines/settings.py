"""Settings of a recipe: typed values that become options or environment variables of an engine's command."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from harness.engines.errors import RecipeError

Value = str | int | float | bool | list[str]

BYTE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
TRUE_WORDS = {"1", "true", "yes", "on"}
FALSE_WORDS = {"0", "false", "no", "off"}


def parse_bytes(text: str) -> int:
    """Bytes in ``text``: a number with an optional unit (``200MiB``, ``1.5 GiB``, ``64MB``, ``1048576``)."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in BYTE_UNITS:
        raise ValueError(f"{text!r} is not a size in bytes; write it like 200MiB or 1.5GiB")
    return round(float(match[1]) * BYTE_UNITS[match[2]])


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the nearest known name, or the list of all when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


class Setting(BaseModel):
    """One thing about an engine that a user may set, and how the engine is told.

    With ``flag`` the value follows that option (a bool: the option alone when true, ``off_flag`` when false).  With
    ``variable`` it becomes an environment variable.  With neither it only fills ``{name}`` in the command.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    help: str
    type: Literal["str", "int", "float", "bool", "bytes", "args"] = "str"
    unit: str | None = None  # for people: tokens, blocks, seconds ...
    flag: str | None = None
    off_flag: str | None = None
    variable: str | None = None
    default: Value | None = None
    required: bool = False
    choices: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def check(self) -> Setting:
        if self.off_flag and self.type != "bool":
            raise ValueError("off_flag belongs to settings of type bool")
        if self.flag and self.variable:
            raise ValueError("give a flag or a variable, not both")
        return self

    def parse(self, name: str, value: Any) -> Value:
        """``value`` (from YAML or the command line) in this setting's type.  Raises RecipeError."""
        try:
            parsed = self._convert(value)
        except (TypeError, ValueError) as error:
            detail = str(error) if self.type == "bytes" and isinstance(value, str) else f"{value!r} is not {self.type}"
            raise RecipeError(f"setting {name!r}: {detail}") from None
        if self.choices is not None and str(parsed) not in self.choices:
            raise RecipeError(f"setting {name!r}: {parsed!r} is not one of {', '.join(self.choices)}")
        return parsed

    def _convert(self, value: Any) -> Value:
        match self.type:
            case "bool":
                return self._convert_bool(value)
            case "int":
                if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                    raise ValueError(value)
                return int(value)
            case "float":
                return float(value)
            case "bytes":
                return parse_bytes(str(value))
            case "args":
                return shlex.split(value) if isinstance(value, str) else [str(part) for part in value]
            case _:
                if isinstance(value, (dict, list)):
                    raise ValueError(value)
                return str(value)

    @staticmethod
    def _convert_bool(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        word = str(value).lower()
        if word not in TRUE_WORDS | FALSE_WORDS:
            raise ValueError(value)
        return word in TRUE_WORDS

    def options(self, value: Value) -> list[str]:
        """The command-line words that carry ``value``."""
        if self.type == "args":
            return list(value) if isinstance(value, list) else [str(value)]
        if self.type == "bool":
            chosen = self.flag if value else self.off_flag
            return [chosen] if chosen else []
        return [self.flag, str(value)] if self.flag else []


def resolve(settings: Mapping[str, Setting], given: Mapping[str, Any], recipe: str) -> dict[str, Value]:
    """Defaults and ``given`` values, parsed.  Raises RecipeError for unknown, missing and wrongly typed ones."""
    for name in given:
        if name not in settings:
            raise RecipeError(f"recipe {recipe!r} has no setting {name!r}; {nearest(name, settings)}")
    values: dict[str, Value] = {}
    for name, setting in settings.items():
        value = given.get(name, setting.default)
        if value is not None:
            values[name] = setting.parse(name, value)
        elif setting.required:
            raise RecipeError(f"recipe {recipe!r} needs the setting {name!r} ({setting.help})")
    return values
