"""``python -m reference_engine.faults --list [--json]``: the catalogue of faults and benign variants."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from reference_engine.faults.registry import Fault, catalogue

SCHEMA = "pagedbench.faults/1"


def described(entry: Fault) -> dict[str, Any]:
    return {
        "id": entry.id,
        "title": entry.title,
        "kind": entry.kind,
        "theme": entry.theme,
        "source": entry.source,
        "trigger": entry.trigger,
        "needs": list(entry.needs),
        "parameters": dict(entry.parameters),
        "seen_with": dict(entry.seen_with),
    }


def document(entries: Iterable[Fault]) -> dict[str, Any]:
    return {"schema": SCHEMA, "faults": [described(entry) for entry in entries]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reference_engine.faults", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the catalogue (the default)")
    parser.add_argument("--json", action="store_true", help="as one JSON document")
    arguments = parser.parse_args()
    entries = catalogue().values()
    if arguments.json:
        print(json.dumps(document(entries), indent=1, ensure_ascii=False))
        return
    for entry in entries:
        print(f"{entry.id:<5}{entry.title}\n     source: {entry.source}\n     trigger: {entry.trigger}")


if __name__ == "__main__":
    main()
