"""Counting tokens with a local tokenizer, for engines that have no ``/tokenize``.

Needs the ``tokenizers`` library (``pagedbench[engine]``).  Chat prompts also need the chat template that lies
beside the tokenizer (``tokenizer_config.json`` or ``chat_template.jinja``); it runs in jinja2's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workloads.request import Message
from workloads.tokens import CountError


class FileCounter:
    """A ``workloads.tokens.TokenCounter`` over ``tokenizer.json``."""

    def __init__(self, path: Path) -> None:
        """``path`` is the file or the directory that holds it.  Raises :class:`CountError` when it cannot be read."""
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise CountError("--tokenizer needs the package 'tokenizers'; pip install 'pagedbench[engine]'") from None
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise CountError(f"--tokenizer {file} cannot be read as a tokenizer.json: {error}") from None
        self.name = f"tokenizer file {file}"
        self._template, self._variables = _chat_template(file.parent)

    def count_prompt(self, prompt: str) -> int:
        return len(self._tokenizer.encode(prompt).ids)

    def count_messages(self, messages: Sequence[Message]) -> int:
        if self._template is None:
            raise CountError(f"{self.name} has no chat template beside it; use endpoint=completions")
        try:
            text = self._template.render(messages=list(messages), add_generation_prompt=True, **self._variables)
        except TemplateError as error:
            raise CountError(f"the chat template refuses the messages: {error}") from None
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _chat_template(folder: Path) -> tuple[Any | None, dict[str, Any]]:
    """The compiled template and the variables that it may use, or None."""
    config: dict[str, Any] = {}
    config_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    if config_file.is_file():
        try:
            config = json.loads(config_file.read_bytes())
        except ValueError as error:
            raise CountError(f"{config_file} is not JSON: {error}") from None
    source = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
    if not isinstance(source, str):
        return None, {}
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _refuse
    variables = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    try:
        return environment.from_string(source), variables
    except TemplateError as error:
        raise CountError(f"the chat template in {folder} is broken: {error}") from None


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _token_text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
