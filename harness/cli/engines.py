"""``pagedbench engines``: which engines can be launched, what is installed, and which settings each recipe takes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer

from harness.cli.errors import CliError
from harness.engines.catalogue import all_recipes, find
from harness.engines.errors import RecipeError
from harness.engines.installed import installed_version
from harness.engines.recipe import Recipe

SCHEMA_VERSION = 1


def engines(
    name: Annotated[str | None, typer.Argument(help="Recipe (or YAML file) to show in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the engines that can be launched and what is installed.

    Use one as ``--engine NAME=recipe:RECIPE,setting=value,...``.
    """
    try:
        recipes = [find(name)] if name else list(all_recipes())
    except RecipeError as error:
        raise CliError(str(error)) from None
    with ThreadPoolExecutor(max_workers=4) as pool:
        versions = list(pool.map(installed_version, recipes))
    rows = [describe(recipe, version) for recipe, version in zip(recipes, versions, strict=True)]
    if as_json:
        typer.echo(json.dumps({"schema_version": SCHEMA_VERSION, "engines": rows}, indent=2))
    elif name:
        print_one(recipes[0], versions[0])
    else:
        print_table(recipes, versions)


def describe(recipe: Recipe, version: str | None) -> dict[str, Any]:
    """The JSON form of one recipe."""
    settings = {key: setting.model_dump(exclude_none=True) for key, setting in recipe.settings.items()}
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "kind": recipe.kind,
        "installed": version is not None,
        "version": version,
        "install": recipe.install,
        "kv_budget": recipe.kv_budget,
        "command": list(recipe.command),
        "settings": settings,
        "notes": list(recipe.notes),
    }


def print_table(recipes: list[Recipe], versions: list[str | None]) -> None:
    names = max(len(recipe.name) for recipe in recipes)
    column = max(len(version or "not installed") for version in versions)
    typer.echo(f"{'recipe':<{names}}  {'installed':<{column}}  what it runs")
    for recipe, version in zip(recipes, versions, strict=True):
        typer.echo(f"{recipe.name:<{names}}  {version or 'not installed':<{column}}  {recipe.summary}")
    typer.echo("\nSettings of one recipe: pagedbench engines NAME")
    typer.echo("Use: pagedbench run --engine NAME=recipe:RECIPE,setting=value,...")


def print_one(recipe: Recipe, version: str | None) -> None:
    typer.echo(f"{recipe.name}: {recipe.summary}")
    typer.echo(f"installed: {version or 'no'}")
    if recipe.install and version is None:
        typer.echo(f"install:   {recipe.install}")
    if recipe.kv_budget:
        typer.echo(f"KV budget: {recipe.kv_budget}")
    typer.echo(f"command:   {' '.join(recipe.command)}")
    typer.echo("settings:")
    width = max((len(key) for key in recipe.settings), default=0)
    for key, setting in recipe.settings.items():
        kind = f"{setting.type}{f', {setting.unit}' if setting.unit and setting.unit != setting.type else ''}"
        more = ["required"] if setting.required else []
        if setting.default is not None:
            more.append(f"default {setting.default}")
        if setting.choices:
            more.append(f"one of {', '.join(setting.choices)}")
        typer.echo(f"  {key:<{width}}  {setting.help} [{'; '.join([kind, *more])}]")
    for note in recipe.notes:
        typer.echo(f"note: {note}")
