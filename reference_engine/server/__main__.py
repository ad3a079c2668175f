"""``python -m reference_engine.server``: the server with the options of ``pagedbench serve``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from reference_engine.config import ConfigError
from reference_engine.models.errors import ModelLoadError
from reference_engine.server.options import HELP, ServerOptions


def _parser() -> argparse.ArgumentParser:
    """One option per field of ServerOptions."""
    parser = argparse.ArgumentParser(
        prog="python -m reference_engine.server", description="Serve a model with the reference engine (OpenAI API)."
    )
    hints = get_type_hints(ServerOptions)
    for field in fields(ServerOptions):
        flag = "--" + field.name.replace("_", "-")
        hint = hints[field.name]
        settings: dict[str, Any] = {"default": field.default, "help": HELP[field.name].replace("%", "%%")}
        if get_origin(hint) is tuple:
            settings |= {"action": "append", "default": []}
        elif hint is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(hint) is not None and str in map(type, get_args(hint)):
            settings["choices"] = get_args(hint)
        else:
            settings["type"] = float if hint is float else int if hint is int or int in get_args(hint) else str
        parser.add_argument(flag, **settings)
    return parser


def main() -> int:
    arguments = _parser().parse_args()
    try:
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in vars(arguments).items()
        }
        options = ServerOptions(**values)
        # Only now: torch takes seconds to import.
        from reference_engine.server.launch import run_server

        return run_server(options)
    except (ConfigError, ModelLoadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while the model loads; later the server handles the signal itself
        return 130


if __name__ == "__main__":
    sys.exit(main())
