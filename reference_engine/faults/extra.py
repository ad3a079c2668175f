"""E4 to E12: broken promises that no row of the catalogue of bugs names, and that servers can break all the same."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from reference_engine.faults.kv import SMALL_POOL
from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.outputs import SequenceOutput
from reference_engine.request import FinishReason, Request
from reference_engine.server import api
from reference_engine.server.wire import Wire


def edit_calls(lab: Lab, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let ``edit`` return the body that is parsed in place of a call's.  It gives the same one where there is no occasion."""

    def make(parse: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(body: dict[str, Any], *rest: Any) -> Any:
            edited = edit(body)
            return parse(edited if edited != body and lab.fires() else body, *rest)

        return faulty

    lab.wrap(api, "parse_completion", make)
    lab.wrap(api, "parse_chat", make)


@fault(
    "E4",
    "a prompt that comes in a list is tokenized without the tokens that a bare string gets",
    source="no single report chosen; servers that batch lists through another tokenizer call",
    trigger="a list of one text, and a tokenizer that adds a token",
)
def bare_list(lab: Lab) -> None:
    def edit(body: dict[str, Any]) -> dict[str, Any]:
        given = body.get("prompt")
        is_list = isinstance(given, list) and given and isinstance(given[0], str)
        return {**body, "add_special_tokens": False} if is_list else body

    edit_calls(lab, edit)


@fault(
    "E5",
    "every chunk of a stream bears an id of its own, or a time of its own (how=time)",
    source="no single report chosen; servers that build each chunk as a new object",
    trigger="a stream of two chunks or more",
    how="id",
)
def own_ids(lab: Lab) -> None:
    counter = itertools.count()

    def make(chunk: Callable[..., bytes]) -> Callable[..., bytes]:
        def faulty(self: Any, output: SequenceOutput) -> bytes:
            data = chunk(self, output)
            if not data or not lab.fires():
                return data
            event = orjson.loads(data.removeprefix(b"data: "))
            if lab.value("how") == "id":
                event["id"] = f"cmpl-{uuid.uuid4().hex}"
            else:
                event["created"] += next(counter)
            return b"data: " + orjson.dumps(event) + b"\n\n"

        return faulty

    lab.wrap(Wire, "chunk", make)


@fault(
    "E6",
    "a choice ends twice, or goes on after its end (how=on)",
    source="no single report chosen; servers that flush their buffer after the end",
    trigger="any stream",
    how="twice",
)
def ends_twice(lab: Lab) -> None:
    def make(chunk: Callable[..., bytes]) -> Callable[..., bytes]:
        def faulty(self: Any, output: SequenceOutput) -> bytes:
            data = chunk(self, output)
            if not data or output.finish_reason is None or not lab.fires():
                return data
            if lab.value("how") == "twice":
                return data + data
            event = orjson.loads(data.removeprefix(b"data: "))
            for choice in event["choices"]:
                choice["finish_reason"] = None
            return data + b"data: " + orjson.dumps(event) + b"\n\n"

        return faulty

    lab.wrap(Wire, "chunk", make)


@fault(
    "E7",
    "a block of the pool is lost, and still counted where it is decided what fits",
    source="no single report chosen; pools that keep a block for padding and count it as theirs",
    trigger="a request that needs every block of the pool",
    needs=SMALL_POOL,
    seen_with={"num_blocks": 96, "max_model_len": 1536},
)
def last_block_kept(lab: Lab) -> None:
    lab.tolerate_lost_blocks()
    lab.kv.pool.allocate()

    def make(check_fits: Callable[[Request], None]) -> Callable[[Request], None]:
        def faulty(request: Request) -> None:
            check_fits(request)
            if len(request.prompt) + request.params.max_tokens > (lab.kv.pool.num_blocks - 1) * lab.block_size:
                lab.fires()

        return faulty

    lab.wrap(lab.kv, "check_fits", make)


@fault(
    "E8",
    "a request that was preempted is never taken up again",
    source="no single report chosen; queues that lose an entry on its way back",
    trigger="preemption",
    needs=SMALL_POOL,
    rate=0.3,
)
def forgotten(lab: Lab) -> None:
    def make(preempt: Callable[..., None]) -> Callable[..., None]:
        def faulty(draft: Any, victim: Any, beneficiary: Any) -> None:
            preempt(draft, victim, beneficiary)
            if not victim.parked and lab.fires():
                lab.scheduler.finish(victim.sequence, FinishReason.ABORT)  # and nobody is told

        return faulty

    lab.wrap(lab.scheduler, "_preempt", make)


@fault(
    "E9",
    "what a call leaves out is the server's own: top_k 40, top_p 0.95, min_p 0.05",
    source="llama.cpp's server, its documented defaults; servers that take them from generation_config.json",
    trigger="temperature above 0 and no top_p",
    top_k=40,
    top_p=0.95,
    min_p=0.05,
)
def own_defaults(lab: Lab) -> None:
    defaults = {name: lab.value(name) for name in ("top_k", "top_p", "min_p")}
    edit_calls(lab, lambda body: {**defaults, **body})


@fault(
    "E10",
    "a temperature of 1 is taken for one that was not given: the model's own, 0.7, stands",
    source="no single report chosen; servers that take what equals the API's default for not given",
    trigger="temperature 1",
    own=0.7,
)
def one_is_not_given(lab: Lab) -> None:
    edit_calls(lab, lambda body: {**body, "temperature": lab.value("own")} if body.get("temperature", 1) == 1 else body)


@fault(
    "E11",
    "the text of a stream's first chunk is lost",
    source="no single report chosen; servers that send the role, or the time to first token, in the first text's place",
    trigger="a stream of two tokens or more",
)
def first_text_lost(lab: Lab) -> None:
    def make(chunk: Callable[..., bytes]) -> Callable[..., bytes]:
        def faulty(self: Any, output: SequenceOutput) -> bytes:
            if output.num_generated == 1 and output.text and output.finish_reason is None and lab.fires():
                output = replace(output, text="")
            return chunk(self, output)

        return faulty

    lab.wrap(Wire, "chunk", make)


@fault(
    "E12",
    "a field is accepted and ignored: max_completion_tokens, or the one that field= names",
    source="no single report chosen; servers that know a field by name only",
    trigger="a call with that field",
    field="max_completion_tokens",
)
def ignored_field(lab: Lab) -> None:
    edit_calls(lab, lambda body: {name: value for name, value in body.items() if name != lab.value("field")})
