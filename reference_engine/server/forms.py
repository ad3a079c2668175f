"""What a call holds its answer to: ``response_format``, and ``tools`` with ``tool_choice``.

``tool_choice`` auto (the default) calls nothing: the answer is text, as without tools.  A function named, or
``required``, makes the answer one call: its text is the arguments of the only function in question, or an object
``{"name":..,"arguments":..}`` where there are several.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from reference_engine.grammar import document, one_call
from reference_engine.server.fields import Fields, wrong

MAX_SCHEMA_BYTES = 64 << 10  # of all schemas of a call, as JSON
MAX_TOOLS = 128
MAX_BOUND = 2**63
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# What each of these may be in a call with a form: the form alone decides when an answer may end.
_NEUTRAL: dict[str, Any] = {"use_beam_search": False, "min_tokens": 0, "ignore_eos": False, "stop_token_ids": []}


@dataclass(frozen=True, slots=True)
class Form:
    """``param``: the field that asked for it.  ``tools``: functions of which the answer calls one; empty for text."""

    param: str
    grammar: str
    tools: tuple[str, ...] = ()


def completion_form(fields: Fields) -> Form | None:
    """The form of a completion; None for free text.  Raises ApiError."""
    return _checked(fields, _response_format(fields))


def chat_form(fields: Fields) -> Form | None:
    """The form of a chat's answer; None for free text.  A call that is forced goes before the response format.

    Raises ApiError.
    """
    written = _response_format(fields)
    return _checked(fields, _forced_call(fields) or written)


def _checked(fields: Fields, form: Form | None) -> Form | None:
    if form is not None:
        for name, neutral in _NEUTRAL.items():
            if fields.get(name) not in (None, neutral):
                raise wrong(name, f"does not go with {form.param}; leave it out")
    return form


def _response_format(fields: Fields) -> Form | None:
    wanted = fields.object("response_format")
    if wanted is None or wanted.get("type") == "text":
        return None
    if wanted.get("type") == "json_object":
        return Form("response_format", document({"type": "object"}))
    if wanted.get("type") != "json_schema":
        raise wrong("response_format", "must have a type, one of text, json_object and json_schema")
    asked = wanted.get("json_schema")
    if type(asked) is not dict or type(asked.get("schema")) is not dict:
        raise wrong("response_format", "json_schema must be an object with a name and a schema, which is an object")
    _checked_name("response_format", "json_schema", asked.get("name"))
    if type(asked.get("strict")) not in (bool, type(None)):
        raise wrong("response_format", "json_schema.strict must be true or false")
    _check_schema("response_format", asked["schema"])
    return Form("response_format", document(asked["schema"]))


def _forced_call(fields: Fields) -> Form | None:
    parameters = _functions(fields.get("tools"))
    choice = fields.get("tool_choice")
    if choice is None or choice in ("auto", "none"):
        return None
    if not parameters:
        raise wrong("tool_choice", "needs tools to choose from")
    if choice != "required":
        chosen = _chosen_name(choice)
        if chosen not in parameters:
            raise wrong("tool_choice", f"names the function {chosen!r}, which is not among the tools")
        parameters = {chosen: parameters[chosen]}
    _check_schema("tools", parameters)
    only = next(iter(parameters.values()))
    grammar = document(only) if len(parameters) == 1 else one_call(parameters)
    return Form("tools", grammar, tuple(parameters))


def _chosen_name(choice: Any) -> str:
    function = choice.get("function") if type(choice) is dict and choice.get("type") == "function" else None
    name = function.get("name") if type(function) is dict else None
    if type(name) is not str:
        raise wrong(
            "tool_choice", 'must be auto, none, required or {"type": "function", "function": {"name": a tool\'s name}}'
        )
    return name


def _functions(tools: Any) -> dict[str, Mapping[str, Any]]:
    """The schemas of the functions' arguments, by name."""
    if tools is None:
        return {}
    if type(tools) is not list:
        raise wrong("tools", "must be a list of tools")
    if len(tools) > MAX_TOOLS:
        raise wrong("tools", f"holds {len(tools)} tools; at most {MAX_TOOLS} are possible")
    found: dict[str, Mapping[str, Any]] = {}
    for number, tool in enumerate(tools):
        function = tool.get("function") if type(tool) is dict and tool.get("type") == "function" else None
        if type(function) is not dict:
            raise wrong("tools", f"tool {number} must be an object with type function and a function")
        name = _checked_name("tools", f"tool {number}", function.get("name"))
        if name in found:
            raise wrong("tools", f"two tools are named {name!r}")
        found[name] = _arguments(name, function.get("parameters"))
    return found


def _arguments(name: str, schema: Any) -> Mapping[str, Any]:
    """The schema of a function's arguments, which are always an object; without a schema, an empty one."""
    if schema is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if type(schema) is not dict or schema.get("type", "object") != "object":
        raise wrong("tools", f"the parameters of {name!r} must be a JSON schema of type object")
    return {"type": "object", **schema}


def _checked_name(param: str, where: str, name: Any) -> str:
    if type(name) is not str or _NAME.fullmatch(name) is None:
        raise wrong(param, f"{where} must have a name of 1 to 64 letters, digits, _ and -")
    return name


def _check_schema(param: str, schema: Mapping[str, Any]) -> None:
    """Refuse what the grammar library would take and get wrong (bounds are cut to 64 bits), or take long for."""
    size = len(orjson.dumps(schema))
    if size > MAX_SCHEMA_BYTES:
        raise wrong(param, f"a schema of {size} bytes is too large; at most {MAX_SCHEMA_BYTES} are possible")
    left: list[Any] = [schema]
    while left:
        part = left.pop()
        if type(part) is list:
            left.extend(part)
        elif type(part) is dict:
            left.extend(part.values())
            for name in _BOUNDS & part.keys():
                if type(part[name]) in (int, float) and abs(part[name]) >= MAX_BOUND:
                    raise wrong(param, f"{name} {part[name]} is out of range; bounds must be below 2**63 in size")
