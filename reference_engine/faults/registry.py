"""The catalogue: what a fault is called, where it comes from, when it shows, what can be set.

::

    @fault("F20", "softmax scale 2 % too large", source="...", trigger="any request", factor=1.02)
    def softmax_scale(lab: Lab) -> None:
        ...                                # replaces methods of the engine that ``lab`` holds

Every fault also takes ``rate`` (share of its occasions on which it strikes), ``skip`` (occasions before the first) and
``most`` (strikes, 0 = no limit).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from reference_engine.config import ConfigError

if TYPE_CHECKING:
    from reference_engine.faults.lab import Lab
    from reference_engine.server.options import ServerOptions

Value = float | int | str
Kind = Literal["fault", "benign"]
COMMON: dict[str, Value] = {"rate": 1.0, "skip": 0, "most": 0}
THEMES = (
    "kv",
    "cache_key",
    "attention",
    "sampling",
    "api",
    "scheduling",
    "metrics",
    "rows_kv",
    "rows_engine",
    "seen",
    "extra",
    "benign",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry.

    ``needs``: options of the server without which it cannot show, for people.  ``seen_with``: options (``--num-blocks`` is
    ``num_blocks``) under which it can be seen, for programs; None takes an option away, ``sliding_window`` asks for a
    checkpoint of the sentinel with one.
    """

    id: str
    title: str
    source: str
    trigger: str
    theme: str
    kind: Kind = "fault"
    needs: tuple[str, ...] = ()
    parameters: Mapping[str, Value] = field(default_factory=dict)
    seen_with: Mapping[str, Value | None] = field(default_factory=dict)
    install: Callable[[Lab], None] | None = None
    options: Callable[[ServerOptions, Mapping[str, Value]], ServerOptions] | None = None
    early: Callable[[Lab], None] | None = None  # before the engine is built


CATALOGUE: dict[str, Fault] = {}


def fault(
    id: str,
    title: str,
    *,
    source: str,
    trigger: str,
    kind: Kind = "fault",
    needs: tuple[str, ...] = (),
    seen_with: Mapping[str, Value | None] | None = None,
    early: bool = False,
    **parameters: Value,
) -> Callable[[Callable[[Lab], None]], Callable[[Lab], None]]:
    """Declare the decorated function as what installs a fault.  ``early``: before the engine is built, not after."""

    def declare(install: Callable[[Lab], None]) -> Callable[[Lab], None]:
        theme = install.__module__.rpartition(".")[2]
        entry = Fault(id, title, source, trigger, theme, kind, needs, {**COMMON, **parameters}, seen_with or {})
        add(replace(entry, early=install) if early else replace(entry, install=install))
        return install

    return declare


def add(entry: Fault) -> None:
    if entry.id in CATALOGUE:
        raise ValueError(f"fault {entry.id} is declared twice")
    CATALOGUE[entry.id] = entry


def catalogue() -> dict[str, Fault]:
    """All faults by id, in the order of the themes."""
    for theme in THEMES:
        import_module(f"reference_engine.faults.{theme}")
    return CATALOGUE


@dataclass(frozen=True, slots=True)
class Chosen:
    """A fault and the values of its parameters."""

    fault: Fault
    parameters: Mapping[str, Value]


def choose(text: str, kind: Kind = "fault") -> Chosen:
    """Read ``ID[:key=value,...]``.  Raises ConfigError naming what is wrong."""
    flag = "--inject-fault" if kind == "fault" else "--benign"
    name, _, rest = text.partition(":")
    known = {id: entry for id, entry in catalogue().items() if entry.kind == kind}
    entry = known.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"{flag} {name!r} is not in the catalogue (python -m reference_engine.faults --list){hint}")
    values = dict(entry.parameters)
    for part in filter(None, rest.split(",")):
        key, sign, written = part.partition("=")
        if key not in values or not sign:
            raise ConfigError(f"{flag} {name}: {part!r} is no setting; write key=value with one of {', '.join(values)}")
        values[key] = _read(f"{flag} {name}: {key}", written, type(values[key]))
    if not 0.0 <= float(values["rate"]) <= 1.0:
        raise ConfigError(f"{flag} {name}: rate must be from 0 to 1, not {values['rate']}")
    return Chosen(entry, values)


def _read(what: str, written: str, kind: type) -> Value:
    try:
        value: Value = kind(written)
    except ValueError:
        raise ConfigError(f"{what} must be {'a number' if kind is float else 'an integer'}, not {written!r}") from None
    return value
