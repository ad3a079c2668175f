"""What a running cell looks like from outside.  Plain numbers: the load loop writes them, a display thread reads
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.load.exchange import Exchange
from harness.load.settle import RequestRecord


@dataclass(slots=True)
class Progress:
    """One cell in progress.  ``asked`` is the number of measured requests in the schedule."""

    asked: int
    done: int = 0
    failed: int = 0
    settled_tokens: int = 0
    failures_in_a_row: int = 0
    last_error: str | None = None
    in_flight: set[Exchange] = field(default_factory=set)

    @property
    def tokens(self) -> int:
        """Output tokens so far; those of unfinished answers are estimated by their reads."""
        return self.settled_tokens + sum(len(exchange.stamps) for exchange in tuple(self.in_flight))

    @property
    def flying(self) -> int:
        """Requests in flight."""
        return len(self.in_flight)

    def settled(self, record: RequestRecord) -> None:
        self.settled_tokens += record.output_tokens or 0
        if not record.warmup:
            self.done += 1
        if record.ok:
            self.failures_in_a_row = 0
        elif record.error_class != "cancelled":
            self.failed += 1
            self.failures_in_a_row += 1
            self.last_error = f"{record.error_class}: {record.error}"
