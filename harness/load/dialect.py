"""How one engine is spoken to, and the bytes of a request in that dialect, encoded before the load begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from workloads.request import RequestSpec

PATHS = {"chat": "v1/chat/completions", "completions": "v1/completions"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """What an engine's API understands, as found by probing.  Unknown engines get the strict common part."""

    model: str
    ignore_eos: bool = True  # accepts ``ignore_eos``: answers then have exactly the planned length
    min_tokens: bool = False  # accepts ``min_tokens``, a second way to the planned length
    include_usage: bool = True  # accepts ``stream_options``
    sends_done: bool = True  # ends a stream with [DONE]
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # the user's own fields, which win over ours

    @property
    def fixes_lengths(self) -> bool:
        """Whether answers can be made as long as planned."""
        return self.ignore_eos or self.min_tokens


class Prepared(NamedTuple):
    """A request ready to be written: where to and what."""

    spec: RequestSpec
    path: str
    body: bytes


def prepare(spec: RequestSpec, dialect: Dialect) -> Prepared:
    """Encode ``spec`` for an engine."""
    document: dict[str, Any] = {"model": dialect.model, "stream": True, "max_tokens": spec.output_tokens}
    if spec.messages is not None:
        path = PATHS["chat"]
        document["messages"] = spec.messages
    else:
        path = PATHS["completions"]
        document["prompt"] = spec.prompt
    document["temperature"] = spec.sampling.temperature
    if spec.n > 1:
        document["n"] = spec.n
    if spec.sampling.top_p != 1.0:
        document["top_p"] = spec.sampling.top_p
    if spec.sampling.seed is not None:
        document["seed"] = spec.sampling.seed
    if dialect.include_usage:
        document["stream_options"] = {"include_usage": True}
    if dialect.ignore_eos:
        document["ignore_eos"] = True
    elif dialect.min_tokens:
        document["min_tokens"] = spec.output_tokens
    document.update(dialect.extra_body)
    return Prepared(spec, path, orjson.dumps(document))
