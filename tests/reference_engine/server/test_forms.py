"""``response_format``, ``tools`` and ``tool_choice`` through HTTP and the official client."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"flag": {"type": "boolean"}, "word": {"type": "string", "maxLength": 6}, "n": {"enum": [1, 22]}},
    "required": ["flag", "word", "n"],
    "additionalProperties": False,
}
WARM: dict[str, Any] = {"model": "hash", "messages": HELLO, "temperature": 1.2, "seed": 4, "max_tokens": 120}


def held_to(schema: Any = SCHEMA) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}}


def tool(name: str, schema: dict[str, Any] | None = SCHEMA) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "description": "Does it."}
    return {"type": "function", "function": function if schema is None else {**function, "parameters": schema}}


def forced(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_every_choice_is_valid_and_its_stream_is_equal(server: Any) -> None:
    arguments = {**WARM, "response_format": held_to(), "n": 3, "logprobs": True, "top_logprobs": 2}
    whole = server.client.chat.completions.create(**arguments)
    streamed: dict[int, str] = {0: "", 1: "", 2: ""}
    for chunk in server.client.chat.completions.create(**arguments, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    for choice in whole.choices:
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
        assert choice.finish_reason == "stop"
        assert choice.message.tool_calls is None
        assert streamed[choice.index] == choice.message.content
    assert len(set(streamed.values())) == 3


def test_json_object_is_an_object_and_text_is_free(server: Any) -> None:
    objects = [
        server.client.chat.completions.create(**{**WARM, "seed": seed}, response_format={"type": "json_object"})
        for seed in range(4)
    ]
    for answer in objects:
        assert answer.choices[0].message.content.startswith("{")
        if answer.choices[0].finish_reason == "stop":
            assert type(json.loads(answer.choices[0].message.content)) is dict
    free = [
        server.client.chat.completions.create(**WARM, **more) for more in ({}, {"response_format": {"type": "text"}})
    ]
    assert free[0].choices[0].message.content == free[1].choices[0].message.content


def test_completions_take_a_response_format_as_well(server: Any) -> None:
    answer = server.complete("hello", max_tokens=120, response_format=held_to(), n=2, temperature=1)
    for choice in answer["choices"]:
        jsonschema.validate(json.loads(choice["text"]), SCHEMA)


def test_different_schemas_at_once_do_not_mix(server: Any) -> None:
    schemas = [{**SCHEMA, "properties": {**SCHEMA["properties"], "n": {"enum": [number]}}} for number in range(12)]

    def ask(number: int) -> Any:
        form = held_to(schemas[number])
        return server.client.chat.completions.create(**{**WARM, "seed": number}, response_format=form)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    for schema, answer in zip(schemas, answers, strict=True):
        jsonschema.validate(json.loads(answer.choices[0].message.content), schema)


@pytest.mark.parametrize(
    ("tools", "choice", "names"),
    [
        ([tool("look_up"), tool("other", None)], forced("look_up"), {"look_up"}),
        ([tool("look_up")], "required", {"look_up"}),
        ([tool("look_up"), tool("also-this")], "required", {"look_up", "also-this"}),
    ],
    ids=["named", "one", "several"],
)
def test_a_forced_call_whole_and_streamed(server: Any, tools: list[Any], choice: Any, names: set[str]) -> None:
    arguments = {**WARM, "tools": tools, "tool_choice": choice}
    answer = server.client.chat.completions.create(**arguments).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    (call,) = answer.message.tool_calls
    assert call.id
    assert call.type == "function"
    assert call.function.name in names
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    choices = [c for chunk in server.client.chat.completions.create(**arguments, stream=True) for c in chunk.choices]
    pieces = [piece for c in choices for piece in c.delta.tool_calls or []]
    assert choices[0].delta.role == "assistant"
    assert choices[-1].finish_reason == "tool_calls"
    assert not any(c.delta.content for c in choices)
    assert (pieces[0].index, pieces[0].type, pieces[0].function.name) == (0, "function", call.function.name)
    assert pieces[0].id
    assert all(piece.id is None and piece.function.name is None for piece in pieces[1:])
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments


def test_a_function_without_parameters_is_called_with_nothing(server: Any) -> None:
    answer = server.client.chat.completions.create(**WARM, tools=[tool("stop", None)], tool_choice="required")
    assert answer.choices[0].message.tool_calls[0].function.arguments == "{}"


def test_a_call_that_reaches_its_limit_says_length(server: Any) -> None:
    arguments = {**WARM, "tools": [tool("look_up")], "tool_choice": "required", "max_tokens": 5}
    (choice,) = server.client.chat.completions.create(**arguments).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"fla'


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_tools_that_are_not_forced_change_nothing(server: Any, choice: str | None) -> None:
    more = {} if choice is None else {"tool_choice": choice}
    answer = server.client.chat.completions.create(**WARM, tools=[tool("look_up")], **more)
    assert answer.choices[0].message.content == server.client.chat.completions.create(**WARM).choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


FORCED = {"tools": [tool("f")], "tool_choice": "required"}


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"response_format": "json"}, "response_format", "must be an object"),
        ({"response_format": {}}, "response_format", "must have a type"),
        ({"response_format": {"type": "grammar"}}, "response_format", "must have a type"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema must be an object"),
        ({"response_format": held_to([])}, "response_format", "which is an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format",
            "must have a name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format",
            "must have a name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": 1}}},
            "response_format",
            "strict",
        ),
        ({"response_format": held_to({"type": "banana"})}, "response_format", "Invalid type: banana"),
        ({"response_format": held_to({"not": {}})}, "response_format", 'Unimplemented keys: ["not"]'),
        ({"response_format": held_to({"enum": ["x" * 70_000]})}, "response_format", "at most 65536"),
        ({"response_format": held_to({"minimum": 1e22})}, "response_format", "minimum 1e+22 is out of range"),
        ({"response_format": held_to(), "ignore_eos": True}, "ignore_eos", "does not go with response_format"),
        ({"response_format": held_to(), "min_tokens": 3}, "min_tokens", "does not go with response_format"),
        ({"response_format": held_to(), "use_beam_search": True}, "use_beam_search", "does not go with"),
        ({"response_format": held_to(), "stop_token_ids": [5]}, "stop_token_ids", "does not go with"),
        ({**FORCED, "min_tokens": 3}, "min_tokens", "does not go with tools"),
        ({"tools": {}}, "tools", "must be a list"),
        ({"tools": [5]}, "tools", "tool 0 must be an object"),
        ({"tools": [{"type": "search"}]}, "tools", "tool 0 must be an object"),
        ({"tools": [tool("")]}, "tools", "tool 0 must have a name"),
        ({"tools": [tool("f"), tool("f")]}, "tools", "two tools are named 'f'"),
        ({"tools": [tool("f")] * 129}, "tools", "at most 128"),
        ({"tools": [tool("f", {"type": "string"})]}, "tools", "the parameters of 'f'"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}, "tools", "the parameters of"),
        ({**FORCED, "tools": [tool("f", {"properties": {"a": {"type": "banana"}}})]}, "tools", "Invalid type: banana"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": "required", "tools": []}, "tool_choice", "needs tools"),
        ({**FORCED, "tool_choice": "sometimes"}, "tool_choice", "must be auto, none, required or"),
        ({**FORCED, "tool_choice": {"type": "function"}}, "tool_choice", "must be auto, none, required or"),
        ({**FORCED, "tool_choice": forced("g")}, "tool_choice", "'g', which is not among the tools"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(server: Any, change: dict[str, Any], param: str, words: str) -> None:
    status, answer, _ = server.call("/v1/chat/completions", {"messages": HELLO, "max_tokens": 5, **change})
    assert status == 400
    assert answer["error"]["param"] == param
    assert answer["error"]["message"].startswith(f"{param}: ")
    assert words in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


def test_without_the_library_the_call_is_refused(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    body = {"messages": HELLO, "response_format": held_to()}
    status, answer, _ = server.call("/v1/chat/completions", body)
    assert status == 400
    assert "llguidance, which is not installed" in answer["error"]["message"]
