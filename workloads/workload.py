"""What a workload is, and how one is named on the command line: ``name`` or ``name:key=value,key=value``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from workloads.request import Load, RequestSpec, WorkloadError
from workloads.tokens import TokenCounter

Endpoint = Literal["chat", "completions"]


@runtime_checkable
class Workload(Protocol):
    """A kind of load with its parameters, a frozen dataclass whose fields are the parameters of the command line."""

    name: ClassVar[str]
    endpoint: Endpoint

    def loads(self) -> tuple[Load, ...]:
        """The load levels to drive when the user names none."""
        ...

    def requests(
        self, count: int, seed: int, counter: TokenCounter, max_model_len: int | None = None
    ) -> tuple[RequestSpec, ...]:
        """``count`` requests, a pure function of the arguments; a request's ``index`` is its place.

        No prompt + output is longer than ``max_model_len``.
        """
        ...


def climbs(workload: Workload) -> bool:
    """Whether the loads of a workload are a staircase, to be climbed only until throughput stops rising."""
    return bool(getattr(workload, "is_staircase", False))


def parameters(workload: Workload) -> dict[str, Any]:
    """The parameters of a workload, for the record."""
    names = {f.name for f in fields(workload) if f.init}  # type: ignore[arg-type]
    return {name: value for name, value in asdict(workload).items() if name in names}  # type: ignore[call-overload]


def default_count(workload: Workload, load: Load) -> int | None:
    """How many requests a workload itself brings at a load; None when any number makes sense."""
    count = getattr(workload, "default_count", None)
    return None if count is None else int(count(load))


def describe(requests: Sequence[RequestSpec]) -> dict[str, Any]:
    """What a schedule came to: realised means (tokens) and whether a tokenizer confirmed every length."""
    n = len(requests)
    return {
        "requests": n,
        "prompt_tokens_mean": sum(r.prompt_tokens for r in requests) / n if n else None,
        "output_tokens_mean": sum(r.output_tokens for r in requests) / n if n else None,
        "shared_tokens_share": sum(r.shared_tokens for r in requests) / max(1, sum(r.prompt_tokens for r in requests)),
        "exact": all(r.exact for r in requests),
    }


def suggest(word: str, known: Sequence[str]) -> str:
    """The end of an error sentence about an unknown word: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"


def build(kind: type[Any], values: Mapping[str, Any]) -> Workload:
    """An instance of the workload class ``kind``; string values are converted to the type of the default."""
    known = {f.name: f for f in fields(kind) if f.init}
    converted: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise WorkloadError(f"workload {kind.name} has no parameter {key!r}; {suggest(name, list(known))}")
        default = known[name].default
        assert default is not MISSING, f"{kind.__name__}.{name} needs a default"
        converted[name] = _convert(kind.name, key, value, default)
    instance: Workload = kind(**converted)
    return instance


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """``name:key=value,key=value`` as the name and its parameters."""
    name, _, rest = spec.partition(":")
    values: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise WorkloadError(f"workload parameter {part!r} has no value; write {name}:key=value,key=value")
        values[key.strip()] = value.strip()
    return name.strip(), values


def _convert(workload: str, key: str, value: Any, default: Any) -> Any:
    """``value`` as the type of ``default``; lists of numbers may be written ``1+2+4``."""
    try:
        if isinstance(default, tuple):
            parts = value.split("+") if isinstance(value, str) else value
            parts = parts if isinstance(parts, (list, tuple)) else [parts]
            if any(isinstance(part, str) for part in default):  # names, not numbers
                return tuple(parts)
            return tuple(int(part) for part in parts)
        if isinstance(default, bool) or isinstance(value, bool):
            raise ValueError("not a number")
        if isinstance(default, int):
            if float(value) != int(float(value)):
                raise ValueError("not a whole number")
            return int(float(value))
        if isinstance(default, float):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        kind = {tuple: "whole numbers joined by +", int: "a whole number"}.get(type(default), "a number")
        raise WorkloadError(f"workload {workload}: {key} must be {kind}, not {value!r}") from None
    return str(value)
