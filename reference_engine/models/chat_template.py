"""Chat templates: Jinja text from a model file, rendered in a sandbox with the helpers that Hugging Face templates
expect.

A template is untrusted.  ``ImmutableSandboxedEnvironment`` forbids attribute tricks and mutation, and everything a
template is given has been rebuilt from plain JSON types first, so there is no object with methods to reach for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from reference_engine.models.errors import ChatTemplateError, ChatTemplateMissing


class _GenerationBlock(Extension):
    """``{% generation %} ... {% endgeneration %}`` marks the assistant's part for training; here: its body."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - an instance variable in the base class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own ``tojson`` escapes HTML; templates expect plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


class ChatTemplate:
    """One compiled template.  ``source`` None: the model has none, and rendering raises ChatTemplateMissing."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._compiled: jinja2.Template | None = None

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **kwargs: Any) -> str:
        """The prompt text of ``messages``.  Raises ChatTemplateMissing, or ChatTemplateError when it refuses."""
        if self.source is None:
            raise ChatTemplateMissing(
                "this model has no chat template, so it cannot serve chat; use /v1/completions with a plain prompt"
            )
        try:
            if self._compiled is None:
                self._compiled = _environment().from_string(self.source)
            return self._compiled.render(
                **{
                    "tools": None,
                    "documents": None,
                    **self._special_tokens,
                    **{key: _plain(value) for key, value in kwargs.items()},
                    "messages": _plain(messages),
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except jinja2.TemplateError as error:
            raise ChatTemplateError(
                f"the model's chat template refused the messages: {error.message or error}"
            ) from None
        except (
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            RecursionError,
            OverflowError,
            ZeroDivisionError,
        ) as error:
            raise ChatTemplateError(f"the model's chat template failed on the messages: {error}") from None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _plain(value: Any) -> Any:
    """``value`` rebuilt from plain JSON types; anything else becomes its type's name."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    return f"<{type(value).__name__}>"
