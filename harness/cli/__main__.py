"""``python -m harness.cli`` is the same as ``pagedbench``."""

from harness.cli.main import main

main()
