"""The two builds of a driven gate: how each is named on the command line, and what each run asks of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.engines.catalogue import find
from harness.load.plan import PlanError, RunPlan, make_plan, parse_engine
from harness.load.schedule import derive_seed

Reset = Literal["process", "cache", "prompts"]
COMMAND_PREFIX = "cmd:"
RECIPE_PREFIX = "recipe:"
SCHEMES = ("http://", "https://")
RUN_PLACEHOLDER = "{run}"


class BuildError(ValueError):
    """A build that cannot be understood.  The message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Build:
    """One side of the gate: a URL, a recipe with settings, or a command that listens on ``{port}``."""

    arm: str
    where: str

    @property
    def is_url(self) -> bool:
        return self.where.startswith(SCHEMES)

    def engine(self, folder: Path, run: int) -> dict[str, Any]:
        """The engine as a run plan asks for it.  ``run``: how many runs this build had; fills ``{run}``."""
        if self.is_url:
            return {"name": self.arm, "url": self.where}
        if self.where.startswith(COMMAND_PREFIX):
            return {"name": self.arm, "recipe": str(self._recipe_of_command(folder))}
        asked = parse_engine(f"{self.arm}={self.where}")
        settings: dict[str, str] = asked["settings"]
        asked["settings"] = {key: value.replace(RUN_PLACEHOLDER, str(run)) for key, value in settings.items()}
        return asked

    def _recipe_of_command(self, folder: Path) -> Path:
        """A recipe file for a bare command; JSON is YAML."""
        words = shlex.split(self.where.removeprefix(COMMAND_PREFIX))
        if not words:
            raise BuildError(f"--{self.arm} cmd: needs a command, such as 'cmd:my-server --port {{port}}'")
        if not any("{port}" in word for word in words):
            raise BuildError(f"--{self.arm} cmd: must say {{port}} where the server takes its port, in {words[0]!r}")
        recipe = {
            "name": f"{self.arm}-command",
            "summary": "a command given to pagedbench gate",
            "program": words[0],
            "command": ["{program}", *words[1:]],
            "readiness": {"path": "/v1/models", "timeout_s": 600},
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.arm}-command.yaml"
        path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
        return path


def check_recipe(asked: dict[str, Any]) -> None:
    """Whether the engine's recipe and its settings exist, before anything is started.  Raises RecipeError."""
    if "recipe" in asked:
        find(asked["recipe"]).plan(asked.get("settings", {}), 0)


def is_drivable(where: str) -> bool:
    """Whether this names an engine and not recorded runs."""
    return where.startswith((*SCHEMES, RECIPE_PREFIX, COMMAND_PREFIX))


def choose_reset(builds: tuple[Build, Build], asked: Reset | None) -> Reset:
    """How engine state is kept from one run to the next.  Raises BuildError where it cannot be done as asked.

    ``process``: a fresh process each run.  ``cache``: the engine's own reset endpoint before each run.  ``prompts``: each
    pair has prompts that neither server saw before, the same in both arms.
    """
    urls = [build.is_url for build in builds]
    if asked is None:
        return "prompts" if any(urls) else "process"
    if asked == "process" and any(urls):
        raise BuildError("--reset process needs builds that the gate starts itself: a recipe or a command, not a URL")
    if asked == "cache" and not all(urls):
        raise BuildError(
            "--reset cache is for servers that go on running (URLs); recipes and commands are started anew"
        )
    return asked


def plan_of(
    build: Build, shared: dict[str, Any], folder: Path, *, run: int, seed: int, reset: Reset, prompts: str
) -> RunPlan:
    """The plan of one run.  ``prompts`` names the prompt set: both arms of a pair have the same.

    With a fresh process all runs ask the same; elsewhere every pair and attempt asks something new.
    """
    values = dict(shared)
    values["seed"] = seed if reset == "process" else derive_seed("gate", seed, prompts) % 2**31
    values["engines"] = [build.engine(folder, run)]
    try:
        return make_plan(values, "the gate's run")
    except PlanError as error:
        raise BuildError(str(error)) from None
