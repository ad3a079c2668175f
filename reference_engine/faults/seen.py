"""Deviations of servers that this suite has met, E1 to E3: none is a row of the catalogue of bugs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from aiohttp import web

from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.outputs import SequenceOutput
from reference_engine.server import api
from reference_engine.server.wire import Wire


@fault(
    "E1",
    "a model that does not exist is served anyway",
    source="llama.cpp's server (xllamacpp 2026.10); docs/results/conformance-llamacpp.md, API-11",
    trigger="a call that names another model",
)
def any_model(lab: Lab) -> None:
    def make(check: Callable[[Mapping[str, Any], str], None]) -> Callable[[Mapping[str, Any], str], None]:
        def faulty(body: Mapping[str, Any], served: str) -> None:
            if body.get("model") in (None, served) or not lab.fires():
                check(body, served)

        return faulty

    lab.wrap(api, "check_model", make)


@fault(
    "E2",
    "a body that is no JSON ends in a 500",
    source="transformers serve 5.23; research on engines that run on a CPU",
    trigger="a body that is no JSON",
)
def broken_body(lab: Lab) -> None:
    def make(read: Callable[[web.Request], Awaitable[dict[str, Any]]]) -> Callable[..., Awaitable[dict[str, Any]]]:
        async def faulty(request: web.Request) -> dict[str, Any]:
            try:
                orjson.loads(await request.read())
            except orjson.JSONDecodeError as error:
                if lab.fires():
                    raise RuntimeError("unhandled: the body is no JSON") from error
            return await read(request)

        return faulty

    lab.wrap(api, "read_json", make)


@fault(
    "E3",
    "usage counts one prompt token too few: the one that the tokenizer adds",
    source="class of F41; counts of the bare text are a common shortcut of servers in front of engines",
    trigger="any request",
)
def prompt_count(lab: Lab) -> None:
    def make(count: Callable[[Any, int, SequenceOutput], None]) -> Callable[[Any, int, SequenceOutput], None]:
        def faulty(self: Any, number: int, output: SequenceOutput) -> None:
            if output.prompt_tokens > 1 and lab.fires():
                output = replace(output, prompt_tokens=output.prompt_tokens - 1)
            count(self, number, output)

        return faulty

    lab.wrap(Wire, "_count", make)
