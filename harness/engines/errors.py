"""What can go wrong with an engine, said in one sentence.  The command line turns these into exit codes."""

from __future__ import annotations


class EngineError(Exception):
    """Base of this room's errors; ``str(error)`` is shown to the user as it is."""


class RecipeError(EngineError):
    """A recipe or its settings are wrong: nothing was started."""


class LaunchError(EngineError):
    """The engine died or never became ready.  ``log_tail`` holds its last lines, which the message repeats."""

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(f"{message}\n{log_tail}" if log_tail else message)
        self.log_tail = log_tail


class UnreachableError(EngineError):
    """No HTTP server answers at the engine's URL."""


class ExpositionError(EngineError):
    """A text that should be a Prometheus exposition is not one."""
