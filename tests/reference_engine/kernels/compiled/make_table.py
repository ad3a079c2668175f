"""Write ``aot_table.json``: what the pinned compiler makes of every production configuration.

``KERNEL_GROUP=compiled python tests/reference_engine/kernels/compiled/make_table.py`` from the repository's root.
"""

from __future__ import annotations

import json
from pathlib import Path

TABLE = Path(__file__).with_name("aot_table.json")


def main() -> None:
    import triton
    from aot import compile_for
    from configurations import CONFIGURATIONS, PARTS, supported

    parts = {
        arch: {name: compile_for(CONFIGURATIONS[name](device), arch).as_json() for name in supported(arch)}
        for arch, device in PARTS.items()
    }
    lines = ["{", f' "triton": {json.dumps(triton.__version__)},', ' "parts": {']
    for i, (arch, rows) in enumerate(parts.items()):
        lines.append(f"  {json.dumps(arch)}: {{")
        lines.extend(
            f"   {json.dumps(name)}: {json.dumps(row)}{',' if j < len(rows) - 1 else ''}"
            for j, (name, row) in enumerate(rows.items())
        )
        lines.append("  }," if i < len(parts) - 1 else "  }")
    TABLE.write_text("\n".join([*lines, " }", "}", ""]))


if __name__ == "__main__":
    import sys

    sys.path[:0] = [".", str(Path(__file__).parent)]
    main()
