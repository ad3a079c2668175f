"""Exit codes of the command line, and the one exception that ends a command with a sentence for the user."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The contract of DESIGN section 3 for ``pagedbench run``; other commands name their own values in their help."""

    OK = 0
    USAGE = 2
    UNREACHABLE = 3
    HARNESS_ERROR = 4
    INVALID_RUN = 5


class CliError(Exception):
    """Ends the command: ``str(error)`` goes to stderr as one sentence, ``code`` is the exit status."""

    def __init__(self, message: str, code: int = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.code = int(code)
