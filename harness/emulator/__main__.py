"""``python -m harness.emulator '{"ttft_ms": 50}'``: the emulator as a process, its options as one JSON object."""

from __future__ import annotations

import sys

import orjson

from harness.emulator.options import EmulatorError, make_options
from harness.emulator.process import run_emulator


def main() -> None:
    try:
        run_emulator(make_options(**orjson.loads(sys.argv[1] if len(sys.argv) > 1 else b"{}")))
    except EmulatorError as error:
        sys.exit(f"emulator: {error}")


if __name__ == "__main__":
    main()
