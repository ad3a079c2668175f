"""A recipe says how to start, recognise and stop one engine.  It is data: ``recipes/*.yaml`` and docs/engines.md."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.engines.errors import RecipeError
from harness.engines.settings import Setting, Value, resolve

PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
# Filled by us, not by a setting: interpreter, its folder, the program's path, the port.
BUILT_IN = {"python", "bin", "program", "port"}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Environment(Strict):
    """Where the engine is installed: a virtual environment's folder under ``$PAGEDBENCH_EXT``, else our own Python."""

    venv: str | None = None
    package: str | None = None  # distribution whose version is the engine's


class Readiness(Strict):
    """The engine is ready when ``path`` answers 200.  ``url_in_log`` is a pattern whose first group is the base URL:
    the engine then picks its own port, and none can be taken away between choosing and binding it."""

    path: str = "/health"
    url_in_log: str | None = None
    timeout_s: float = 120.0


class Stop(Strict):
    """``signal`` goes to the engine first; after ``grace_s`` its whole process group gets TERM, then KILL."""

    signal: str = "SIGINT"
    grace_s: float = 10.0

    @field_validator("signal")
    @classmethod
    def known(cls, value: str) -> str:
        if value not in signal.Signals.__members__:
            raise ValueError(f"{value!r} is not a signal's name")
        return value


class Version(Strict):
    """Command whose output matches ``pattern`` (first group: the version)."""

    command: tuple[str, ...]
    pattern: str = r"(\d[\w.+-]*)"


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """One command, ready to run.  ``url`` is None when the engine will say it in its log."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    url: str | None
    values: Mapping[str, Value] = field(default_factory=dict)


class Recipe(Strict):
    """See the module's docstring; every field of a YAML file is one of these."""

    name: str
    summary: str
    kind: str | None = None  # what the probe would call it: "pagedbench", "vllm", "llama.cpp" ...
    device: Literal["cpu", "gpu"] = "cpu"  # gpu: only one such engine at a time, unless told otherwise
    install: str | None = None  # how to get it, for people
    python: Environment | None = None  # engines that live in a Python environment
    program: str | None = None  # engines that are a program on PATH
    command: tuple[str, ...]
    environment: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Setting] = Field(default_factory=dict)
    readiness: Readiness = Readiness()
    version: Version | None = None
    stop: Stop = Stop()
    kv_budget: str | None = None  # the setting that limits KV memory
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def check(self) -> Recipe:
        if (self.python is None) == (self.program is None):
            raise ValueError("give either python or program")
        clash = BUILT_IN & set(self.settings) - {"python", "program", "port"}
        if clash:
            raise ValueError(f"{sorted(clash)} cannot be names of settings")
        known = BUILT_IN | set(self.settings)
        words = [*self.command, *self.environment.values(), *(self.version.command if self.version else ())]
        for word in words:
            for name in PLACEHOLDER.findall(word):
                if name not in known:
                    raise ValueError(f"{{{name}}} in {word!r} is neither a setting nor one of {sorted(BUILT_IN)}")
        if self.kv_budget is not None and self.kv_budget not in self.settings:
            raise ValueError(f"kv_budget names {self.kv_budget!r}, which is no setting")
        return self

    def interpreter(self, values: Mapping[str, Value]) -> str:
        """Python of the engine: the setting ``python``, else ``$PAGEDBENCH_EXT/<venv>/bin/python``, else ours."""
        if given := values.get("python"):
            return str(given)
        root = os.environ.get("PAGEDBENCH_EXT")
        if root and self.python and self.python.venv:
            candidate = Path(root) / self.python.venv / "bin" / "python"
            if candidate.exists():
                return str(candidate)
        return sys.executable

    def executable(self, values: Mapping[str, Value]) -> str:
        """The program's path: the setting ``program`` or the recipe's, looked up on PATH.  Raises RecipeError."""
        name = str(values.get("program") or self.program)
        found = shutil.which(os.path.expanduser(name))
        if found is None:
            hint = f"; install it with: {self.install}" if self.install else ""
            raise RecipeError(f"recipe {self.name!r}: there is no program {name!r}{hint}")
        return found

    def variables(self, values: Mapping[str, Value], port: int) -> dict[str, str]:
        """What the placeholders of the command stand for."""
        words = {name: str(value) for name, value in values.items()}
        words["port"] = str(port)
        if self.python is not None:
            python = self.interpreter(values)
            words |= {"python": python, "bin": str(Path(python).parent)}
        if self.program is not None:
            words["program"] = self.executable(values)
        return words

    def plan(self, given: Mapping[str, Any], port: int) -> LaunchPlan:
        """The command for ``given`` settings on ``port`` (0: the engine chooses).  Raises RecipeError."""
        values = resolve(self.settings, given, self.name)
        words = self.variables(values, port)
        command = [fill(part, words, self.name) for part in self.command]
        environment = {name: fill(text, words, self.name) for name, text in self.environment.items()}
        for name, value in values.items():
            setting = self.settings[name]
            if setting.variable:
                environment[setting.variable] = str(int(value)) if isinstance(value, bool) else str(value)
            else:
                command += setting.options(value)
        url = f"http://127.0.0.1:{port}" if port else None
        return LaunchPlan(tuple(command), environment, url, values)


def fill(text: str, words: Mapping[str, str], recipe: str) -> str:
    """Replace ``{name}`` in ``text``.  A setting without a value raises RecipeError."""

    def word(match: re.Match[str]) -> str:
        if match[1] not in words:
            raise RecipeError(f"recipe {recipe!r}: {text!r} needs the setting {match[1]!r}")
        return words[match[1]]

    return PLACEHOLDER.sub(word, text)
