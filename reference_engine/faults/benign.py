"""Variants that change nothing that an engine promises, N1 to N12: a suite that complains about one of them is wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from aiohttp import web
from torch import Tensor
from torch.nn import functional

from reference_engine.config import ConfigError
from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import COMMON, Fault, Value, add, fault
from reference_engine.models.ops import TorchOps
from reference_engine.outputs import SequenceOutput
from reference_engine.server.api import GenerationApi
from reference_engine.server.loop import EngineLoop
from reference_engine.server.options import ServerOptions

SOURCE = "research on benign variation; see docs/faults.md"

Change = Callable[[ServerOptions, Mapping[str, Value]], dict[str, Any]]


def _by_options(id: str, title: str, trigger: str, change: Change, **parameters: Value) -> None:
    """A variant that is a setting of the server."""

    def options(given: ServerOptions, values: Mapping[str, Value]) -> ServerOptions:
        changed = change(given, values)
        missing = set(changed) - {field.name for field in fields(ServerOptions)}
        if missing:
            raise ConfigError(f"--benign {id} needs a server with --{sorted(missing)[0].replace('_', '-')}")
        return replace(given, **changed)

    add(Fault(id, title, SOURCE, trigger, "benign", "benign", (), {**COMMON, **parameters}, options=options))


_by_options("N1", "another attention backend", "always", lambda given, values: {"attention": "naive"})
_by_options("N2", "bf16, not batch invariant", "always", lambda given, values: {"dtype": "bfloat16"})
_by_options("N10", "K/V in fp8, and said so", "always", lambda given, values: {"kv_dtype": "fp8_e4m3"})
_by_options("N3", "no CUDA graphs", "on CUDA", lambda given, values: {"cuda_graphs": False})
_by_options("N4", "no prefix cache", "always", lambda given, values: {"prefix_cache": False})
_by_options(
    "N5",
    "another token budget a step",
    "prompts longer than it",
    lambda given, values: {"max_num_batched_tokens": int(values["tokens"])},
    tokens=128,
)


def _other_block_size(given: ServerOptions, values: Mapping[str, Value]) -> dict[str, Any]:
    """The pool keeps its number of slots."""
    size = int(values["size"])
    blocks = None if given.num_blocks is None else max(1, given.num_blocks * given.block_size // size)
    return {"block_size": size, "num_blocks": blocks}


_by_options("N6", "another block size", "always", _other_block_size, size=32)
_by_options("N8", "another scheduling policy", "requests with priorities", lambda given, values: {"order": "priority"})
_by_options(
    "N11",
    "preemption by swap instead of recompute",
    "preemption",
    lambda given, values: {"preemption": "swap", "swap_space": str(values["space"])},
    space="64MiB",
)


class _WideLogitsOps(TorchOps):
    """Everything in the weights' type but the last product."""

    def logits(self, x: Tensor, weight: Any) -> Tensor:
        return functional.linear(x.double(), weight[0].double()).float()


@fault("N7", "logits computed in fp64", source=SOURCE, trigger="always", kind="benign", early=True)
def wide_logits(lab: Lab) -> None:
    from reference_engine.server import build

    lab.fires()
    lab.wrap(build, "make_ops", lambda make_ops: lambda *rest, **named: _WideLogitsOps())


def _deliver_in_bursts(lab: Lab, size: int) -> None:
    """Outputs reach their calls up to ``size`` at a time; the last of a continuation brings the rest along."""
    held: dict[tuple[str, int], list[SequenceOutput]] = {}

    def make(deliver: Callable[..., None]) -> Callable[..., None]:
        def faulty(self: Any, outputs: list[SequenceOutput]) -> None:
            ready: list[SequenceOutput] = []
            for output in outputs:
                waiting = held.setdefault((output.request_id, output.index), [])
                waiting.append(output)
                ends = output.finish_reason is not None or output.error is not None
                if ends or len(waiting) >= size or output.num_generated == 1:
                    ready += waiting
                    del held[output.request_id, output.index]
                    lab.fires()
            if ready:
                deliver(self, ready)

        return faulty

    lab.wrap(EngineLoop, "_deliver", make)


@fault(
    "N9",
    "tokens come in bursts, as from lossless speculative decoding",
    source=SOURCE,
    trigger="always",
    kind="benign",
    burst=3,
)
def bursts(lab: Lab) -> None:
    _deliver_in_bursts(lab, int(lab.value("burst")))


@fault("N12", "several tokens in one streamed event", source=SOURCE, trigger="streams", kind="benign", tokens=3)
def batched_events(lab: Lab) -> None:
    size = int(lab.value("tokens"))

    def merged(outputs: list[SequenceOutput]) -> list[SequenceOutput]:
        """Runs of up to ``size`` outputs of one continuation as one."""
        result: list[SequenceOutput] = []
        counts: dict[int, int] = {}
        for output in outputs:
            last = result[-1] if result else None
            if (
                last is not None
                and (last.request_id, last.index, last.finish_reason) == (output.request_id, output.index, None)
                and counts[id(last)] < size
            ):
                result[-1] = replace(output, text=last.text + output.text, text_offset=last.text_offset)
                counts[id(result[-1])] = counts[id(last)] + 1
            else:
                result.append(output)
                counts[id(output)] = 1
        return result

    def make(stream: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def faulty(self: Any, request: web.Request, ticket: Any, wire: Any) -> Any:
            next_outputs = ticket.next
            # With logprobs or ids an event of several tokens would need lists of them, which the wire writes by itself.
            plain = wire.call.params.logprobs is None and not wire.call.return_token_ids

            async def several() -> list[SequenceOutput]:
                outputs: list[SequenceOutput] = await next_outputs()
                while ticket.open and len(outputs) < size:
                    outputs += await next_outputs()
                lab.fires()
                return merged(outputs)

            if plain and wire.call.num_choices == 1:
                ticket.next = several
            return await stream(self, request, ticket, wire)

        return faulty

    lab.wrap(GenerationApi, "_stream", make)
