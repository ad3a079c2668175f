"""Finding recipes: ours, the user's, and the short form ``recipe:NAME,key=value`` that the command line takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.engines.errors import RecipeError
from harness.engines.recipe import Recipe
from harness.engines.settings import nearest

BUILT_IN = Path(__file__).resolve().parent / "recipes"
PREFIX = "recipe:"


def recipe_folders() -> list[Path]:
    """Folders with recipes; a later one overrides an earlier one by name.

    Ours, then ``~/.config/pagedbench/recipes``, then each folder in ``$PAGEDBENCH_RECIPES`` (separated by ``:``).
    """
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    extra = [Path(part).expanduser() for part in os.environ.get("PAGEDBENCH_RECIPES", "").split(os.pathsep) if part]
    return [BUILT_IN, config / "pagedbench" / "recipes", *extra]


def recipe_files() -> dict[str, Path]:
    """Recipe name -> file, in alphabetical order."""
    found = {path.stem: path for folder in recipe_folders() for path in sorted(folder.glob("*.yaml"))}
    return dict(sorted(found.items()))


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} must hold a mapping of recipe fields")
    return data


def fill_here(data: Any, folder: str) -> Any:
    """Replace ``{here}`` in every text of a file by the folder that the file is in."""
    if isinstance(data, dict):
        return {key: fill_here(value, folder) for key, value in data.items()}
    if isinstance(data, list):
        return [fill_here(value, folder) for value in data]
    return data.replace("{here}", folder) if isinstance(data, str) else data


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``: mappings merge key by key, null removes a key, anything else replaces."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def load_data(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a recipe file, with those of the recipe that it ``extends`` underneath."""
    path = path.resolve()
    if path in seen:
        raise RecipeError(f"{path} extends itself")
    data = fill_here(read_yaml(path), str(path.parent))
    parent = data.pop("extends", None)
    if parent is None:
        return data
    files = recipe_files()
    if parent not in files:
        raise RecipeError(f"{path} extends {parent!r}, which is no recipe; {nearest(str(parent), files)}")
    # A user's file may carry the name of the recipe that it extends: then it means ours.
    parent_path = files[parent] if files[parent].resolve() != path else BUILT_IN / f"{parent}.yaml"
    return merge(load_data(parent_path, (*seen, path)), data)


def load_file(path: Path) -> Recipe:
    """The recipe in ``path``.  Its name is the file's unless it says otherwise.  Raises RecipeError."""
    data = load_data(path)
    data.setdefault("name", path.stem)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{path}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """One sentence on the first thing that is wrong, with the nearest known field when one is unknown."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return f"unknown field {where!r}; {nearest(where, Recipe.model_fields)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"field {where!r}: {message}" if where else message


def find(name: str) -> Recipe:
    """The recipe called ``name``, or the one in the file ``name`` when that is a path to YAML.  Raises RecipeError."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {name!r}")
        return load_file(path)
    files = recipe_files()
    if name not in files:
        raise RecipeError(f"there is no recipe {name!r}; {nearest(name, files)}")
    return load_file(files[name])


def all_recipes() -> Iterator[Recipe]:
    """Every recipe that can be found by name."""
    for path in recipe_files().values():
        yield load_file(path)


def is_reference(text: str) -> bool:
    """Whether an ``--engine`` value means a recipe rather than a URL."""
    return text.startswith(PREFIX)


def parse_reference(text: str) -> tuple[Recipe, dict[str, Any]]:
    """``recipe:NAME,key=value,...`` -> the recipe and the settings given, unparsed.  Raises RecipeError.

    A comma inside a value is written ``\\,``.
    """
    body = text.removeprefix(PREFIX).replace("\\,", "\0")
    name, *pairs = [part.replace("\0", ",") for part in body.split(",")]
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RecipeError(f"{pair!r} in {text!r} should read key=value")
        settings[key.strip()] = value
    return find(name), settings
