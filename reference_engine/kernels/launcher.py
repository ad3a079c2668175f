"""One prepared kernel launch: what production runs, what the ahead-of-time tests compile, from the same values.

Every kernel file has a ``*_launch`` function that turns tensors and a plan into a :class:`Launch`.  Production calls
``Launch.run``; the ahead-of-time test group passes the very same arguments to ``Launch.warmup`` for each target, so
that a stride or an alignment that production loses shows there as a lost instruction kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Launch:
    """``kernel[grid](**arguments, **options)``; ``options`` are ``num_warps`` and ``num_stages``."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Enqueue on the current stream; returns at once."""
        self.kernel[self.grid](**self.arguments, **self.options)

    def warmup(self) -> Any:
        """Compile for the active target without running; returns the compiled kernel."""
        return self.kernel.warmup(grid=self.grid, **self.arguments, **self.options)


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least ``n`` (>= 1)."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up, for non-negative ``a`` and positive ``b``."""
    return -(-a // b)
