"""Faults of the HTTP layer: F37 to F52 and F65."""

from __future__ import annotations

import codecs
import itertools
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from aiohttp import web

from reference_engine import penalties
from reference_engine.detokenizer import Detokenizer
from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.faults.tools import on_request
from reference_engine.outputs import SequenceOutput
from reference_engine.request import FinishReason
from reference_engine.server.api import GenerationApi
from reference_engine.server.fields import Fields
from reference_engine.server.loop import EngineLoop
from reference_engine.server.tool_calls import CallReader
from reference_engine.server.wire import DONE, Wire


@fault(
    "F37",
    "parts of a stop string leak: a stop that spans tokens is not seen",
    source="vllm-project/vllm#3574, #3672, #8468",
    trigger="a stop string that begins in one token and ends in another",
)
def stop_string_leaks(lab: Lab) -> None:
    def make(held_back: Callable[[Any, str], int]) -> Callable[[Any, str], int]:
        def faulty(self: Any, text: str) -> int:
            held = held_back(self, text)
            return 0 if held and lab.fires() else held

        return faulty

    lab.wrap(Detokenizer, "_held_back", make)


@fault(
    "F38",
    "a character split over tokens becomes U+FFFD in streams",
    source="abetlen/llama-cpp-python#372",
    trigger="a streamed character of several tokens",
)
def split_characters(lab: Lab) -> None:
    decode = codecs.lookup("utf-8").decode

    def make(chunk: Callable[..., bytes]) -> Callable[..., bytes]:
        def faulty(self: Any, output: SequenceOutput) -> bytes:
            data = b"" if output.token is None else self._tokens.shown(output.token)
            text = decode(data, "replace")[0]
            if "\ufffd" in text and output.finish_reason is None and lab.fires():
                output = replace(output, text=text)
            return chunk(self, output)

        return faulty

    lab.wrap(Wire, "chunk", make)


@fault(
    "F39",
    "a streamed chunk is doubled, or lost (how=lost)",
    source="ggml-org/llama.cpp#10914",
    trigger="a stream of some tens of tokens",
    rate=0.05,
    how="doubled",
)
def chunk_doubled(lab: Lab) -> None:
    def make(chunk: Callable[..., bytes]) -> Callable[..., bytes]:
        def faulty(self: Any, output: SequenceOutput) -> bytes:
            data = chunk(self, output)
            if not data or output.finish_reason is not None or not lab.fires():
                return data
            return data + data if lab.value("how") == "doubled" else b""

        return faulty

    lab.wrap(Wire, "chunk", make)


@fault(
    "F40",
    "a stream ends without [DONE], or with a usage chunk that has choices (how=usage)",
    source="huggingface transformers serve ends streams without [DONE]",
    trigger="any stream; with how=usage one with include_usage",
    how="done",
)
def no_done(lab: Lab) -> None:
    def make(closing: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        def faulty(self: Any) -> bytes:
            data = closing(self)
            if not lab.fires():
                return data
            if lab.value("how") == "usage":
                return data.replace(b'"choices":[]', b'"choices":[{"index":0,"text":"","finish_reason":null}]')
            return data.removesuffix(DONE)

        return faulty

    lab.wrap(Wire, "closing", make)


@fault(
    "F41",
    "usage counts one completion token too few",
    source="sgl-project/sglang#11900 (usage that cannot be)",
    trigger="any request",
    by=-1,
)
def usage_wrong(lab: Lab) -> None:
    def make(usage: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        def faulty(self: Any) -> dict[str, Any]:
            counts = usage(self)
            if lab.fires():
                counts["completion_tokens"] = max(0, counts["completion_tokens"] + int(lab.value("by")))
                counts["total_tokens"] = counts["prompt_tokens"] + counts["completion_tokens"]
            return counts

        return faulty

    lab.wrap(Wire, "usage", make)


@fault(
    "F42",
    "finish_reason is always stop",
    source="sgl-project/mini-sglang (constant finish_reason)",
    trigger="a request that reaches its limit",
)
def finish_reason_constant(lab: Lab) -> None:
    def make(finish_reason: Callable[..., str | None]) -> Callable[..., str | None]:
        def faulty(self: Any, output: SequenceOutput) -> str | None:
            reason = finish_reason(self, output)
            return "stop" if reason == "length" and lab.fires() else reason

        return faulty

    lab.wrap(Wire, "_finish_reason", make)


@fault(
    "F43",
    "the n choices are equal, or now and then carry each other's index (how=index)",
    source="ggml-org/llama.cpp and others that ignore n or seed + index",
    trigger="n > 1",
    how="equal",
)
def choices_equal(lab: Lab) -> None:
    if lab.value("how") == "index":

        def make(take: Callable[..., Any]) -> Callable[..., Any]:
            def faulty(self: Any, output: SequenceOutput) -> Any:
                n = self.call.params.n
                # A constant exchange of names could not be told from choices that were drawn in another order.
                if n > 1 and lab.random.random() < 0.3 and lab.fires():
                    output = replace(output, index=n - 1 - output.index)
                return take(self, output)

            return faulty

        lab.wrap(Wire, "chunk", make)
        lab.wrap(Wire, "absorb", make)
        return

    def make_sample(sample: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(logits: Any, draws: Any) -> Any:
            return sample(logits, [replace(draw, index=0) if draw.index and lab.fires() else draw for draw in draws])

        return faulty

    lab.wrap(lab.engine._sampler, "sample", make_sample)


@fault("F44", "max_tokens is off by one", source="no single report chosen", trigger="any request", by=1)
def limit_off_by_one(lab: Lab) -> None:
    def edit(request: Any) -> None:
        limit = request.params.max_tokens + int(lab.value("by"))
        if 0 < limit <= lab.engine.scheduler_config.max_model_len - len(request.prompt) and lab.fires():
            request.params = replace(request.params, max_tokens=limit)

    on_request(lab, edit)


@fault(
    "F45",
    "long prompts are cut silently",
    source="ollama and others cut to the context; vllm's truncate_prompt_tokens unasked",
    trigger="a prompt beyond the context",
)
def silent_truncation(lab: Lab) -> None:
    def edit(request: Any) -> None:
        room = lab.engine.scheduler_config.max_model_len - request.params.max_tokens
        if 0 < room < len(request.prompt) and lab.fires():
            request.prompt = request.prompt[-room:]
        elif room <= 0 and lab.fires():
            room = max(1, lab.engine.scheduler_config.max_model_len - 1)
            request.prompt = request.prompt[-room:]
            request.params = replace(request.params, max_tokens=1)

    on_request(lab, edit)


@fault(
    "F46",
    "parameters out of range are taken as the nearest in range, or end in a 500 (how=500)",
    source="transformers serve and llama.cpp answer 500 or accept",
    trigger="temperature 3, n 0, top_p 2 and the like",
    how="accepted",
)
def bad_parameters_accepted(lab: Lab) -> None:
    def make(read: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(self: Any, name: str, *default: Any, low: float, high: float = 2**63 - 1, **named: Any) -> Any:
            value = self.get(name)
            if type(value) in (int, float) and not low <= value <= high and lab.fires():
                if lab.value("how") != "accepted":
                    raise RuntimeError(f"{name} is {value}")
                return type(value)(min(max(value, low), high))
            return read(self, name, *default, low=low, high=high, **named)

        return faulty

    lab.wrap(Fields, "integer", make)
    lab.wrap(Fields, "number", make)


@fault(
    "F47",
    "a request that fails on the way looks as if it had ended well",
    source="vllm-project/vllm#16832 (incomplete output, clean end)",
    trigger="any request of more than `after` tokens",
    rate=0.05,
    after=4,
)
def error_hidden(lab: Lab) -> None:
    def make(accept: Callable[..., SequenceOutput]) -> Callable[..., SequenceOutput]:
        def faulty(job: Any, sequence: Any, logprob: Any, now: int) -> SequenceOutput:
            output = accept(job, sequence, logprob, now)
            if output.num_generated != int(lab.value("after")) or output.finish_reason is not None or not lab.fires():
                return output
            lab.engine._finish(job, sequence, FinishReason.STOP, now)
            return replace(output, finish_reason=FinishReason.STOP)

        return faulty

    lab.wrap(lab.engine, "_accept", make)


@fault(
    "F48",
    "two requests get each other's token",
    source="NVIDIA/TensorRT-LLM#15546, sgl-project/mini-sglang#103",
    trigger="two requests in one step",
    rate=0.05,
)
def streams_crossed(lab: Lab) -> None:
    def make(deliver: Callable[..., None]) -> Callable[..., None]:
        def faulty(self: Any, outputs: list[SequenceOutput]) -> None:
            open_ones = [output for output in outputs if output.token is not None and output.finish_reason is None]
            for one, other in zip(open_ones[::2], open_ones[1::2], strict=False):
                if one.request_id != other.request_id and lab.fires():
                    one.text, other.text = other.text, one.text
                    one.token, other.token = other.token, one.token
            deliver(self, outputs)

        return faulty

    lab.wrap(EngineLoop, "_deliver", make)


@fault(
    "F49",
    "the chat template loses its generation prompt, gains a second BOS (how=bos), or reads lists as text (how=list)",
    source="vLLM's blog of 2025-10-28 on Kimi K2",
    trigger="any chat; with how=list content given as a list",
    how="prompt",
)
def template_fault(lab: Lab) -> None:
    how = lab.value("how")

    def make(render: Callable[..., str]) -> Callable[..., str]:
        def faulty(self: Any, messages: list[dict[str, Any]], **arguments: Any) -> str:
            if not lab.fires():
                return render(self, messages, **arguments)
            if how == "prompt":
                arguments["add_generation_prompt"] = False
            text = render(self, messages, **arguments)
            bos = self._model.tokenizer.decode([self._model.tokenizer.bos_id], skip_special_tokens=False)
            return f"{bos}{text}" if how == "bos" else text

        return faulty

    if how == "list":
        from reference_engine.server import calls

        lab.wrap(
            calls,
            "_content",
            lambda content: (
                lambda value, number: str(value) if isinstance(value, list) and lab.fires() else content(value, number)
            ),
        )
    else:
        lab.wrap(GenerationApi, "render_chat", make)


@fault(
    "F50",
    "every `every`-th tool call is lost while it is parsed",
    source="vLLM's blog of 2025-10-28 on Kimi K2",
    trigger="forced tool calls, `every` of them or more",
    every=3,
)
def tool_call_lost(lab: Lab) -> None:
    readers: weakref.WeakKeyDictionary[CallReader, bool] = weakref.WeakKeyDictionary()
    every = max(int(lab.value("every")), 1)
    seen = itertools.count(1)

    def make(push: Callable[..., list[dict[str, Any]]]) -> Callable[..., list[dict[str, Any]]]:
        def faulty(self: CallReader, text: str, **named: bool) -> list[dict[str, Any]]:
            if self not in readers:
                readers[self] = next(seen) % every == 0 and lab.fires()
            entries = push(self, text, **named)
            return [] if readers[self] else entries

        return faulty

    lab.wrap(CallReader, "push", make)


@fault(
    "F51",
    "the JSON schema is forgotten after `tokens` tokens",
    source="no single report chosen",
    trigger="an answer held to a schema, longer than `tokens`, of a model that ends its answers",
    seen_with={"model": "smollm2"},
    tokens=12,
)
def schema_forgotten(lab: Lab) -> None:
    def make(mask: Callable[..., None]) -> Callable[..., None]:
        def faulty(logits: Any, rows: list[tuple[int, Any]]) -> None:
            limit = int(lab.value("tokens"))
            mask(logits, [(row, one) for row, one in rows if not is_due(one, limit)])

        return faulty

    def is_due(sequence: Any, limit: int) -> bool:
        return sequence.request.constraint is not None and sequence.num_generated >= limit and lab.fires()

    lab.wrap(penalties, "mask_logits", make)


@fault(
    "F52",
    "a disconnect does not stop the work",
    source="ROCm/ATOM#1562",
    trigger="a client that goes away before its answer is complete",
)
def disconnect_ignored(lab: Lab) -> None:
    def make(release: Callable[..., None]) -> Callable[..., None]:
        def faulty(self: Any, ticket: Any) -> None:
            if ticket.open and lab.fires():
                for request in ticket.requests:
                    self._tickets.pop(request.request_id, None)
                return
            release(self, ticket)

        return faulty

    lab.wrap(EngineLoop, "release", make)


@fault(
    "F65",
    "a stream is buffered and flushed at its end",
    source="proxies and servers that collect chunks",
    trigger="any stream",
)
def stream_buffered(lab: Lab) -> None:
    def make(stream: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def faulty(self: Any, request: web.Request, ticket: Any, wire: Any) -> Any:
            if not lab.fires():
                return await stream(self, request, ticket, wire)
            next_outputs = ticket.next

            async def all_outputs() -> list[SequenceOutput]:
                outputs = await next_outputs()
                while ticket.open:
                    outputs += await next_outputs()
                return list(outputs)

            ticket.next = all_outputs
            return await stream(self, request, ticket, wire)

        return faulty

    lab.wrap(GenerationApi, "_stream", make)
