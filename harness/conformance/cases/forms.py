"""API, continued: output that is held to a form, by a forced tool call or a JSON schema."""

from __future__ import annotations

from typing import Any

from harness.conformance.case import Inconclusive, case
from harness.conformance.context import Context
from harness.conformance.schemas import ARGUMENT_SCHEMAS, OUTPUT_SCHEMAS, validate_json

SPEC = "OpenAI OpenAPI 2026-08-21"


@case(
    "API-13",
    "SHOULD",
    "a forced tool call has valid arguments, streamed or not",
    source="Kimi Vendor Verifier; OpenAPI tool_choice",
    needs="tools",
    kills="F50 F39",
    oracle="JSON schema",
)
async def tool_calls(ctx: Context) -> None:
    await check_tools(ctx, list(ARGUMENT_SCHEMAS.items())[: ctx.size(20, 8)], "Use the tool for item {}.")


@case(
    "API-17",
    "SHOULD",
    "forced tool calls issued side by side are all there",
    source="vLLM blog 2025-10-28 (lost tool calls); second killer of F50",
    needs="tools",
    kills="F50",
    oracle="JSON schema",
)
async def tool_calls_together(ctx: Context) -> None:
    import asyncio

    name, schema = next(iter(ARGUMENT_SCHEMAS.items()))
    calls = [
        one_tool(ctx, name, schema, f"Call the tool, order {number}.", stream=bool(number % 2)) for number in range(8)
    ]
    await asyncio.gather(*calls)


async def check_tools(ctx: Context, schemas: list[tuple[str, Any]], text: str) -> None:
    for number, (name, schema) in enumerate(schemas):
        for stream in (False, True):
            await one_tool(ctx, name, schema, text.format(number), stream=stream)


async def one_tool(ctx: Context, name: str, schema: Any, text: str, *, stream: bool) -> None:
    tool = {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": schema}}
    choice = {"type": "function", "function": {"name": name}}
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        "tools": [tool],
        "tool_choice": choice,
        "max_tokens": 256,
        "temperature": 0,
    }
    if stream:
        streamed = await ctx.api.stream("/v1/chat/completions", body)
        fault = streamed.fault()
        ctx.require(fault is None, f"a streamed tool call failed: {fault}")
        pieces = [
            call
            for _, delta in streamed.deltas()
            if isinstance(delta.get("delta"), dict)
            for call in delta["delta"].get("tool_calls") or []
            if isinstance(call, dict)
        ]
        ctx.require(pieces, f"the streamed call of {name} is missing")
        arguments: Any = "".join((piece.get("function") or {}).get("arguments") or "" for piece in pieces)
        called = next((n for piece in pieces if (n := (piece.get("function") or {}).get("name"))), None)
        finish = next((d.get("finish_reason") for _, d in streamed.deltas() if d.get("finish_reason")), None)
    else:
        answer = await ctx.api.chat(**body)
        calls = (answer.first.raw.get("message") or {}).get("tool_calls")
        function = (
            calls[0].get("function") if isinstance(calls, list) and calls and isinstance(calls[0], dict) else None
        )
        ctx.require(isinstance(function, dict), f"the call of {name} is missing: {str(answer.first.raw)[:160]}")
        called, arguments = (function or {}).get("name"), (function or {}).get("arguments")
        finish = answer.first.finish
    if finish == "length":
        raise Inconclusive(f"the arguments of {name} did not end within 256 tokens")
    ctx.require(called == name, f"the tool {called!r} was called where {name!r} was forced")
    fault = validate_json(arguments, schema)
    ctx.require(fault is None, f"arguments of {name} are not valid: {fault}", arguments=arguments)
    ctx.require(finish in ("tool_calls", "stop"), f"finish_reason of a forced tool call is {finish!r}")


@case(
    "API-14",
    "SHOULD",
    "output held to a JSON schema is valid",
    source=f"{SPEC}: response_format json_schema",
    needs="json_schema",
    kills="F51",
    oracle="JSON schema",
    evidence="answers that ended before the limit",
)
async def json_output(ctx: Context) -> None:
    await check_output(ctx, OUTPUT_SCHEMAS[: ctx.size(50, 10)], stream=False)


@case(
    "API-18",
    "SHOULD",
    "streamed output held to a long JSON schema is valid to its end",
    source=f"{SPEC}: response_format; second killer of F51",
    needs="json_schema stream",
    kills="F51 F39",
    oracle="JSON schema",
    evidence="answers that ended before the limit",
)
async def json_streamed(ctx: Context) -> None:
    await check_output(ctx, OUTPUT_SCHEMAS[-ctx.size(8, 4) :], stream=True)


ENDLESS = 8  # answers none of which ends


async def check_output(ctx: Context, schemas: list[Any], *, stream: bool) -> None:
    asked = ended = 0
    for schema in schemas:
        if not ended and asked == ENDLESS:
            break  # a model that goes on writing within the form would do so in all of them
        asked += 1
        form = {"type": "json_schema", "json_schema": {"name": f"form{asked}", "schema": schema, "strict": True}}
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"Fill in form {asked} with any values."}],
            "response_format": form,
            "max_tokens": min(384, ctx.context // 2),
            "temperature": 0,
        }
        if stream:
            answer = (await ctx.api.stream("/v1/chat/completions", body)).answer()
        else:
            answer = await ctx.api.chat(**body)
        if answer.first.finish == "length":
            # Unfinished JSON is not invalid; text that cannot begin any JSON is.
            ctx.require(answer.text.lstrip()[:1] in ("{", ""), f"output for a schema begins {answer.text[:40]!r}")
            continue
        fault = validate_json(answer.text, schema)
        ctx.require(fault is None, f"output does not match its schema: {fault}", text=answer.text, schema=schema)
        ended += 1
    ctx.saw(ended=ended, asked=asked)
    ctx.need_evidence(ended * 2 >= asked, f"only {ended} of {asked} answers ended before the limit")
